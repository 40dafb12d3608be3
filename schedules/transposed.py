"""Transposed convolution by polyphase: every phase of the output is a dense convolution of x with the taps that reach
it, gathered in registers. Stride 1 has one phase: a direct convolution with flipped taps.

Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (arXiv:1603.07285), section 4; the
polyphase identity is Bellanger et al. (IEEE Trans. ASSP 24(2), 1976).
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

SIZES = {"float32": 4, "float64": 8}
DEPTH = 16  # longest run of channels that one rolled iteration addresses from one base


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind != "transposed":
        return f"the problem is {p.kind}"
    if p.dtype not in SIZES:
        return f"{p.dtype} is not a float type"
    if any(s > 1 and d > 1 for s, d in zip(p.s, p.d, strict=True)):
        return "the taps of a phase are not evenly spaced where both stride and dilation exceed 1"
    if p.g > 1 and p.ocg % target.lanes:
        return f"{p.ocg} output channels a group do not fill vectors of {target.lanes}"
    if p.oc < target.lanes // 2:
        return f"{p.oc} output channels fill less than half of a vector of {target.lanes}"
    return None


def _depth(p: Problem, axis: int) -> int:
    """Taps of the phases that have most."""
    return -(-p.k[axis] // p.s[axis])


def _quotients(p: Problem) -> tuple[int, ...]:
    """Outputs of one phase, per axis."""
    return tuple(-(-o // s) for o, s in zip(p.o, p.s, strict=True))


def _reach(p: Problem, axis: int) -> tuple[int, int]:
    """First and last element of x that the phases ask for, inside x or not."""
    s, before = p.s[axis], p.p[axis]
    return before // s - (_depth(p, axis) - 1) * p.d[axis], (_quotients(p)[axis] * s - 1 + before) // s


def _tap(p: Problem, axis: int, phase: Any, j: Any) -> Any:
    """The tap of a phase for the j-th element of x in its window: windows run forward, taps back. From k on: none."""
    return (phase + p.p[axis]) % p.s[axis] + (_depth(p, axis) - 1 - j) * p.s[axis]


def _needs_padding(p: Problem) -> bool:
    reach = [_reach(p, axis) for axis in range(p.rank)]
    return any(first < 0 or last >= i for (first, last), i in zip(reach, p.i, strict=True))


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    blocks = [target.lanes, 1] if p.ic > 1 else [1]
    found: list[Config] = []
    for xb in blocks:
        found += sorted(_configs(p, target, xb), key=lambda c: seconds(p, target, c))[:48]
    return sorted(found, key=lambda c: seconds(p, target, c))


def _configs(p: Problem, target: Target, xb: int) -> Iterator[Config]:
    kb = max(d for d in _tile.divisors(math.gcd(p.icg, xb)) if d <= DEPTH)
    for rw, v in dict.fromkeys(_tile.tiles(_quotients(p)[-1], -(-p.ocg // target.lanes), target, depth=1)):
        for ku in _tile.unrolls(rw, v, kb, target):
            for hc in _chunks(p, target):
                yield {"xb": xb, "yb": target.lanes, "kb": kb, "rw": rw, "v": v, "ku": ku, "hc": hc}


def _chunks(p: Problem, target: Target) -> list[int]:
    """Outputs of one phase whose rows of x are padded at once: all, or as many as leave half of L2."""
    if p.rank == 1:
        return [1]
    rows = _quotients(p)[-2]
    sizes = [h for h in range(1, rows) if _chunk_bytes(p, h) <= target.l2 // 2]
    even = [h for h in sizes if _tasks(p, {"hc": h}) % target.threads == 0]
    exact = [h for h in sizes if rows % h == 0]
    return sorted({rows, *sizes[-1:], *even[-1:], *exact[-1:]})


def _chunk_bytes(p: Problem, hc: int) -> int:
    """The rows of x that all phases of `hc` outputs each ask for."""
    spans = [last - first for first, last in (_reach(p, axis) for axis in range(p.rank))]
    counts = _quotients(p)
    chunked = [1] * (p.rank - 2) + [hc] * (p.rank > 1) + [counts[-1]]
    extents = [span - count + cut + 1 for span, count, cut in zip(spans, counts, chunked, strict=True)]
    return SIZES[p.dtype] * p.ic * math.prod(extents)


def _tasks(p: Problem, c: Config) -> int:
    counts = _quotients(p)
    return p.mb if p.rank == 1 else p.mb * math.prod(counts[:-2]) * -(-counts[-2] // c["hc"])


def _parts(p: Problem, target: Target, c: Config) -> int:
    """In how many parts the output channels are cut so that every thread has a task."""
    tiles, tasks = p.g * -(-p.ocg // c["yb"]) // c["v"], _tasks(p, c)
    if target.threads == 1 or tasks >= 8 * target.threads:
        return 1
    return next((d for d in _tile.divisors(tiles) if tasks * d % target.threads == 0), tiles)


def seconds(p: Problem, target: Target, c: Config) -> float:
    tiles, tasks = p.g * -(-p.ocg // target.lanes) // c["v"], _tasks(p, c)
    rows = p.mb if p.rank == 1 else tasks * c["hc"] * math.prod(p.s[:-1])
    reduction = p.icg * math.prod(k / s for k, s in zip(p.k, p.s, strict=True))
    width = _quotients(p)[-1]
    row = p.s[-1] * _tile.row_cycles(width, c["rw"], c["v"], max(1, round(reduction)), target)
    runs = -(-width // c["rw"]) * p.s[-1] * reduction / c["kb"]
    row += 2 * runs + 0.5 * runs * c["kb"] / c["ku"]
    row += 4 * p.o[-1] * c["v"] + 50  # the row of finished phases: written, read, and the epilogue
    chunk = _chunk_bytes(p, c["hc"])
    copied = 2 * tasks * chunk / (4 * target.lanes) if _needs_padding(p) else 0.0
    streamed = _tile.streamed_cycles(SIZES[p.dtype] * p.oc * p.icg * p.taps, tasks, target)
    streamed += _tile.streamed_cycles(chunk, tiles, target) * tasks
    apart = 1.15 if c["xb"] == 1 and p.ic > 4 else 1.0  # row-major x: every channel of a pixel on its own cache line
    return float((rows * tiles * row * apart + copied + streamed) / target.rates.clock)


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[ic, ocg, *k] -> [oc tiles, *phases, *taps of a phase, icg, v * lanes], absent taps and output channels 0."""
    from tvm import te, tirx

    width, rank = c["v"] * c["yb"], p.rank
    tiles = p.g * -(-p.ocg // c["yb"]) // c["v"]

    def value(t: Any, *rest: Any) -> Any:
        phases, taps, (ci, lane) = rest[:rank], rest[rank : 2 * rank], rest[2 * rank :]
        o = t * width + lane
        at = [_tap(p, axis, f, j) for axis, (f, j) in enumerate(zip(phases, taps, strict=True))]
        there = [u < k for u, k, s in zip(at, p.k, p.s, strict=True) if k % s] + ([o < p.oc] if p.oc % width else [])
        o = tirx.min(o, p.oc - 1)
        clamped = [tirx.min(u, k - 1) if k % s else u for u, k, s in zip(at, p.k, p.s, strict=True)]
        found = w(o // p.ocg * p.icg + ci, o % p.ocg, *clamped)
        return tirx.if_then_else(tirx.all(*there), found, tirx.const(0, w.dtype)) if there else found

    depths = [_depth(p, axis) for axis in range(rank)]
    return te.compute((tiles, *p.s, *depths, p.icg, width), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """With o = q*s + phase: acc[n, ob, *q, *phase, lane] = sum over j, c of xp[n, c, q + (phase + p)//s + j*d]
    * w[tile, *phase, *j, c, lane], and y[n, ob, *o, lane] is acc there."""
    from tvm import te, tirx

    lanes, v, kb, xb, rank = c["yb"], c["v"], c["kb"], c["xb"], p.rank
    source = _pad(x, p, c) if _needs_padding(p) else x
    # xp starts with the first element that the phases reach.
    start = [0 if _needs_padding(p) else _reach(p, axis)[0] for axis in range(rank)]
    first = [a - before // s for a, before, s in zip(start, p.p, p.s, strict=True)]
    taps = [te.reduce_axis((0, _depth(p, axis)), f"j{axis}") for axis in range(rank)]
    co, ci = te.reduce_axis((0, p.icg // kb), "co"), te.reduce_axis((0, kb), "ci")

    def gather(n: Any, ob: Any, *rest: Any) -> Any:
        q, phase, lane = rest[:rank], rest[rank : 2 * rank], rest[-1]
        at = [q[a] + (phase[a] + p.p[a]) // p.s[a] + first[a] + taps[a] * p.d[a] for a in range(rank)]
        channel = co * kb + ci + (ob * lanes // p.ocg * p.icg if p.g > 1 else 0)
        where = (n, channel, *at) if xb == 1 else (n, channel // xb, *at, channel % xb)
        product = source(*where) * w(ob // v, *phase, *taps, co * kb + ci, ob % v * lanes + lane)
        there = [_tap(p, a, phase[a], taps[a]) < p.k[a] for a in range(rank) if p.k[a] % p.s[a]]
        if there:
            product = tirx.if_then_else(tirx.all(*there), product, tirx.const(0, x.dtype))
        return te.sum(product, axis=[*taps, co, ci])

    acc = te.compute((p.mb, -(-p.oc // lanes), *_quotients(p), *p.s, lanes), gather, name="acc")

    def value(n: Any, ob: Any, *rest: Any) -> Any:
        *o, lane = rest
        q, phase = ([f(a, s) for a, s in zip(o, p.s, strict=True)] for f in (tirx.floordiv, tirx.floormod))
        return acc(n, ob, *q, *phase, lane)

    return te.compute((p.mb, -(-p.oc // lanes), *p.o, lanes), value, name="y")


def _pad(x: Any, p: Problem, c: Config) -> Any:
    from tvm import te, tirx

    reach = [_reach(p, axis) for axis in range(p.rank)]
    shape = [*x.shape[:2], *(last - first + 1 for first, last in reach), *x.shape[2 + p.rank :]]

    def value(*index: Any) -> Any:
        at = [a + first for a, (first, _) in zip(index[2 : 2 + p.rank], reach, strict=True)]
        inside = [a >= 0 for a, (first, _) in zip(at, reach, strict=True) if first < 0]
        inside += [a < i for a, (_, last), i in zip(at, reach, p.i, strict=True) if last >= i]
        found = x(*index[:2], *at, *index[2 + p.rank :])
        return tirx.if_then_else(tirx.all(*inside), found, tirx.const(0, x.dtype))

    return te.compute(shape, value, name="xp")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, row chunk | padded rows | oc tile, row | phases, column tile | taps and channels | pixels x vectors."""
    z, acc = sch.get_sblock("z"), sch.get_sblock("acc")
    sch.compute_inline(sch.get_sblock("y"))
    n, ob, *o, lane = sch.get_loops(z)
    part, tile, v = sch.split(ob, [_parts(p, target, c), None, c["v"]])
    outer, rows, phases = _split_rows(sch, p, c, o[:-1])
    sch.reorder(n, *outer, part, tile, *rows, *phases, v, o[-1], lane)
    task = sch.fuse(n, *outer, part)
    if target.threads > 1:
        sch.parallel(task)
    if p.s[-1] == 1:
        _in_place(sch, p, c, z, acc)
    else:
        _interleaved(sch, p, c, acc, [tile, *rows][-1])
    if _needs_padding(p):
        xp = sch.get_sblock("xp")
        sch.compute_at(xp, task)
        sch.vectorize(sch.get_loops(xp)[-1])


def _split_rows(sch: Any, p: Problem, c: Config, o: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Loops of every axis but the last, cut in quotients and phases: outer quotients, those of a chunk, phases."""
    outer, rows, phases = [], [], []
    for axis, loop in enumerate(o):
        if axis == len(o) - 1:
            quotient, row, phase = sch.split(loop, [None, c["hc"], p.s[axis]])
            sch.annotate(row, "pragma_loop_partition_hint", 1)
            rows.append(row)
        else:
            quotient, phase = sch.split(loop, [None, p.s[axis]])
        outer.append(quotient)
        phases.append(phase)
    return outer, rows, phases


def _in_place(sch: Any, p: Problem, c: Config, z: Any, acc: Any) -> None:
    """Columns of one phase lie together: a register tile goes to the result through the epilogue."""
    *_, v, column, lane = sch.get_loops(z)
    wo, wi = sch.split(column, [None, c["rw"]])
    sch.reorder(wo, wi, v, lane)
    sch.annotate(wo, "pragma_loop_partition_hint", 1)  # a tail gets code of its own instead of a test per pixel
    if copy := _copy_of_tile(sch, z):
        sch.compute_at(copy, wo, preserve_unit_loops=True)
        _tile.in_registers(sch, sch.get_loops(copy)[-(3 + p.rank) :])
        sch.vectorize(lane)
    else:
        _tile.in_registers(sch, [wi, v, lane])
    sch.compute_at(acc, wo, preserve_unit_loops=True)
    _, vectors, pixel, lane, taps, c0, c1 = _own_loops(sch, p, c, acc)
    sch.reorder(*taps, c0, c1, pixel, vectors, lane)
    _tile.in_registers(sch, [c1, pixel, vectors, lane])
    _tile.in_registers(sch, sch.get_loops(sch.decompose_reduction(acc, taps[0]))[-3:])


def _interleaved(sch: Any, p: Problem, c: Config, acc: Any, at: Any) -> None:
    """Columns of the phases alternate: the phases of a row are finished in cache before the epilogue reads the row."""
    z = sch.get_sblock("z")
    if copy := _copy_of_tile(sch, z):
        sch.compute_inline(copy)  # the row in cache serves as well
    sch.vectorize(sch.get_loops(z)[-1])
    finished = sch.cache_write(acc, 0, "global")
    sch.compute_at(finished, at, preserve_unit_loops=True)
    sch.compute_at(acc, at, preserve_unit_loops=True)
    phases, vectors, pixel, lane, taps, c0, c1 = _own_loops(sch, p, c, acc)
    wo, wi = sch.split(pixel, [None, c["rw"]])
    sch.reorder(*phases, wo, *taps, c0, c1, wi, vectors, lane)
    sch.annotate(wo, "pragma_loop_partition_hint", 1)
    _tile.accumulate(sch, acc, finished, wo, reductions=[*taps, c0], inner=[wi, vectors, lane], unrolled=[c1])


def _copy_of_tile(sch: Any, z: Any) -> Any:
    """The sblock between y and a long epilogue, or None."""
    return next((b for b in sch.get_producers(z) if sch.get(b).name_hint == _tile.SPILL), None)


def _own_loops(sch: Any, p: Problem, c: Config, acc: Any) -> tuple[list[Any], Any, Any, Any, list[Any], Any, Any]:
    """Of acc's loops below its place, n, ob, *q, *phase, lane, *taps, co, ci: the phases, ob, the last q, lane, the
    reduction down to blocks of channels, and the two parts of a block."""
    own = sch.get_loops(acc)[-(5 + 3 * p.rank) :]
    phases, (lane, *taps, ci) = own[2 + p.rank : 2 + 2 * p.rank], own[2 + 2 * p.rank :]
    c0, c1 = sch.split(ci, [None, c["ku"]])
    return phases, own[1], own[1 + p.rank], lane, taps, c0, c1


def tasks(p: Problem, target: Target, c: Config) -> int:
    return _tasks(p, c) * _parts(p, target, c)


def error(p: Problem, c: Config) -> float:
    """Recursive summation of n products: n roundings a term at worst (Higham 2002, section 3.1)."""
    return float(p.icg * math.prod(_depth(p, axis) for axis in range(p.rank)))


def memory(p: Problem, c: Config) -> int:
    """The padded rows of a chunk and, where phases alternate in a row, its finished phases."""
    found = 0
    if p.s[-1] > 1:
        found += SIZES[p.dtype] * c["v"] * c["yb"] * _quotients(p)[-1] * math.prod(p.s)
    if _needs_padding(p):
        found += _chunk_bytes(p, c["hc"]) // p.ic * -(-p.ic // c["xb"]) * c["xb"]
    return found


ALGORITHM = Algorithm(
    name="transposed",
    source="arXiv:1603.07285",
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
