"""Im2win: the rows under a window packed column by column in cache, and a GEMM over the columns, which overlap.

Source: Lu et al., Im2win: Memory Efficient Convolution on SIMD Architectures (HPEC 2022, arXiv:2306.14320), with the
window of a chunk of output rows packed per thread when it is needed instead of the window of the whole of x. Where that
is still large beside what im2col takes, of `cb` channels at a time: the reduction is cut in parts, and the sums of `vb`
vectors of y's channels, which share each packed part, wait in cache between them.

The space keeps to configs whose memory is below a hundredth of im2col's, of all threads together, where the fastest of
them takes at most a twentieth longer, by the model, than the fastest of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config, unevenness
from convc.problem import Problem
from convc.schedules import _im2win_cuda, _im2win_tiles, _tile
from convc.schedules._columns import CACHE_LINE, SIZES, Window, pieces, window, window_bytes
from convc.target import Target

SLIM = 0.01  # of im2col's memory
PATIENCE = 1.05  # times the time of the fastest config
# Fitted to 72 configs of layers with 256 and 512 channels on Zen 5, eleven in twelve within 2 %.
PACKED = 3  # cycles to pack a vector
ENTRY = 15  # cycles for a register tile to begin another part and to add its sums to those that wait
# Set above what fits there (0 and 0.04): what other cores take is not known.
RUN = 5  # cycles to begin another contiguous run of the reduction
EXPOSED = 0.1  # part of the streaming from L3 that no computing hides
L3_BYTES_PER_CYCLE = 1.5  # and lane, beside full FMA rate: 12 on Zen 3, at least 24 on Zen 5
CROWDING = 0.1  # what a window as large as L2 costs the weights that share it, as a part of the time
RAGGED = 0.01  # what a last chunk with fewer rows costs in conditions
LOADED = 0.05  # what a tile costs with as many loads as multiply-adds, as 25 x 1; the cube of their ratio for others


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind != "conv":
        return f"the problem is {p.kind}"
    if p.taps == 1:
        return "the window of one tap is a copy of x"
    if p.dtype not in SIZES:
        return f"{p.dtype} is not a float type"
    if p.g > 1 and p.ocg % target.lanes:
        return f"{p.ocg} output channels a group do not fill vectors of {target.lanes}"
    if p.oc < target.lanes // 2:
        return f"{p.oc} output channels fill less than half of a vector of {target.lanes}"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    blocks = [target.lanes, 1] if p.ic > 1 else [1]
    found: list[Config] = []
    for xb in blocks:
        found += _slim(p, target, _tile.ranked(p, target, _configs(p, target, xb), seconds, tasks))[:48]
    return _tile.ranked(p, target, found, seconds, tasks)


def _slim(p: Problem, target: Target, ranked: list[Config]) -> list[Config]:
    """Those within the budget, or all where the fastest of those takes too long."""
    slim = [c for c in ranked if memory(p, c) <= _budget(p, target)]
    return slim if slim and _cost(p, target, slim[0]) <= PATIENCE * _cost(p, target, ranked[0]) else ranked


def _cost(p: Problem, target: Target, c: Config) -> float:
    return seconds(p, target, c) * unevenness(tasks(p, target, c), target.threads)


def _budget(p: Problem, target: Target) -> float:
    """Bytes that a thread may take."""
    return SLIM * p.mb * p.g * p.reduction * math.prod(p.o) * SIZES[p.dtype] / target.threads


def _configs(p: Problem, target: Target, xb: int) -> Iterator[Config]:
    forms = _whole(p, target)
    if p.g == 1 and min(window_bytes(p, form) for form in forms) > _budget(p, target):
        forms += _parted(p, target)
    for form in forms:
        parted, run = form["cb"] < p.icg, window(p, form).loops[-1][0]
        # LLVM needs more of the registers in parts: at 14 x 2 of 32 it spills in the innermost loop, x1.15 the time.
        room = target.registers * 29 // 32 if parted else target.registers - 1
        for rw, v in dict.fromkeys(_tile.tiles(form["wc"], form["vb"], target, depth=1)):
            for rh in (h for h in _heights(p, rw, v, form["hc"], target) if (rw * h + 1) * v <= room):
                for ku in _unrolls(rw * rh, v, run, target):
                    tile = {"xb": xb, "yb": target.lanes, "rw": rw, "rh": rh, "v": v, "ku": ku}
                    yield {**form, **tile, "vb": form["vb"] if parted else v}


def _whole(p: Problem, target: Target) -> list[Config]:
    """Windows of all channels, for all channels of y."""
    vb = -(-p.ocg // target.lanes)
    return [{"hc": hc, "wc": wc, "cb": p.icg, "vb": vb} for hc, wc in _chunks(p, target)]


def _parted(p: Problem, target: Target) -> list[Config]:
    """Windows of as many channels as keep to the budget beside the sums that wait."""
    lanes, last = target.lanes, p.o[-1]
    cuts = [(1, w) for w in _tile.divisors(last)] if p.rank == 1 else [(h, last) for h in _tile.even(p.o[-2])]
    blocks = [cb for cb in _tile.divisors(p.icg) if cb < p.icg and cb % lanes == 0]
    found: list[Config] = []
    for hc, wc in cuts:
        for vb in _tile.divisors(-(-p.oc // lanes)):
            forms = [{"yb": lanes, "hc": hc, "wc": wc, "cb": cb, "vb": vb} for cb in blocks]
            found += [form for form in forms if memory(p, form) <= _budget(p, target)][-1:]
    return found


def _unrolls(pixels: int, v: int, run: int, target: Target) -> list[int]:
    """As for every register tile, and once where runs of odd length (three channels) admit none of those."""
    found = list(_tile.unrolls(pixels, v, run, target))
    wider = [d for d in _tile.divisors(run) if 1 < d <= 1.5 * _tile.UNROLL / (pixels * v)]
    return found if max(found) > 1 else found + wider[:1]


def _heights(p: Problem, rw: int, v: int, hc: int, target: Target) -> list[int]:
    """Rows in a tile: more than one only where every chunk is whole."""
    if p.rank < 2 or p.o[-2] % hc:
        return [1]
    return [h for h in _tile.divisors(hc) if h == 1 or _tile.fits(h * rw, v, target, depth=1)]


def _chunks(p: Problem, target: Target) -> list[tuple[int, int]]:
    """(rows, pixels of a row) packed at once: one row, and the most that keep to the budget or leave half of L2, and
    even shares to threads. A taller window holds once what neighbouring rows share; of a single axis the pixels are
    cut instead."""
    last, half, slim = p.o[-1], target.l2 // 2, _budget(p, target)
    if p.rank == 1:
        fair = [w for w in reversed(_tile.divisors(last)) if _fair(p, target, 1, w)]
        fitting = [[w for w in fair if _fits(p, 1, w, limit)] for limit in (half, slim)]
        return [(1, w) for w in sorted({last, *(widths[0] for widths in fitting if widths)})]
    resident = [h for h in _tile.even(p.o[-2]) if h == 1 or _fits(p, h, last, half)]
    fair = [h for h in resident if _fair(p, target, h, last)]
    small, thin = ([h for h in fair if _fits(p, h, last, limit)] for limit in (half // 4, slim))
    even = ([h for h in heights if p.o[-2] % h == 0] for heights in (fair, thin))
    tallest = {heights[0] for heights in (resident, fair, small, thin, *even) if heights}
    return [(h, last) for h in sorted({1, *tallest})]


def _fits(p: Problem, hc: int, wc: int, limit: float) -> bool:
    return window_bytes(p, {"hc": hc, "wc": wc, "cb": p.icg}) <= limit


def _windows(p: Problem, c: Config) -> int:
    return p.mb * math.prod(pieces(p, c))


def _fair(p: Problem, target: Target, hc: int, wc: int) -> bool:
    count = _windows(p, {"hc": hc, "wc": wc})
    return target.threads == 1 or count % target.threads == 0 or count >= 8 * target.threads


def _groups(p: Problem, c: Config) -> int:
    """Groups of `vb` vectors of y's channels, each of which packs for itself where the reduction is in parts."""
    return p.g * -(-p.ocg // c["yb"]) // c["vb"]


def _shares(p: Problem, target: Target, c: Config) -> int:
    return _tile.shares(_windows(p, c), _groups(p, c), target)


def tasks(p: Problem, target: Target, c: Config) -> int:
    return _windows(p, c) * _shares(p, target, c)


def seconds(p: Problem, target: Target, c: Config) -> float:
    """Register tiles, packing, and what comes from L3, which most of the computing hides."""
    count, parts, size = _windows(p, c), p.icg // c["cb"], window_bytes(p, c)
    tiles = _groups(p, c) * c["vb"] // c["v"]
    rows = p.mb * math.prod(p.o) / c["wc"] / c["rh"]
    ragged = p.rank > 1 and p.o[-2] % c["hc"] > 0
    computed = rows * tiles * _row_cycles(p, target, c) * (1 + CROWDING * size / target.l2 + RAGGED * ragged)
    packings = count * (_shares(p, target, c) if parts == 1 else _groups(p, c) * parts)
    packed = packings * size / SIZES[p.dtype] * _pack_cycles(p, target, c)
    weights = p.reduction * tiles * c["v"] * target.lanes * SIZES[p.dtype]
    kept = weights // tiles // parts <= target.l2 * 3 // 4  # those of one tile, for all rows of its window
    passes = count if kept else rows * -(-c["wc"] // c["rw"])
    streamed = passes * weights if weights > target.l2 // 2 else 0
    streamed += count * tiles * size if size > target.l2 * 3 // 4 else 0  # every tile of channels reads the window
    streaming = streamed / (L3_BYTES_PER_CYCLE * target.lanes)
    return float(max(computed + packed, streaming) + EXPOSED * streaming) / target.rates.clock


def _row_cycles(p: Problem, target: Target, c: Config) -> float:
    """Cycles of `rh` rows of `wc` pixels by one tile of channels."""
    whole, rest = divmod(c["wc"], c["rw"])
    row = whole * _tile_cycles(p, target, c, c["rh"] * c["rw"])
    row += _tile_cycles(p, target, c, c["rh"] * rest) if rest else 0.0
    runs = p.icg // c["cb"] * math.prod(extent for extent, _ in window(p, c).loops[:-1])
    return row + (whole + bool(rest)) * (0.5 * p.reduction / c["ku"] + RUN * runs)


def _tile_cycles(p: Problem, target: Target, c: Config, pixels: int) -> float:
    """Those of a register tile as elsewhere, and of its sums that wait between the parts."""
    v, parts = c["v"], p.icg // c["cb"]
    loaded = LOADED * min(1.0, (pixels + v) / (pixels * v)) ** 3
    step = _tile.step_cycles(pixels, v, p.taps * c["cb"], target) * (1 + loaded)
    return p.reduction * step + 2 * pixels * v + 20 + (parts - 1) * ENTRY


def _pack_cycles(p: Problem, target: Target, c: Config) -> float:
    """Cycles of one packed element: vectors where blocks of x stay whole, else a load and a store."""
    return PACKED / target.lanes if c["xb"] > 1 and p.icg % c["xb"] == 0 else 1.0


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> [groups, parts, tiles of a group, kw * taps of the other axes * cb, v * lanes], missing output
    channels 0: in the order in which it is read."""
    from tvm import te, tirx

    width, tiles, parts = c["v"] * c["yb"], c["vb"] // c["v"], p.icg // c["cb"]

    def value(group: Any, part: Any, t: Any, k: Any, lane: Any) -> Any:
        channel, rest = part * c["cb"] + k % c["cb"], k // c["cb"]
        taps: list[Any] = []
        for extent in reversed(p.k[:-1]):
            taps.insert(0, rest % extent)
            rest = rest // extent
        out = (group * tiles + t) * width + lane
        found = w(tirx.min(out, p.oc - 1), channel, *taps, rest)
        if p.oc == _groups(p, c) * tiles * width:
            return found
        return tirx.if_then_else(out < p.oc, found, tirx.const(0, w.dtype))

    return te.compute((_groups(p, c), parts, tiles, p.taps * c["cb"], width), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, ob, *o, lane] = sum over parts, and over k in a part, of
    win[part, n, *task, group, column, element] * w[group of tiles, part, tile, k, lane]."""
    from tvm import te

    form, lanes, v, vb = window(p, c), c["yb"], c["v"], c["vb"]
    win = _pack_window(x, p, c, form)
    axes = [te.reduce_axis((0, extent), f"k{i}") for i, (extent, _) in enumerate(form.loops)]

    def value(part: Any, n: Any, ob: Any, *rest: Any) -> Any:
        *o, lane = rest
        task, column, element = _start(p, c, o)
        k: Any = 0
        for axis, (extent, stride) in zip(axes, form.loops, strict=True):
            k = k * extent + axis
            if stride >= form.column:
                column = column + axis * (stride // (form.column + form.gap))
            elif extent * stride > form.column:
                column, element = column + axis * stride // form.column, element + axis * stride % form.column
            else:
                element = element + axis * stride
        group = ob * lanes // p.ocg if p.g > 1 else 0
        weight = w(ob // vb, part, ob % vb // v, k, ob % v * lanes + lane)
        return te.sum(win(part, n, *task, group, column, element) * weight, axis=axes)

    shape, parts = (p.mb, -(-p.oc // lanes), *p.o, lanes), p.icg // c["cb"]
    if parts == 1:
        return te.compute(shape, lambda *index: value(0, *index), name="y")
    partial = te.compute((parts, *shape), value, name="partial")
    part = te.reduce_axis((0, parts), "part")
    return te.compute(shape, lambda *index: te.sum(partial(part, *index), axis=part), name="y")


def _start(p: Problem, c: Config, o: Sequence[Any]) -> tuple[list[Any], Any, Any]:
    """Task of output pixel `o`, and column and element of that task's window where the reduction starts."""
    if p.rank == 1:
        return [o[0] // c["wc"]], o[0] % c["wc"] * p.s[0], 0
    return [*o[:-2], o[-2] // c["hc"]], o[-1] * p.s[-1], o[-2] % c["hc"] * (p.s[-2] * c["cb"])


def _pack_window(x: Any, p: Problem, c: Config, form: Window) -> Any:
    """win[n, *task, group, column, (*slots, channel)] = x there, 0 in the padding."""
    from tvm import te, tirx

    hangs_over = p.rank > 1 and p.o[-2] % c["hc"] > 0 and p.after[-2] <= 0

    def value(part: Any, n: Any, *rest: Any) -> Any:
        *task, g, column, element = rest
        channel, element = g * p.icg + part * c["cb"] + element % c["cb"], element // c["cb"]
        slots: list[Any] = []
        for extent in reversed(form.slots):
            slots.insert(0, element % extent)
            element = element // extent
        at = _source(p, c, task, slots, column)
        if hangs_over:  # of the last chunk: no output reads it
            at[-2] = tirx.min(at[-2], p.i[-2] - 1)
        inside = [a >= 0 for a, lo in zip(at, p.p, strict=True) if lo > 0]
        inside += [a < extent for a, extent, hi in zip(at, p.i, p.after, strict=True) if hi > 0]
        found = x(n, channel, *at) if c["xb"] == 1 else x(n, channel // c["xb"], *at, channel % c["xb"])
        return tirx.if_then_else(tirx.all(*inside), found, tirx.const(0, x.dtype)) if inside else found

    return te.compute((p.icg // c["cb"], p.mb, *pieces(p, c), p.g, form.width, form.column), value, name="win")


def _source(p: Problem, c: Config, task: Sequence[Any], slots: Sequence[Any], column: Any) -> list[Any]:
    """Index in x, per axis, of a slot of a task's window."""
    if p.rank == 1:
        return [task[0] * (c["wc"] * p.s[0]) + column - p.p[0]]
    at = [t * s + slot * d - before for t, s, slot, d, before in zip(task, p.s, slots, p.d, p.p, strict=False)]
    if c["hc"] > 1:
        at[-1] = task[-1] * (c["hc"] * p.s[-2]) + slots[-1] - p.p[-2]
    return [*at, column - p.p[-1]]


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, chunk | packed window | oc tile, row, column tile | taps and channels | pixels x vectors in registers.

    In parts: n, chunk, oc group, part | packed window | oc tile, row, column tile | the same of the part, then y."""
    y, z, parted = sch.get_sblock("y"), sch.get_sblock("z"), c["cb"] < p.icg
    n, ob, *rest = sch.get_loops(y)
    o, (lane, *ks) = rest[: p.rank], rest[p.rank :]
    share, group, tile, v = sch.split(ob, [_shares(p, target, c), None, c["vb"] // c["v"], c["v"]])
    if p.rank == 1:
        chunk, pixels = sch.split(o[0], [None, c["wc"]])
        lead, row, hi = [chunk], [], []
    else:
        chunk, *split = sch.split(o[-2], [None, c["hc"] // c["rh"], c["rh"]])
        lead, row, hi, pixels = [*o[:-2], chunk], split[:1], split[1:], o[-1]
    wo, wi = sch.split(pixels, [None, c["rw"]])
    inner = [*hi, wi, v, lane]
    sch.reorder(n, *lead, share, group, *(ks if parted else []), tile, *row, wo, *([] if parted else ks), *inner)
    for loop in (*row, wo):
        sch.annotate(loop, "pragma_loop_partition_hint", 1)  # a tail gets code of its own instead of a test per pixel
    task = sch.fuse(n, *lead, share)
    if target.threads > 1:
        sch.parallel(task)
    if parted:
        _accumulate_in_parts(sch, p, c, at=(group, ks[0], wo), inner=inner)
        return
    k0, k1 = sch.split(ks[-1], [None, c["ku"]])
    _place_window(sch, p, c, task)
    _tile.accumulate(sch, y, z, wo, reductions=[*ks[:-1], k0], inner=inner, unrolled=[k1])


def _accumulate_in_parts(sch: Any, p: Problem, c: Config, *, at: tuple[Any, Any, Any], inner: Sequence[Any]) -> None:
    """The sums of one part in registers, added to y, which waits in cache between the parts.

    rewrite, below loop `group`:
        for all: partial += win * w         for all: y = 0
        for all: y += partial          ->   for part: pack win; for tile: partial' = 0; for k: partial' += win * w
        for all: z = epilogue(y)                                          y += partial'
                                            for all: z = epilogue(y)
    """
    y, z, partial = sch.get_sblock("y"), sch.get_sblock("z"), sch.get_sblock("partial")
    group, part, wo = at
    _tile.in_registers(sch, inner)
    sch.compute_at(partial, wo, preserve_unit_loops=True)
    _place_window(sch, p, c, part)
    _, _, v, *rest = _tile.own_loops(sch, partial, wo)
    o, (lane, *ks) = rest[: p.rank], rest[p.rank :]
    k0, k1 = sch.split(ks[-1], [None, c["ku"]])
    sch.reorder(*ks[:-1], k0, k1, *o, v, lane)
    _tile.in_registers(sch, [k1, *o, v, lane])
    first = ks[0] if len(ks) > 1 else k0
    _tile.in_registers(sch, _tile.own_loops(sch, sch.decompose_reduction(partial, first), wo))
    _tile.place_epilogue_over_tiles(sch, z, group)
    sch.vectorize(sch.get_loops(sch.decompose_reduction(y, part))[-1])


def _place_window(sch: Any, p: Problem, c: Config, at: Any) -> None:
    """Pack below `at`: x is read along its rows, in blocks whose columns stay in L1 while they are written."""
    win, form, lanes = sch.get_sblock("win"), window(p, c), c["yb"]
    sch.compute_at(win, at, preserve_unit_loops=True)
    if form.gap:
        sch.storage_align(win, 0, len(pieces(p, c)) + 3, form.column, form.gap)
    *_, column, element = sch.get_loops(win)
    *slots, channel = sch.split(element, [*form.slots, form.channels])
    outer, lane = sch.split(channel, [None, min(lanes, form.channels)])
    sch.annotate(outer, "pragma_loop_partition_hint", 1)
    if c["xb"] > 1:
        sch.reorder(*slots, outer, column, lane)
        sch.vectorize(lane)
    else:
        block, pixel = sch.split(column, [None, lanes])
        sch.annotate(block, "pragma_loop_partition_hint", 1)
        if form.channels * lanes > _tile.UNROLL:
            sch.reorder(*slots, outer, block, lane, pixel)
            return
        sch.reorder(*slots, outer, block, pixel, lane)  # 2 % of the time of a layer with three channels
        sch.unroll(pixel)
        sch.unroll(lane)


def memory(p: Problem, c: Config) -> int:
    """The window of one task, and in parts the sums of `vb` vectors that wait; each in whole cache lines."""
    sums = c["hc"] * c["wc"] * c["vb"] * c["yb"] * SIZES[p.dtype] if c["cb"] < p.icg else 0
    return sum(-(-size // CACHE_LINE) * CACHE_LINE for size in (window_bytes(p, c), sums))


def error(p: Problem, c: Config) -> float:
    """Recursive summation of the products of a part, and of the parts (Higham 2002, section 3.1)."""
    return float(p.taps * c["cb"] + p.icg // c["cb"] - 1)


ALGORITHM = Algorithm(
    name="im2win",
    source="arXiv:2306.14320",
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
    name="im2win",
    source="arXiv:2306.14316",
    refuses=_im2win_tiles.refuses,
    space=_im2win_tiles.space,
    seconds=_im2win_tiles.seconds,
    pack=_im2win_cuda.pack,
    define=_im2win_cuda.define,
    schedule=_im2win_cuda.schedule,
    error=_tile.recursive_error,
    memory=_im2win_tiles.memory,
    limit=_im2win_tiles.limit,
    kind="cuda",
)
