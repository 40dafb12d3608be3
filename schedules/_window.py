"""Windows where x lies: taps outside x are skipped instead of multiplied by padding, so that nothing is copied and a
small plane costs fewer multiply-adds. Shared by the algorithms that multiply vectors of x by vectors of weights.

Their configs hold the tile, `rw` pixels by `rh` rows of y; whether rows of taps are unrolled (`ku`); whether the rows
of y whose windows are inside x get a loop of their own, free of conditions (`hp`); and in how many parts threads share
an image (`parts`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from convc.algorithm import Config, unevenness
from convc.problem import Problem
from convc.target import Target

MOST = 1300  # multiply-adds in the code of a kernel: more of them leave the micro-op cache
IN_FLIGHT = 200  # multiply-adds that a core keeps in flight: those of the next tiles hide the latency of this one's
LONGEST = 128  # taps x accumulators that a row of taps may have, as all of them are unrolled
UNROLLED = 3  # column tiles unrolled so that their conditions fold; with more of them the middle ones are split off


def refuses(p: Problem, *, width: int = 1) -> str | None:
    """What the algorithms with these windows have in common to refuse."""
    if p.kind != "conv":
        return f"the problem is {p.kind}"
    if p.dtype not in ("float32", "float64"):
        return f"{p.dtype} is not a float type"
    if p.g == 1:
        return "one group"
    if p.k[-1] * width > LONGEST:
        return f"{p.k[-1]} taps a row and {width} accumulators a pixel make too long an unrolled body"
    return None


@lru_cache(maxsize=4096)
def pairs(p: Problem, axis: int) -> int:
    """(output, tap) pairs along `axis` that read inside x."""
    i, o, k, s, before, d = (v[axis] for v in (p.i, p.o, p.k, p.s, p.p, p.d))
    return sum(_reached(o, s, before - u * d, i) for u in range(k))


def _reached(o: int, s: int, before: int, i: int) -> int:
    """Outputs j of `o` with 0 <= j * s - before < i."""
    first = max(0, -(-before // s))
    last = min(o - 1, (i - 1 + before) // s)
    return max(0, last - first + 1)


def interior(p: Problem, axis: int, tile: int) -> tuple[int, int]:
    """Tiles [first, last) of `tile` outputs along `axis` that are whole and whose windows lie inside x."""
    s, before, span = p.s[axis], p.p[axis], (p.k[axis] - 1) * p.d[axis]
    whole = min(p.o[axis], max(0, (p.i[axis] - 1 - span + before) // s + 1))
    return max(0, -(-before // (s * tile))), whole // tile


def widths(extent: int, room: int) -> list[int]:
    """Widths up to `room`, widest first, that cut `extent` in tiles as even as can be."""
    return sorted({-(-extent // -(-extent // width)) for width in range(1, room + 1)}, reverse=True)


def unrolls(p: Problem, c: Config) -> bool:
    """Whether the loop over column tiles must be unrolled for the conditions of its few tiles to fold."""
    count = -(-p.o[-1] // c["rw"])
    return count <= UNROLLED and interior(p, p.rank - 1, c["rw"]) != (0, count) and (p.rank > 1 or c["parts"] == 1)


def configs(
    p: Problem, target: Target, tiles: Iterable[tuple[int, int]], *, blocks: int, width: int = 1
) -> Iterator[Config]:
    """The configs of `tiles`, (rw, rh), for which the code of a tile, with its variants at the borders, stays small."""
    for rw, rh in tiles:
        columns = min(UNROLLED, -(-p.o[-1] // rw))
        count = _parts(p, rw, rh, blocks=blocks, threads=target.threads)
        border = p.rank > 1 and count == 1 and interior(p, p.rank - 2, rh) != (0, p.o[-2] // rh)
        for ku in (0, 1) if math.prod(p.k[:-1]) > 1 else (0,):
            for hp in (0, 1) if border else (0,):
                taps = p.taps if ku else p.k[-1]
                if rw * rh * width * taps * columns * (3 if hp else 1) <= MOST or not (ku or hp):
                    lanes = target.lanes
                    yield {"xb": lanes, "yb": lanes, "rw": rw, "rh": rh, "ku": ku, "hp": hp, "parts": count}


def _parts(p: Problem, rw: int, rh: int, *, blocks: int, threads: int) -> int:
    """In how many equal parts to cut an image so that batch x blocks x parts busies `threads` most evenly."""
    tiles = p.o[-2] // rh if p.rank > 1 else p.o[-1] // rw if p.o[-1] % rw == 0 else 1
    divisors = (n for n in range(1, min(tiles, 64 * threads) + 1) if tiles % n == 0)
    return min(divisors, key=lambda n: (round(unevenness(p.mb * blocks * n, threads), 1), n))


def cycles(p: Problem, target: Target, c: Config, *, width: int, end: float) -> float:
    """Cycles for one block of channels: multiply-adds inside x, loads and conditions of every row of taps, tile ends.

    Every vector of x meets `width` vectors of weights a tap; a pixel costs `end` when its sums are complete.
    """
    rates = target.rates
    rw, rh = c["rw"], c["rh"]
    across = -(-p.o[-1] // rw)
    tiles = math.prod(p.o[:-1]) / rh * across
    taps = [pairs(p, axis) for axis in range(p.rank)]
    rows = math.prod(taps[:-1]) / rh * across
    chains = max(rw * rh * width, IN_FLIGHT / p.taps)
    fma = taps[-1] / across * rh * width * max(1 / rates.fma, rates.latency / chains)
    columns = min((rw - 1) * p.s[-1] + (p.k[-1] - 1) * p.d[-1] + 1, rw * p.k[-1])
    loads = (columns * _rows_of_x(p, c) + p.k[-1] * width) / rates.load
    return rows * max(fma, loads) + tiles * (_entries(p, c) + end * rw * rh + 1)


def _entries(p: Problem, c: Config) -> float:
    """Cycles to enter the rows of taps of one tile: the loop over them, and a condition for each row of y."""
    if p.rank == 1:
        return 0.0
    first, last = interior(p, p.rank - 2, c["rh"]) if c["hp"] else (0, 0)
    border = 1 - max(0, last - first) * c["rh"] / p.o[-2]
    return math.prod(p.k[:-1]) * (0.6 * c["rh"] * border + (0 if c["ku"] else 1))


def _rows_of_x(p: Problem, c: Config) -> float:
    """Rows of x loaded for one row of taps of a tile; unrolled, neighbouring rows of y share them."""
    if not c["ku"] or c["rh"] == 1:
        return c["rh"]
    return min(c["rh"], ((c["rh"] - 1) * p.s[-2] + (p.k[-2] - 1) * p.d[-2] + 1) / p.k[-2])


def far_cycles(p: Problem, target: Target) -> float:
    """Cycles to move x and y where L2 does not hold them: 13 bytes each, as a copy from a server's last level takes."""
    moved = 4 * p.mb * (p.ic * math.prod(p.i) + p.oc * math.prod(p.o))
    return moved / 13 if moved > 2 * target.l2 else 0.0


def places(p: Problem, o: Sequence[Any], taps: Sequence[Any]) -> list[Any]:
    """The place in x of output `o` and a tap, which may lie outside."""
    return [i * s + u * d - before for i, s, u, d, before in zip(o, p.s, taps, p.d, p.p, strict=True)]


def inside(p: Problem, o: Sequence[Any], at: Sequence[Any], *, cut: Mapping[int, int]) -> Any:
    """The condition that `at`, the place in x of output `o` and a tap, is inside.

    `cut` gives the tile of the axes whose loop over tiles is to be cut in first, interior and last tiles: the hint
    names the tile, not the tap, so that no inner loop is cut as well.
    """
    from tvm import tirx

    found = []
    for axis, (place, extent) in enumerate(zip(at, p.i, strict=True)):
        condition = tirx.all(place >= 0, place < extent)
        tile = cut.get(axis, 0)
        first, last = interior(p, axis, tile) if tile else (0, 0)
        count = -(-p.o[axis] // tile) if tile else 0
        if first < last and (first, last) != (0, count):
            hints = [tirx.likely(o[axis] // tile >= first)] if first else []
            hints += [tirx.likely(o[axis] // tile < last)] if last < count else []
            condition = tirx.any(tirx.all(*hints), condition)
        found.append(condition)
    return tirx.all(*found)


def cuts(p: Problem, c: Config) -> dict[int, int]:
    """`cut` of a config: its columns where their tiles are too many to unroll, its rows where it says so."""
    wide = -(-p.o[-1] // c["rw"]) > UNROLLED and (p.rank > 1 or c["parts"] == 1)
    found = {p.rank - 1: c["rw"]} if wide else {}
    return {**found, p.rank - 2: c["rh"]} if c["hp"] else found


def skip(sch: Any, sblock: Any) -> None:
    """Skip the taps outside x.

    rewrite:
        y = y + if_then_else(inside, x * w, 0)   ->   if inside: y = y + x * w
    """
    from tvm import s_tir, tirx

    ref = sch.get_sref(sblock)
    old = ref.stmt
    store = old.body
    term = store.value.b
    if getattr(getattr(term, "op", None), "name", "") != "tirx.if_then_else":
        return  # every window is inside
    condition, product, _ = term.args
    body = tirx.IfThenElse(condition, tirx.BufferStore(store.buffer, store.value.a + product, store.indices), None)
    new = s_tir.SBlock(
        old.iter_vars, old.reads, old.writes, old.name_hint, body, old.init, old.alloc_buffers, old.match_buffers,
        old.annotations,
    )
    sch.state.replace(ref, new, {old: new})


def tile_loops(sch: Any, o: Sequence[Any], c: Config) -> tuple[Any, list[Any], Any, list[Any]]:
    """Splits the spatial loops `o`: (part, rows, column tiles, pixels of a tile). The first of `rows` is outermost."""
    if len(o) == 1:
        part, wo, wi = sch.split(o[0], [c["parts"], None, c["rw"]])
        return part, [], wo, [wi]
    part, ho, hi = sch.split(o[-2], [c["parts"], None, c["rh"]])
    wo, wi = sch.split(o[-1], [None, c["rw"]])
    return part, [*o[:-2], ho], wo, [hi, wi]
