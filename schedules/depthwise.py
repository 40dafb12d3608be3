"""Depthwise convolution in blocked layouts: one channel a lane, a row of output pixels in registers, every vector of x
multiplied by the taps it meets, and no padding: taps outside x are skipped.

Source: Zhang, Lo, Lu, High Performance Depthwise and Pointwise Convolutions on Mobile Devices (AAAI 2020,
arXiv:2001.02504), whose row tiles reuse x between neighbouring pixels, in a layout with the channels in the lanes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config
from convc.problem import Problem
from convc.schedules import _depthwise_cuda, _gpu, _tile, _window
from convc.target import Target


def refuses(p: Problem, target: Target) -> str | None:
    if reason := _window.refuses(p):
        return reason
    if not p.is_depthwise:
        return f"{p.icg} input and {p.ocg} output channels a group: depthwise has one of each"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    blocks = -(-p.oc // target.lanes)
    found = _window.configs(p, target, _tiles(p, target), blocks=blocks)
    return _tile.ranked(p, target, found, seconds, tasks)[:64]


def _tiles(p: Problem, target: Target) -> Iterator[tuple[int, int]]:
    """Accumulators for a good half of the registers; x and a row of weights take the others. 20 x 1 of 32 spills at 11
    taps: 172 GFLOP/s where 17 x 1 reaches 241."""
    half = target.registers // 2
    heights = [h for h in range(1, half + 1) if p.o[-2] % h == 0] if p.rank > 1 else [1]
    return ((rw, rh) for rw in _window.widths(p.o[-1], half + 2)[:8] for rh in heights if rh == 1 or rw * rh <= half)


def seconds(p: Problem, target: Target, c: Config) -> float:
    cycles = p.mb * -(-p.oc // target.lanes) * _window.cycles(p, target, c, width=1, end=0.5)
    return math.hypot(cycles, _window.far_cycles(p, target)) / target.rates.clock


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, 1, *k] -> [oc blocks, *k, lanes], missing channels 0."""
    from tvm import te, tirx

    lanes = c["yb"]

    def value(block: Any, *rest: Any) -> Any:
        *taps, lane = rest
        channel = block * lanes + lane
        found = w(tirx.min(channel, p.oc - 1), 0, *taps)
        return found if p.oc % lanes == 0 else tirx.if_then_else(channel < p.oc, found, tirx.const(0, w.dtype))

    return te.compute((-(-p.oc // lanes), *p.k, lanes), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, b, *o, lane] = sum over the taps inside x of x[n, b, o*s + k*d - p, lane] * w[b, *k, lane]."""
    from tvm import te, tirx

    taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(p.k)]
    cut = _window.cuts(p, c)

    def value(n: Any, block: Any, *rest: Any) -> Any:
        *o, lane = rest
        at = _window.places(p, o, taps)
        product = x(n, block, *at, lane) * w(block, *taps, lane)
        inside = _window.inside(p, o, at, cut=cut)
        return te.sum(tirx.if_then_else(inside, product, tirx.const(0, x.dtype)), axis=taps)

    return te.compute((p.mb, -(-p.oc // c["yb"]), *p.o, c["yb"]), value, name="y")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, block, part of the rows | row, column tile | rows of taps | pixels x taps of a row in registers."""
    y, z = sch.get_sblock("y"), sch.get_sblock("z")
    n, block, *rest = sch.get_loops(y)
    o, lane, (*outer_taps, tap) = rest[: p.rank], rest[p.rank], rest[p.rank + 1 :]
    part, rows, wo, pixels = _window.tile_loops(sch, o, c)
    sch.reorder(n, block, part, *rows, wo, *outer_taps, *pixels, tap, lane)
    task = sch.fuse(n, block, part)
    if target.threads > 1:
        sch.parallel(task)
    if _window.unrolls(p, c):
        sch.unroll(wo)
    unrolled = [*outer_taps, tap] if c["ku"] else [tap]
    _tile.accumulate(sch, y, z, wo, reductions=[*outer_taps, *pixels], inner=[*pixels, lane], unrolled=unrolled)
    _window.skip(sch, sch.get_sblock("y_update"))


def tasks(p: Problem, target: Target, c: Config) -> int:
    return int(p.mb * -(-p.oc // target.lanes) * c["parts"])


def memory(p: Problem, c: Config) -> int:
    return 0


ALGORITHM = Algorithm(
    name="depthwise",
    source="arXiv:2001.02504",
    refuses=refuses,
    space=space,
    seconds=seconds,
    pack=pack,
    define=define,
    schedule=schedule,
    error=_tile.recursive_error,
    memory=memory,
    tasks=tasks,
)


def space_on_cuda(p: Problem, target: Target) -> Sequence[Config]:
    return _depthwise_cuda.space(p, target, block=_gpu.lanes(p, target))


ON_CUDA = Algorithm(
    name="depthwise",
    source="arXiv:2001.02504",
    refuses=_depthwise_cuda.refuses,
    space=space_on_cuda,
    seconds=_depthwise_cuda.seconds,
    pack=pack,
    define=_depthwise_cuda.define,
    schedule=_depthwise_cuda.schedule,
    error=_gpu.error,
    memory=lambda p, c: 0,
    limit=_depthwise_cuda.limit,
    kind="cuda",
)
