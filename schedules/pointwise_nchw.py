"""1x1 convolutions of row-major tensors: a GEMM with pixels in the lanes and weights broadcast.

Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (ACM TOMS 34(3), 2008): panels of
pixels are packed per chunk, so that neither x nor y changes its layout in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config
from convc.problem import Problem
from convc.schedules import _tile
from convc.target import Target

VECTORS = (1, 2, 4)  # of a panel: 7 of them, at 3 channels, take ten times as long
FILLED = 6 / 7  # part of the lanes that pixels must fill: below it blocks of channels are faster


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind != "conv" or p.taps > 1:
        return f"the weights have {p.taps} taps" if p.taps > 1 else f"the problem is {p.kind}"
    if p.rank > 1 or not p.is_pointwise or p.s != (1,):
        return "the stride is not 1, or there is padding"
    if p.g > 1:
        return f"{p.g} groups"
    if p.dtype not in ("float32", "float64"):
        return f"{p.dtype} is not a float type"
    if p.o[0] < FILLED * -(-p.o[0] // target.lanes) * target.lanes:
        return f"{p.o[0]} pixels leave over a seventh of their vectors of {target.lanes} empty"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    return _tile.ranked(p, target, _configs(p, target), seconds, tasks)[:96]


def _configs(p: Problem, target: Target) -> Iterator[Config]:
    """An eighth of the registers is left to the constants of a long epilogue, which LLVM keeps there throughout: under
    a gelu 14 x 2 of 32 reach 25 GFLOP/s, 12 x 2 reach 73."""
    vectors = -(-p.o[0] // target.lanes)
    for r, v in dict.fromkeys(_tile.tiles(p.oc, vectors, target)):
        if v not in VECTORS or r * v + v + 1 > target.registers * 7 // 8:
            continue
        for ku in _tile.unrolls(r, v, p.ic, target):
            for panels in sorted(_chunks(p, target, v)):
                yield {"xb": 1, "yb": 1, "width": target.lanes, "r": r, "v": v, "ku": ku, "panels": panels}


def _chunks(p: Problem, target: Target, v: int) -> set[int]:
    """Panels packed at once, which all output channels pass over: as many as fill half of L2, or a quarter; the same
    with even shares for threads."""
    panels = -(-p.o[0] // target.lanes) // v
    whole = _tile.divisors(panels)
    fair = [d for d in whole if p.mb * panels // d % target.threads == 0] if target.threads > 1 else []
    room = [target.l2 // part // (4 * p.ic * v * target.lanes) for part in (2, 4)]
    return {max((d for d in some if d <= most), default=some[0]) for some in (whole, fair) if some for most in room}


def seconds(p: Problem, target: Target, c: Config) -> float:
    """Register tiles, the rolled loop, the packing of x, and the weights that every chunk streams again."""
    panels = p.mb * -(-p.o[0] // (c["v"] * c["width"]))
    chunks, shares = _chunk_count(p, c), _shares(p, target, c)
    tiles = panels * _tile.row_cycles(p.oc, c["r"], c["v"], p.ic, target)
    rolled = 0.5 * panels * -(-p.oc // c["r"]) * p.ic / c["ku"]
    x, y = (4 * p.mb * n * p.o[0] for n in (p.ic, p.oc))
    packed = 2.0 * shares * panels * p.ic * c["v"] + _tile.streamed_cycles(x, 1, target) * (x > target.l2 // 2)
    streamed = _tile.streamed_cycles(4 * p.ic * p.oc, chunks, target) + 0.5 * _tile.streamed_cycles(y, 1, target)
    return (math.hypot(tiles, streamed) + rolled + packed) / target.rates.clock


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, ic, 1] -> [oc tiles, ic, r], missing output channels 0."""
    from tvm import te, tirx

    r = c["r"]

    def value(t: Any, k: Any, row: Any) -> Any:
        o = t * r + row
        found = w(tirx.min(o, p.oc - 1), k, 0)
        return found if p.oc % r == 0 else tirx.if_then_else(o < p.oc, found, tirx.const(0, w.dtype))

    return te.compute((-(-p.oc // r), p.ic, r), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, o, pixel] = sum over k of panel[n, pixel // lanes, k, pixel % lanes] * w[o // r, k, o % r]."""
    from tvm import te, tirx

    r, wide, (count,) = c["r"], c["v"] * c["width"], p.o

    def copied(n: Any, panel: Any, k: Any, lane: Any) -> Any:
        pixel = panel * wide + lane
        found = x(n, k, pixel)
        return found if count % wide == 0 else tirx.if_then_else(pixel < count, found, tirx.const(0, x.dtype))

    panels = te.compute((p.mb, -(-count // wide), p.ic, wide), copied, name="panels")
    k = te.reduce_axis((0, p.ic), "k")

    def value(n: Any, o: Any, pixel: Any) -> Any:
        return te.sum(panels(n, pixel // wide, k, pixel % wide) * w(o // r, k, o % r), axis=[k])

    return te.compute((p.mb, -(-p.oc // r) * r, -(-count // wide) * wide), value, name="y")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, chunk | packed panels | output channel tile, panel | channels | output channels x vectors in registers."""
    y, z, packed = (sch.get_sblock(name) for name in ("y", "z", "panels"))
    n, o, pixel, k = sch.get_loops(y)
    tile, ri = sch.split(o, [None, c["r"]])
    share, tile = sch.split(tile, [_shares(p, target, c), None])
    chunk, panel, v, lane = sch.split(pixel, [None, c["panels"], c["v"], c["width"]])
    k0, k1 = sch.split(k, [None, c["ku"]])
    sch.reorder(n, chunk, share, tile, panel, k0, k1, ri, v, lane)
    for loop, tail in ((tile, p.oc % c["r"]), (panel, p.o[0] % (c["v"] * c["width"]))):
        if tail:
            sch.annotate(loop, "pragma_loop_partition_hint", 1)
    task = sch.fuse(n, chunk, share)
    if target.threads > 1:
        sch.parallel(task)
    sch.compute_at(packed, task, preserve_unit_loops=True)
    *_, column, channel, element = sch.get_loops(packed)
    sch.reorder(channel, column, element)
    sch.annotate(column, "pragma_loop_partition_hint", 1)
    sch.vectorize(element)
    _tile.accumulate(sch, y, z, panel, reductions=[k0], inner=[ri, v, lane], unrolled=[k1])


def _shares(p: Problem, target: Target, c: Config) -> int:
    return _tile.shares(_chunk_count(p, c), -(-p.oc // c["r"]), target)


def _chunk_count(p: Problem, c: Config) -> int:
    return p.mb * -(-p.o[0] // (c["v"] * c["width"])) // c["panels"]


def tasks(p: Problem, target: Target, c: Config) -> int:
    return _chunk_count(p, c) * _shares(p, target, c)


def memory(p: Problem, c: Config) -> int:
    """The panels of one chunk."""
    return 4 * p.ic * c["panels"] * c["v"] * c["width"]


ALGORITHM = Algorithm(
    name="pointwise_nchw",
    source="doi:10.1145/1356052.1356053",
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
