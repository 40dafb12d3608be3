"""Grouped convolution with narrow groups on GPUs: a thread computes a strip of pixels down a column, of the four output
channels that one access holds. Groups of less than a tile of the implicit product would multiply mostly zeros there.

As depthwise (schedules/_depthwise_cuda.py), with a loop over blocks of a group's input channels around the window, and
each element of x multiplied by the weights of four output channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from convc.algorithm import Config
from convc.gpu import MOST_REGISTERS, WARP
from convc.problem import Problem
from convc.schedules import _depthwise_cuda as depthwise
from convc.schedules import _gpu
from convc.target import GpuTarget, Target

WIDEST = 64  # channels of a group: from there on the implicit product's tiles fill
UNROLLED = 16  # taps up to which all columns of the window are unrolled
OWN = 40  # registers of a thread beside what it holds of x, w and y


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind != "conv" or p.g == 1:
        return f"the problem is {p.kind}" if p.kind != "conv" else "one group"
    if p.dtype != "float32":
        return f"{p.dtype} is not float32"
    if p.icg % target.lanes or p.ocg % target.lanes:
        return f"{p.icg} input and {p.ocg} output channels a group do not fill accesses of {target.lanes}"
    if p.ocg > WIDEST:
        return f"{p.ocg} output channels a group fill the tiles of a product"
    if not any(True for _ in _configs(p, target)):
        return f"a column of {depthwise.height(p)} taps takes too many registers"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> list[Config]:
    return sorted(_configs(p, target), key=lambda c: seconds(p, target, c))[:64]


def _configs(p: Problem, target: Target) -> Iterator[Config]:
    for config in depthwise.strips(p, target.lanes):
        if registers(p, config) <= MOST_REGISTERS // 2:
            yield config


def registers(p: Problem, c: Config) -> int:
    lanes = c["yb"]
    return OWN + lanes * (c["rh"] + depthwise.read(p, c)) + lanes * lanes


def cost(p: Problem, target: GpuTarget, c: Config) -> _gpu.Cost:
    """Multiply-adds, or the L1 cache that gives each warp 128 bytes a cycle, or memory."""
    gpu, lanes, warps = target.gpu, c["yb"], c["tx"] / WARP
    blocks, columns = p.icg // lanes, p.taps // depthwise.height(p)
    fma = WARP * p.taps * p.icg * c["rh"] * lanes / gpu.fma
    cache = blocks * (columns * depthwise.read(p, c) * lanes + p.taps * lanes) + c["rh"] * lanes
    issued = (p.taps * p.icg * (c["rh"] * lanes + 1) + 5 * blocks * columns * depthwise.read(p, c) + 60) / 4
    tile = 4.0 * c["tx"] * lanes * (depthwise.reach(p, c["rh"]) * min(p.s[-1], p.k[-1]) * blocks + c["rh"])
    found = _gpu.Block(
        c["tx"], registers(p, c), 0, warps * max(fma, cache, issued), _gpu.LATENCY * blocks * (1 + columns / 8), tile
    )
    compulsory = 4.0 * (p.mb * (p.ic * math.prod(p.i) + p.oc * math.prod(p.o)) + p.oc * p.reduction)
    return _gpu.cost(found, -(-depthwise.count(p, c) // c["tx"]), compulsory, gpu)


seconds, limit = _gpu.modelled(cost)


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> [oc blocks, icg blocks, *k, input lanes, output lanes]."""
    from tvm import te

    lanes = c["yb"]

    def value(ob: Any, cb: Any, *rest: Any) -> Any:
        *taps, ci, lane = rest
        return w(ob * lanes + lane, cb * lanes + ci, *taps)

    return te.compute((p.oc // lanes, p.icg // lanes, *p.k, lanes, lanes), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, b, *o, lane] = sum over cb, the taps and ci of xp[n, group + cb, o*s + k*d, ci] * w[b, cb, *k, ci, lane]."""
    from tvm import te

    lanes, xp = c["yb"], depthwise.pad(x, p, c)
    cb, ci = te.reduce_axis((0, p.icg // lanes), "cb"), te.reduce_axis((0, lanes), "ci")
    taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(p.k)]

    def value(n: Any, block: Any, *rest: Any) -> Any:
        *o, lane = rest
        at = [i * s + u * d for i, s, u, d in zip(o, p.s, taps, p.d, strict=True)]
        channels = block // (p.ocg // lanes) * (p.icg // lanes) + cb
        return te.sum(xp(n, channels, *at, ci) * w(block, cb, *taps, ci, lane), axis=[cb, *taps, ci])

    return te.compute(depthwise.extents(p, c), value, name="y")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """strips | threads | blocks of channels | columns of the window: x in registers | taps of a column: w in registers
    | pixels, input lanes, output lanes."""
    depthwise.place_strips(sch, p, c)
    y, xp = sch.get_sblock("y"), sch.get_sblock("xp")
    own = sch.get_loops(y)[2:]
    spatial, (cb, *taps, ci) = own[: len(own) - p.rank - 2], own[len(own) - p.rank - 2 :]
    *pixels, lane = spatial
    down, columns = taps[-2:-1], [*taps[:-2], taps[-1]]
    sch.reorder(cb, *columns, *down, *pixels, ci, lane)
    sch.set_scope(xp, 0, "local")
    depthwise.hold(sch, xp, columns[-1], vector=True)
    depthwise.hold(sch, sch.cache_read(y, 1, "local"), [*columns, *down][-1], vector=True)
    for loop in [*(columns if p.taps <= UNROLLED else []), *down, *pixels, ci, lane]:
        sch.unroll(loop)
