"""Depthwise convolution of row-major tensors: pixels of a row in the lanes, several rows of y in registers, so that a
vector of x meets every tap of its column of the window.

Source: Zhang, Lo, Lu, High Performance Depthwise and Pointwise Convolutions on Mobile Devices (AAAI 2020,
arXiv:2001.02504), with a padded copy of one plane at a time in cache; a stride takes its columns apart in that copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config
from convc.problem import Problem
from convc.schedules import _depthwise_cuda, _tile, depthwise
from convc.target import Target

MOST = 200  # multiply-adds in the code of one tile: more keep x across taps, spilled (7 x 7: half of the speed)
HALF = 0.5  # a plane narrower than this part of a vector is better blocked by channels


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind != "conv" or not p.is_depthwise:
        return f"{p.icg} input and {p.ocg} output channels a group: depthwise has one of each"
    if p.dtype not in ("float32", "float64"):
        return f"{p.dtype} is not a float type"
    if p.o[-1] < HALF * target.lanes:
        return f"rows of {p.o[-1]} fill less than half of a vector of {target.lanes}"
    if p.k[-1] * _height(p) > MOST:
        return f"a window of {p.taps} taps makes too long an unrolled body"
    return None


def _height(p: Problem) -> int:
    """Taps down a column of the window."""
    return p.k[-2] if p.rank > 1 else 1


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    return _tile.ranked(p, target, _configs(p, target), seconds, tasks)[:64]


def _configs(p: Problem, target: Target) -> Iterator[Config]:
    vectors = -(-p.o[-1] // target.lanes)
    heights = {-(-p.o[-2] // n) for n in range(1, p.o[-2] + 1)} if p.rank > 1 else {1}
    for v in (v for v in _tile.divisors(vectors) if v <= 4):
        for rh in sorted(heights):
            if (rh + rh + _height(p) - 1) * v + 1 > target.registers:  # rows of y, and of x under a column of taps
                continue
            for ku in (0, 1):
                if rh * v * _height(p) * (p.k[-1] if ku else 1) <= MOST:
                    tile = {"xb": 1, "yb": 1, "width": target.lanes, "rh": rh, "v": v, "ku": ku}
                    yield from ({**tile, "tiles": tiles} for tiles in _chunks(p, target, tile))


def _chunks(p: Problem, target: Target, c: Config) -> set[int]:
    """Row tiles whose rows of x are copied at once: all of a plane, and as many as half of L1 holds the rows of."""
    count = -(-p.o[-2] // c["rh"]) if p.rank > 1 else 1
    whole = _tile.divisors(count)
    small = [n for n in whole if 4 * math.prod(_slots(p, _task(p, {**c, "tiles": n}))) <= target.l1 // 2]
    return {count, max(small, default=1)}


def seconds(p: Problem, target: Target, c: Config) -> float:
    """The padded copy, the register tiles with their loads, and what has to come from beyond L2."""
    rh, v = c["rh"], c["v"]
    across = -(-p.o[-1] // (v * c["width"]))
    tiles = p.mb * p.oc * math.prod(p.o[:-2]) * (-(-p.o[-2] // rh) if p.rank > 1 else 1) * across
    high = _height(p)
    fma = rh * v * high / target.rates.fma
    loads = ((rh + high - 1) * v * 1.5 + high * rh * 0.5) / target.rates.load
    columns = p.taps // high
    tile = columns * (max(fma, loads, target.rates.latency) + (0 if c["ku"] else 1)) + 3 * rh * v + 10
    slots = _slots(p, _task(p, c))
    copied = math.prod(slots) * (2.5 / c["width"] if p.s[-1] == 1 else 0.6) + 4 * math.prod(slots[:-1])
    copied *= tiles / across / c["tiles"]
    moved = _tile.streamed_cycles(4 * p.mb * (p.ic * math.prod(p.i) + p.oc * math.prod(p.o)), 1, target)
    return math.hypot(tiles * tile + copied, moved) / target.rates.clock


def _padded(p: Problem, c: Config) -> tuple[int, ...]:
    """Extents of y, whole tiles."""
    tile = [1] * p.rank
    tile[-1] = c["v"] * c["width"]
    if p.rank > 1:
        tile[-2] = c["rh"]
    return tuple(-(-o // t) * t for o, t in zip(p.o, tile, strict=True))


def _task(p: Problem, c: Config) -> tuple[int, ...]:
    """Extents of the pixels of y that share a copy: row tiles, along the last axes."""
    rows = [1] * (p.rank - 2) + [c["rh"] * c["tiles"]] * (p.rank > 1)
    return (*rows, _padded(p, c)[-1])


def _slots(p: Problem, o: Sequence[int]) -> tuple[int, ...]:
    """Extents of x as copied for pixels `o` of y: rows per axis, remainders of the stride, columns of each."""
    *rows, _ = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(o, p.s, p.k, p.d, strict=True)]
    reach = (p.k[-1] - 1) * p.d[-1]
    return (*rows, min(p.s[-1], reach + 1), o[-1] + reach // p.s[-1])


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, 1, *k] -> [oc, kw, *other taps]."""
    from tvm import te

    return te.compute((p.oc, p.k[-1], *p.k[:-1]), lambda o, u, *taps: w(o, 0, *taps, u), name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, o, *row, j] = sum over the taps (*t, u) of xp[n, o, *(row*s + t*d), u*d % s, j + u*d // s]
    * w[o, u, *t]."""
    from tvm import te, tirx

    def copied(n: Any, channel: Any, *at: Any) -> Any:
        *rows, remainder, column = at
        places = [*rows, column * p.s[-1] + remainder]
        places = [place - before for place, before in zip(places, p.p, strict=True)]
        found = x(n, channel, *places)
        inside = [tirx.all(place >= 0, place < i) for place, i in zip(places, p.i, strict=True)]
        return tirx.if_then_else(tirx.all(*inside), found, tirx.const(0, x.dtype))

    xp = te.compute((p.mb, p.ic, *_slots(p, _padded(p, c))), copied, name="xp")
    taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(p.k)]

    def value(n: Any, o: Any, *at: Any) -> Any:
        *rows, column = at
        rows = [i * s + t * d for i, s, t, d in zip(rows, p.s, taps, p.d, strict=False)]
        shift = taps[-1] * p.d[-1]
        source = xp(n, o, *rows, shift % p.s[-1], column + shift // p.s[-1])
        return te.sum(source * w(o, taps[-1], *taps[:-1]), axis=[taps[-1], *taps[:-1]])

    return te.compute((p.mb, p.oc, *_padded(p, c)), value, name="y")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, channel | padded plane | row tile, column tile | columns of taps | taps of a column x rows x vectors."""
    y, z, xp = (sch.get_sblock(name) for name in ("y", "z", "xp"))
    n, channel, *rest = sch.get_loops(y)
    o, (u, *taps) = rest[: p.rank], rest[p.rank :]
    wo, v, lane = sch.split(o[-1], [None, c["v"], c["width"]])
    chunk, ho, hi = ([], [], [])
    if p.rank > 1:
        chunk, ho, hi = ([h] for h in sch.split(o[-2], [None, c["tiles"], c["rh"]]))
    sch.reorder(n, channel, *o[:-2], *chunk, *ho, wo, *taps[:-1], u, *taps[-1:], *hi, v, lane)
    task = sch.fuse(n, channel, *o[:-2], *chunk)
    if target.threads > 1:
        sch.parallel(task)
    sch.compute_at(xp, task, preserve_unit_loops=True)
    *rows, _, column = sch.get_loops(xp)[1:]
    for loop in (*rows[-1:], column):
        sch.annotate(loop, "pragma_loop_partition_hint", 1)
    if p.o[-1] % (c["v"] * c["width"]):
        sch.annotate(wo, "pragma_loop_partition_hint", 1)
    outer = [*taps[:-1], u] if p.rank > 1 else [u]
    unrolled = [*([u] if c["ku"] else []), *(taps[-1:] if p.rank > 1 else [])]
    _tile.accumulate(sch, y, z, wo, reductions=outer, inner=[*hi, v, lane], unrolled=unrolled)


def tasks(p: Problem, target: Target, c: Config) -> int:
    chunks = -(-p.o[-2] // (c["rh"] * c["tiles"])) if p.rank > 1 else 1
    return p.mb * p.oc * math.prod(p.o[:-2]) * chunks


def memory(p: Problem, c: Config) -> int:
    """The padded copy of the rows that one task reads."""
    return 4 * math.prod(_slots(p, _task(p, c)))


ALGORITHM = Algorithm(
    name="depthwise_nchw",
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
    return _depthwise_cuda.space(p, target, block=1)


ON_CUDA = replace(depthwise.ON_CUDA, name="depthwise_nchw", space=space_on_cuda)
