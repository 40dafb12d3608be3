"""Grouped convolution for any number of channels a group: a vector of output channels that spans several groups meets
the input channels of all of them, with zeros in the lanes of the others.

Source: the block-diagonal matrix product of Xie et al., Aggregated Residual Transformations (CVPR 2017,
arXiv:1611.05431, figure 3), cut to the blocks of one vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config
from convc.problem import Problem
from convc.schedules import _tile, _window
from convc.target import Target

WIDEST = 10  # pixels of a tile: more gain less than a tenth, and LLVM then holds more broadcasts than registers


def refuses(p: Problem, target: Target) -> str | None:
    if reason := _window.refuses(p, width=4):  # two to eight channels are unrolled
        return reason
    if p.ocg % target.lanes == 0:
        return f"{p.ocg} output channels a group fill vectors of {target.lanes}: none spans two groups"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    found: list[Config] = []
    for xb in (target.lanes, 1):
        found += _tile.ranked(p, target, _configs(p, target, xb), seconds, tasks)[:48]
    return _tile.ranked(p, target, found, seconds, tasks)


def _configs(p: Problem, target: Target, xb: int) -> Iterator[Config]:
    tiles = [(rw, 1) for rw in _window.widths(p.o[-1], WIDEST)]
    kb = math.gcd(p.icg, xb) if xb > 1 else p.icg
    for c in _window.configs(p, target, tiles, blocks=-(-p.oc // target.lanes)):
        for cu in _unrolls(p, kb, c["rw"]) if not c["ku"] else ():
            yield {**c, "xb": xb, "kb": kb, "cu": cu}


def _unrolls(p: Problem, kb: int, rw: int) -> list[int]:
    """Channels in an unrolled body. With one alone LLVM vectorises over channels instead, four times slower; with all
    the taps become one body, in which LLVM shares broadcasts between taps until they spill."""
    most = 8 if p.k[-1] == 1 else min(8, max(2, kb // 2))
    found = [d for d in _tile.divisors(kb) if 2 <= d <= most] or [kb if kb <= 8 else 1]
    return [d for d in found if d * rw * p.k[-1] <= _window.MOST // 3] or found[:1]


def seconds(p: Problem, target: Target, c: Config) -> float:
    """Every group that a block of output channels touches costs its multiply-adds, each with a broadcast."""
    rw, blocks = c["rw"], range(-(-p.oc // target.lanes))
    across = -(-p.o[-1] // rw)
    rows = math.prod(_window.pairs(p, axis) for axis in range(p.rank - 1)) * across
    multiplied = _window.pairs(p, p.rank - 1) / across
    fma = multiplied * max(1 / target.rates.fma, target.rates.latency / rw)
    step = max(fma, (multiplied + p.k[-1]) / target.rates.load) + 2 * p.k[-1] / c["cu"]
    channels = p.icg * sum(_groups(p, block, target.lanes) for block in blocks)
    tiles = math.prod(p.o[:-1]) * across * len(blocks)
    far = 1.2 if c["xb"] == 1 else 1  # row-major x: every channel of a pixel on its own cache line
    cycles = p.mb * (channels * rows * step * far + tiles * (2 * rw + 10))
    return math.hypot(cycles, _window.far_cycles(p, target)) / target.rates.clock


def _groups(p: Problem, block: int, lanes: int) -> int:
    """Groups that a block of `lanes` output channels touches."""
    return (min((block + 1) * lanes, p.oc) - 1) // p.ocg - block * lanes // p.ocg + 1


def _most_groups(p: Problem, lanes: int) -> int:
    return max(_groups(p, block, lanes) for block in range(-(-p.oc // lanes)))


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> [blocks, groups, icg/kb, *k, kb, lanes], 0 where the lane is of another group."""
    from tvm import te, tirx

    lanes, kb = c["yb"], c["kb"]

    def value(block: Any, s: Any, co: Any, *rest: Any) -> Any:
        *taps, ci, lane = rest
        o = block * lanes + lane
        own = tirx.all(o < p.oc, o // p.ocg == block * lanes // p.ocg + s)
        return tirx.if_then_else(own, w(tirx.min(o, p.oc - 1), co * kb + ci, *taps), tirx.const(0, w.dtype))

    shape = (-(-p.oc // lanes), _most_groups(p, lanes), p.icg // kb, *p.k, kb, lanes)
    return te.compute(shape, value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, b, *o, lane] = sum over the groups s of block b, channels and taps inside x of
    x[n, channel of s, o*s + k*d - p] * w[b, s, channel, *k, lane]."""
    from tvm import te, tirx

    lanes, kb, xb = c["yb"], c["kb"], c["xb"]
    groups = _most_groups(p, lanes)
    axes = [te.reduce_axis((0, n), name) for n, name in ((groups, "s"), (p.icg // kb, "co"), (kb, "ci"))]
    s, co, ci = axes
    taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(p.k)]
    cut = _window.cuts(p, c)

    def value(n: Any, block: Any, *rest: Any) -> Any:
        *o, lane = rest
        at = _window.places(p, o, taps)
        group = block * lanes // p.ocg + s
        channel = group * p.icg + co * kb + ci
        where = (n, channel, *at) if xb == 1 else (n, channel // xb, *at, channel % xb)
        touched = tirx.all(group * p.ocg < (block + 1) * lanes, group < p.g)
        inside = tirx.all(touched, _window.inside(p, o, at, cut=cut))
        product = x(*where) * w(block, s, co, *taps, ci, lane)
        return te.sum(tirx.if_then_else(inside, product, tirx.const(0, x.dtype)), axis=[s, co, *taps, ci])

    return te.compute((p.mb, -(-p.oc // lanes), *p.o, lanes), value, name="y")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, block, part of the rows | row, column tile | groups, channels, taps | pixels in registers."""
    y, z = sch.get_sblock("y"), sch.get_sblock("z")
    n, block, *rest = sch.get_loops(y)
    o, (lane, s, co, *outer_taps, tap, ci) = rest[: p.rank], rest[p.rank :]
    part, rows, wo, pixels = _window.tile_loops(sch, o, c)
    c0, c1 = sch.split(ci, [None, c["cu"]])
    sch.reorder(n, block, part, *rows, wo, s, co, *outer_taps, tap, c0, c1, *pixels, lane)
    task = sch.fuse(n, block, part)
    if target.threads > 1:
        sch.parallel(task)
    if _window.unrolls(p, c):
        sch.unroll(wo)
    _tile.accumulate(sch, y, z, wo, reductions=[s], inner=[*pixels, lane], unrolled=[tap, c1])
    _window.skip(sch, sch.get_sblock("y_update"))


def tasks(p: Problem, target: Target, c: Config) -> int:
    return int(p.mb * -(-p.oc // target.lanes) * c["parts"])


def error(p: Problem, c: Config) -> float:
    """Recursive summation of n products: n roundings a term at worst (Higham 2002, section 3.1); zeros add none."""
    return float(p.reduction)


def memory(p: Problem, c: Config) -> int:
    return 0


ALGORITHM = Algorithm(
    name="diagonal",
    source="arXiv:1611.05431",
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
