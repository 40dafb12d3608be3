"""Depthwise convolution on GPUs: a thread computes a strip of pixels down a column, of one channel or of as many as an
access of 16 bytes or less holds, in registers. Threads of a warp are neighbours along the rows: what they read of x
comes from memory once and from the L1 cache for the other taps. Types of 2 bytes are multiplied and summed in float32.

The strip goes through the window column by column: the rows of x that a column of taps meets are read once, and each is
multiplied by all taps it meets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from convc.algorithm import Config
from convc.dtypes import HALVES
from convc.gpu import MOST_REGISTERS, WARP
from convc.problem import Problem
from convc.schedules import _gpu
from convc.target import GpuTarget, Target

VECTOR = 4  # channels of a thread, beside all of a block
THREADS = (64, 128, 256)  # of a block
ROWS = (1, 2, 3, 4, 5, 6, 7, 8)  # of a strip
UNROLLED = 32  # taps up to which all columns of the window are unrolled
OWN = 36  # registers of a thread beside what it holds of x, w and y


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind != "conv" or not p.is_depthwise:
        return f"{p.icg} input and {p.ocg} output channels a group: depthwise has one of each"
    if p.dtype not in (*HALVES, "float32"):
        return f"{p.dtype} is neither float32 nor of 2 bytes"
    if not any(True for _ in _configs(p, 1)):
        return f"a column of {height(p)} taps takes too many registers"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target, *, block: int) -> list[Config]:
    return sorted(_configs(p, block), key=lambda c: seconds(p, target, c))[:64]


def _configs(p: Problem, block: int) -> Iterator[Config]:
    for config in strips(p, block):
        if registers(p, config) <= MOST_REGISTERS // 2:
            yield config


def strips(p: Problem, block: int) -> Iterator[Config]:
    """With `v` channels a thread."""
    rows = sorted({-(-p.o[-2] // -(-p.o[-2] // r)) for r in ROWS}) if p.rank > 1 else [1]
    vectors = sorted({min(block, VECTOR), block})
    return ({"xb": block, "yb": block, "v": v, "rh": rh, "tx": tx} for v in vectors for rh in rows for tx in THREADS)


def height(p: Problem) -> int:
    """Taps down a column of the window."""
    return p.k[-2] if p.rank > 1 else 1


def reach(p: Problem, rows: int) -> int:
    """Rows of x under a strip."""
    return (rows - 1) * p.s[-2] + (p.k[-2] - 1) * p.d[-2] + 1 if p.rank > 1 else 1


def read(p: Problem, c: Config) -> int:
    """Rows of x that a strip reads for a column of taps."""
    return min(reach(p, c["rh"]), c["rh"] * height(p))


def registers(p: Problem, c: Config) -> int:
    return OWN + c["v"] * (c["rh"] + read(p, c) + height(p))


def count(p: Problem, c: Config) -> int:
    down = -(-p.o[-2] // c["rh"]) if p.rank > 1 else 1
    return p.mb * -(-p.oc // c["yb"]) * (c["yb"] // c["v"]) * math.prod(p.o[:-2]) * down * p.o[-1]


def cost(p: Problem, target: GpuTarget, c: Config) -> _gpu.Cost:
    """Multiply-adds, or the L1 cache that gives each warp 128 bytes a cycle, or memory."""
    gpu, size, v, warps = target.gpu, _gpu.size(p), c["v"], c["tx"] / WARP
    columns, words = p.taps // height(p), c["v"] * _gpu.size(p) / 4
    reads = read(p, c)
    fma = WARP * p.taps * c["rh"] * v / gpu.fma
    cache = columns * (reads * words + height(p)) + c["rh"] * words
    widened = 0 if size == 4 else columns * (reads + height(p)) * v  # to float32
    issued = (p.taps * c["rh"] * v + widened + 5 * columns * reads + 60) / 4
    tile = float(size) * c["tx"] * v * (reach(p, c["rh"]) * min(p.s[-1], p.k[-1]) + c["rh"])
    found = _gpu.Block(
        c["tx"], registers(p, c), 0, warps * max(fma, cache, issued), _gpu.LATENCY * (1 + columns / 8), tile
    )
    compulsory = float(size) * p.mb * p.ic * (math.prod(p.i) + math.prod(p.o))
    return _gpu.cost(found, -(-count(p, c) // c["tx"]), compulsory, gpu)


seconds, limit = _gpu.modelled(cost)


def _down(p: Problem, c: Config) -> tuple[int, ...]:
    """Extents of y in whole strips."""
    if p.rank == 1:
        return p.o
    return (*p.o[:-2], -(-p.o[-2] // c["rh"]) * c["rh"], p.o[-1])


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, b, *o, lane] = sum over the taps of xp[n, b, o*s + k*d, lane] * w[b, *k, lane], xp the padded x."""
    from tvm import te

    lanes, xp = c["yb"], pad(x, p, c)
    taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(p.k)]

    def value(n: Any, block: Any, *rest: Any) -> Any:
        at = [i * s + u * d for i, s, u, d in zip(rest[: p.rank], p.s, taps, p.d, strict=True)]
        own = rest[p.rank] if lanes > 1 else 0
        return te.sum(_gpu.wide(xp(n, block, *at, *rest[p.rank :])) * _gpu.wide(w(block, *taps, own)), axis=taps)

    return te.compute(extents(p, c), value, name="y")


def extents(p: Problem, c: Config) -> tuple[int, ...]:
    """Of y, in whole strips."""
    return (p.mb, -(-p.oc // c["yb"]), *_down(p, c), *([c["yb"]] if c["yb"] > 1 else []))


def pad(x: Any, p: Problem, c: Config) -> Any:
    """x under all strips, 0 where there is none."""
    from tvm import te, tirx

    spans = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(_down(p, c), p.s, p.k, p.d, strict=True)]

    def padded(n: Any, block: Any, *rest: Any) -> Any:
        at = [a - before for a, before in zip(rest[: p.rank], p.p, strict=True)]
        found = x(n, block, *at, *rest[p.rank :])
        bounds = zip(at, p.p, p.i, spans, strict=True)
        inside = [t for a, before, i, span in bounds for t in _tests(a, before, i, span)]
        return tirx.if_then_else(tirx.all(*inside), found, tirx.const(0, x.dtype)) if inside else found

    return te.compute((p.mb, x.shape[1], *spans, *x.shape[2 + p.rank :]), padded, name="xp")


def _tests(at: Any, before: int, extent: int, span: int) -> list[Any]:
    """What keeps a place inside x: nothing where no window leaves it."""
    return [at >= 0] * (before > 0) + [at < extent] * (span - before > extent)


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """strips | threads | columns of the window: x and w in registers | taps of a column, pixels, lanes."""
    place_strips(sch, p, c)
    y, xp = sch.get_sblock("y"), sch.get_sblock("xp")
    own = sch.get_loops(y)[2:]
    spatial, taps = own[: len(own) - p.rank], own[len(own) - p.rank :]
    down, columns = taps[-2:-1], [*taps[:-2], taps[-1]]
    sch.reorder(*columns, *down, *spatial)
    sch.set_scope(xp, 0, "local")
    hold(sch, xp, columns[-1], vector=c["xb"] > 1)
    hold(sch, sch.cache_read(y, 1, "local"), columns[-1], vector=c["xb"] > 1)
    # The sums start inside the loops: that the first tap is the first is known wherever these are unrolled.
    for loop in [*(columns if p.taps <= UNROLLED else []), *down, *spatial]:
        sch.unroll(loop)


def place_strips(sch: Any, p: Problem, c: Config) -> None:
    """Strips of z are threads, and y and the epilogue of a strip are computed in its thread: loops of their own begin
    below the two that are bound."""
    from convc.lower.guard import GUARD

    y, z = sch.get_sblock("y"), sch.get_sblock("z")
    _gpu.inline(sch, {"t"})
    out = sch.cache_write(z, 0, "local")
    n, block, *rest = sch.get_loops(out)
    pixel, lane = rest[: p.rank], rest[p.rank :]
    outer, inner = [n, block, *pixel], []
    if p.rank > 1:
        ho, hi = sch.split(pixel[-2], [None, c["rh"]], disable_predication=True)
        outer, inner = [n, block, *pixel[:-2], ho, pixel[-1]], [hi]
        sch.annotate(out, GUARD, [1] * (2 + p.rank) + [c["v"]] * len(lane))
    if c["v"] < c["yb"]:
        part, own = sch.split(lane[0], [None, c["v"]], disable_predication=True)
        outer, lane = [*outer, part], [own]
    sch.reorder(*outer, *inner, *lane)
    group, thread = sch.split(sch.fuse(*outer), [None, c["tx"]])
    sch.bind(group, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    for loop in inner:
        sch.unroll(loop)
    for loop in lane:
        sch.vectorize(loop)
    for stage in (z, y):
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        sch.set_scope(stage, 0, "local")
    for loop in sch.get_loops(z)[2:]:
        sch.unroll(loop)


def hold(sch: Any, stage: Any, loop: Any, *, vector: bool) -> None:
    """What `stage` gives to an iteration of `loop` in registers, its last axis in accesses of 16 bytes."""
    above = len(sch.get_loops(stage))
    sch.compute_at(stage, loop, preserve_unit_loops=True)
    *loops, last = sch.get_loops(stage)[-above:]
    for each in loops:
        sch.unroll(each)
    (sch.vectorize if vector else sch.unroll)(last)
