"""1x1 convolutions and products with a constant matrix: one GEMM over flattened pixels, rows x vectors in registers.

Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (ACM TOMS 34(3), 2008); blocked
layouts make the packing of x unnecessary.
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

DEPTH = 16  # longest run of channels that one rolled iteration addresses from one base


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind == "transposed" or p.taps > 1:
        return f"the weights have {p.taps} taps" if p.taps > 1 else "the problem is transposed"
    if p.rank > 1 or not p.is_pointwise or p.s != (1,):
        return "the stride is not 1, or there is padding"
    if p.g > 1:
        return f"{p.g} groups"
    if p.dtype not in ("float32", "float64"):
        return f"{p.dtype} is not a float type"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    if p.kind == "matmul":
        return sorted(_configs(p, target, p.ic, p.oc), key=lambda c: seconds(p, target, c))[:96]
    if p.ic == 1 or p.oc == 1:
        return []
    return sorted(_configs(p, target, target.lanes, target.lanes), key=lambda c: seconds(p, target, c))[:96]


def _configs(p: Problem, target: Target, xb: int, yb: int) -> Iterator[Config]:
    lanes = _lanes(p, target)
    kb = max(d for d in _tile.divisors(math.gcd(p.ic, xb)) if d <= DEPTH)
    for r, v in dict.fromkeys(_tile.tiles(p.o[0], -(-p.oc // lanes), target, depth=kb)):
        for ku in _tile.unrolls(r, v, kb, target):
            for chunk in sorted(_chunks(p, target, r)):
                config = {"xb": xb, "yb": yb, "lanes": lanes, "kb": kb, "r": r, "v": v, "ku": ku, "rc": chunk}
                yield from ({**config, "kc": kc} for kc in _parts(p, target, config))


def _lanes(p: Problem, target: Target) -> int:
    """Blocked y: the target's. Row-major y: a narrower vector where it divides the row and the full one does not."""
    if p.kind != "matmul":
        return target.lanes
    narrower = (n for n in (target.lanes, target.lanes // 2, target.lanes // 4) if n > 1 and p.oc % n == 0)
    return next(narrower, target.lanes)


def _chunks(p: Problem, target: Target, r: int) -> set[int]:
    """Rows that stay in cache while every output channel passes over them: all, or as fill half of L2."""
    tiles = -(-p.o[0] // r)
    resident = max(1, target.l2 // 2 // (4 * p.ic) // r)
    fair = -(-tiles // target.threads) if target.threads > 1 else tiles
    return {r * min(tiles, fair), r * min(tiles, fair, resident)}


def _parts(p: Problem, target: Target, c: Config) -> list[int]:
    if c["yb"] % c["lanes"] or (target.threads > 1 and not _is_even(p, target, c)):
        return [p.ic // c["kb"]]  # y waits below the loop over oc tiles, which threads would share
    step = 4 * c["kb"] * c["v"] * c["lanes"]
    return _tile.parts(p.ic // c["kb"], step, min(c["rc"], p.o[0]) * c["v"], (c["r"], c["v"]), target)


def seconds(p: Problem, target: Target, c: Config) -> float:
    """Register tiles, the rolled loop, and what has to come from beyond L2."""
    groups = -(-p.oc // c["lanes"]) // c["v"]
    rows = p.mb * _tile.row_cycles(p.o[0], c["r"], c["v"], p.ic, target)
    rolled = 0.5 * p.mb * -(-p.o[0] // c["r"]) * groups * p.ic / c["ku"]
    passes = p.mb * -(-p.o[0] // c["rc"])
    weights = _tile.streamed_cycles(4 * p.ic * p.oc, passes, target)
    x = _tile.streamed_cycles(4 * p.ic * min(c["rc"], p.o[0]), groups, target) * passes
    exposed = _tile.exposed_cycles(weights + x, p.ic // c["kb"] // c["kc"], p.mb * p.o[0] * c["v"] * groups)
    return (max(groups * rows, weights + x) + exposed + rolled) / target.rates.clock


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, ic, 1], or a matrix [ic, oc] -> [oc tiles, ic/kb, kb, v * lanes], missing output channels 0."""
    from tvm import te, tirx

    width, kb = c["v"] * c["lanes"], c["kb"]
    tiles = -(-p.oc // c["lanes"]) // c["v"]

    def value(t: Any, co: Any, ci: Any, lane: Any) -> Any:
        o = tirx.min(t * width + lane, p.oc - 1)
        at = (co * kb + ci, o) if p.kind == "matmul" else (o, co * kb + ci, 0)
        if p.oc == tiles * width:
            return w(*at)
        return tirx.if_then_else(t * width + lane < p.oc, w(*at), tirx.const(0, w.dtype))

    return te.compute((tiles, p.ic // kb, kb, width), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, ob, row, lane] = sum over co, ci of x[n, co, row, ci] * w[tile, co, ci, lane]."""
    from tvm import te

    lanes, v, kb, xb = c["lanes"], c["v"], c["kb"], c["xb"]
    co, ci = te.reduce_axis((0, p.ic // kb), "co"), te.reduce_axis((0, kb), "ci")

    def value(n: Any, ob: Any, row: Any, lane: Any) -> Any:
        channel = co * kb + ci
        source = x(n, channel, row) if xb == 1 else x(n, channel // xb, row, channel % xb)
        return te.sum(source * w(ob // v, co, ci, ob % v * lanes + lane), axis=[co, ci])

    return te.compute((p.mb, -(-p.oc // lanes), p.o[0], lanes), value, name="y")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, row chunk | oc tile | part of the channels | row tile | channels | rows x vectors in registers."""
    y, z = sch.get_sblock("y"), sch.get_sblock("z")
    n, ob, row, lane, co, ci = sch.get_loops(y)
    tile, v = sch.split(ob, [None, c["v"]])
    chunk, ro, ri = sch.split(row, [None, c["rc"] // c["r"], c["r"]])
    _tile.split_tail(sch, ro, p.o[0] % c["r"], target)
    if target.threads == 1 and c["rc"] < p.o[0]:  # else the rows of every tile are counted: 400 -> 480 us on 784 rows
        _tile.split_tail(sch, chunk, p.o[0] % c["rc"], target)
    c0, c1 = sch.split(ci, [None, c["ku"]])
    parts = []
    if c["kc"] < p.ic // c["kb"]:
        part, co = sch.split(co, [None, c["kc"]])
        parts = [part]
    sch.reorder(n, chunk, tile, *parts, ro, co, c0, c1, ri, v, lane)
    if target.threads > 1:
        sch.parallel(sch.fuse(n, chunk) if _is_even(p, target, c) else sch.fuse(n, chunk, tile))
    inner, unrolled = [ri, v, lane], [c1]
    if not parts and 4 * p.ic * p.oc > target.l2 // 2:
        _tile.ask_ahead(sch, [ro, co, c0], p.ic * c["v"] * c["lanes"])
    if parts:
        _tile.accumulate_in_parts(sch, y, z, tile, reductions=parts, inner=inner, unrolled=unrolled)
    elif c["yb"] % c["lanes"]:
        _tile.accumulate_apart(sch, y, z, ro, reductions=[co], inner=inner, unrolled=unrolled)
    else:
        _tile.accumulate(sch, y, z, ro, reductions=[co], inner=inner, unrolled=unrolled)


def _is_even(p: Problem, target: Target, c: Config) -> bool:
    return p.mb * -(-p.o[0] // c["rc"]) % target.threads == 0


def tasks(p: Problem, target: Target, c: Config) -> int:
    chunks = p.mb * -(-p.o[0] // c["rc"])
    return chunks if _is_even(p, target, c) else chunks * -(-p.oc // c["lanes"]) // c["v"]


def memory(p: Problem, c: Config) -> int:
    if c["yb"] % c["lanes"]:
        return 4 * p.mb * p.o[0] * -(-p.oc // c["lanes"]) * c["lanes"]
    return 4 * min(c["rc"], p.o[0]) * c["v"] * c["lanes"] if c["kc"] < p.ic // c["kb"] else 0


ALGORITHM = Algorithm(
    name="pointwise",
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
