"""Grouped convolution with narrow groups in blocked layouts: vectors of x are multiplied as they lie, and what the
lanes of a group have summed is exchanged once, when the sums are complete.

Lane l of x holds channel c = l % icg of a group. Accumulator r of its pixel takes the products with output channel
c ^ r, so lane l of y is the sum over r of lane l ^ r of accumulator r: icg - 1 shuffles a pixel instead of some for
every tap, and not one multiply-add wasted on the zeros of a block-diagonal matrix. Output channels may be a multiple of
input channels (depthwise with a multiplier): every multiple then has icg accumulators of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config
from convc.problem import Problem
from convc.schedules import _gpu, _grouped_cuda, _tile, _window
from convc.target import Target


def refuses(p: Problem, target: Target) -> str | None:
    if reason := _window.refuses(p, width=p.ocg):
        return reason
    if target.lanes % p.icg or p.ocg % p.icg:
        return f"{p.icg} input channels a group do not divide {target.lanes} lanes and {p.ocg} output channels"
    if p.ocg % target.lanes == 0:
        return f"{p.ocg} output channels a group fill vectors of {target.lanes}: none spans two groups"
    if p.ocg > target.registers // 2:
        return f"{p.ocg} accumulators a pixel fill more than half of {target.registers} registers"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    blocks = -(-p.ic // target.lanes)
    found = _window.configs(p, target, _tiles(p, target), blocks=blocks, width=p.ocg)
    return _tile.ranked(p, target, found, seconds, tasks)[:64]


def _tiles(p: Problem, target: Target) -> list[tuple[int, int]]:
    """Pixels of a tile: their accumulators take two thirds of the registers; x, weights and shuffles need the rest."""
    room = min(max(1, target.registers * 11 // 16 // p.ocg), target.registers // 2 + 2)
    return [(rw, 1) for rw in _window.widths(p.o[-1], room)]


def seconds(p: Problem, target: Target, c: Config) -> float:
    cycles = p.mb * -(-p.ic // target.lanes) * _window.cycles(p, target, c, width=p.ocg, end=_exchange(p, target))
    return math.hypot(cycles, _window.far_cycles(p, target)) / target.rates.clock


def _exchange(p: Problem, target: Target) -> float:
    """Cycles of one pixel's exchange and epilogue: shuffles of one or two registers, additions, and the epilogue; lanes
    from more than two registers are inserted almost one by one."""
    ratio = p.ocg // p.icg
    shuffles = p.icg * ratio - 1 if ratio <= 2 else p.icg * target.lanes * 0.75
    return ratio * (0.7 * shuffles + 0.5 * p.icg + 0.2)


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> [x blocks, *k, ocg, lanes]: accumulator r and lane l hold output channel r ^ (l % icg)."""
    from tvm import te, tirx

    lanes = c["xb"]

    def value(block: Any, *rest: Any) -> Any:
        *taps, r, lane = rest
        channel = block * lanes + lane
        o = channel // p.icg * p.ocg + (r ^ (lane % p.icg))
        found = w(tirx.min(o, p.oc - 1), lane % p.icg, *taps)
        return found if p.ic % lanes == 0 else tirx.if_then_else(channel < p.ic, found, tirx.const(0, w.dtype))

    return te.compute((-(-p.ic // lanes), *p.k, p.ocg, lanes), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """a[n, b, *o, r, lane] = sum over the taps inside x of x[n, b, o*s + k*d - p, lane] * w[b, *k, r, lane], and
    y[n, group, channel q, *o] = sum over input channels u of a[n, b, *o, q ^ u, the lane of u]."""
    from tvm import te, tirx

    lanes = c["xb"]
    taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(p.k)]
    cut = _window.cuts(p, c)

    def over_taps(n: Any, block: Any, *rest: Any) -> Any:
        *o, r, lane = rest
        at = _window.places(p, o, taps)
        product = x(n, block, *at, lane) * w(block, *taps, r, lane)
        inside = _window.inside(p, o, at, cut=cut)
        return te.sum(tirx.if_then_else(inside, product, tirx.const(0, x.dtype)), axis=taps)

    sums = te.compute((p.mb, -(-p.ic // lanes), *p.o, p.ocg, lanes), over_taps, name="a")
    ratio = p.ocg // p.icg

    def value(n: Any, block: Any, *rest: Any) -> Any:
        *o, lane = rest
        channel = block % ratio * lanes + lane
        group, q = channel // p.ocg, channel % p.ocg
        wide, u = q // p.icg * p.icg, q % p.icg
        return _sum([sums(n, block // ratio, *o, wide + r, group * p.icg + (u ^ r)) for r in range(p.icg)])

    return te.compute((p.mb, -(-p.oc // lanes), *p.o, lanes), value, name="y")


def _sum(terms: Sequence[Any]) -> Any:
    """Pairwise, so that the additions do not wait for each other."""
    half = len(terms) // 2
    return terms[0] if not half else _sum(terms[:half]) + _sum(terms[half:])


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, block, part of the rows | row, column tile | taps | pixels x accumulators in registers; exchange."""
    a, y, z = (sch.get_sblock(name) for name in "ayz")
    n, block, *o, lane = sch.get_loops(y)
    block, narrow = sch.split(block, [None, p.ocg // p.icg])
    part, rows, wo, pixels = _window.tile_loops(sch, o, c)
    sch.reorder(n, block, part, *rows, wo, *pixels, narrow, lane)
    _tile.in_registers(sch, [*pixels, narrow, lane])
    task = sch.fuse(n, block, part)
    if target.threads > 1:
        sch.parallel(task)
    if _window.unrolls(p, c):
        sch.unroll(wo)
    _tile.place_epilogue(sch, z, wo, target.lanes)
    sch.compute_at(a, wo, preserve_unit_loops=True)
    _sum_taps(sch, a, wo, p, c)


def _sum_taps(sch: Any, a: Any, at: Any, p: Problem, c: Config) -> None:
    _, _, *rest = _tile.own_loops(sch, a, at)
    own, (*outer_taps, tap) = rest[: p.rank + 2], rest[p.rank + 2 :]
    sch.reorder(*outer_taps, tap, *own)
    _tile.in_registers(sch, [*(outer_taps if c["ku"] else []), tap, *own])
    init = sch.decompose_reduction(a, [*outer_taps, tap][0])
    _tile.in_registers(sch, _tile.own_loops(sch, init, at))
    _window.skip(sch, sch.get_sblock("a_update"))


def tasks(p: Problem, target: Target, c: Config) -> int:
    return int(p.mb * -(-p.ic // target.lanes) * c["parts"])


def error(p: Problem, c: Config) -> float:
    """Recursive summation over the taps, then pairwise over the channels: at most as many roundings as products."""
    return float(p.reduction)


def memory(p: Problem, c: Config) -> int:
    return 0


ALGORITHM = Algorithm(
    name="grouped",
    source="this repository",
    refuses=refuses,
    space=space,
    seconds=seconds,
    pack=pack,
    define=define,
    schedule=schedule,
    error=error,
    memory=memory,
    tasks=tasks,
)


ON_CUDA = Algorithm(
    name="grouped",
    source="this repository",
    refuses=_grouped_cuda.refuses,
    space=_grouped_cuda.space,
    seconds=_grouped_cuda.seconds,
    pack=_grouped_cuda.pack,
    define=_grouped_cuda.define,
    schedule=_grouped_cuda.schedule,
    error=_gpu.error,
    memory=lambda p, c: 0,
    limit=_grouped_cuda.limit,
    kind="cuda",
)
