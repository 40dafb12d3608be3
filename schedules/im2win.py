"""Im2win: the rows under a window packed column by column in cache, and a GEMM over the columns, which overlap.

Source: Lu et al., Im2win: Memory Efficient Convolution on SIMD Architectures (HPEC 2022, arXiv:2306.14320), with the
window of a chunk of output rows packed per thread when it is needed instead of the window of the whole of x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config
from convc.problem import Problem
from convc.schedules import _tile
from convc.target import Target

CLOCK = 3e9
L3_BYTES_PER_CYCLE = 12  # beside full FMA rate
CACHE_LINE = 64
CROWDING = 0.05  # what a window as large as L2 costs the weights that share it, as a part of the time
CONFLICT = 1024  # pixels this many bytes apart share a quarter of the sets of L1
SIZES = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Window:
    """How a packed window lies in memory: [width][*slots][channels], then `gap` elements that nobody reads.

    width    columns of x, padding included.
    slots    rows per axis but the last: those of the taps or, under a chunk of output rows, all from first to last.
    loops    (extent, stride in elements) of the reduction, outermost first, neighbours that are contiguous merged: the
             last has stride 1, and under a single output row without dilation it is the only one.
    """

    width: int
    slots: tuple[int, ...]
    channels: int
    gap: int
    loops: tuple[tuple[int, int], ...]

    @property
    def column(self) -> int:
        """Elements packed of one column of x."""
        return math.prod(self.slots) * self.channels

    @property
    def elements(self) -> int:
        return self.width * (self.column + self.gap)


def window(p: Problem, c: Config) -> Window:
    """The window of `hc` output rows of `wc` pixels."""
    chunked = c["hc"] > 1
    slots = list(p.k[:-1])
    if chunked:
        slots[-1] = (c["hc"] - 1) * p.s[-2] + (p.k[-2] - 1) * p.d[-2] + 1
    column, size = math.prod(slots) * p.icg, SIZES[p.dtype]
    gap = 0 if column * p.s[-1] * size % CONFLICT else CACHE_LINE // size
    axes = [(p.k[-1], p.d[-1] * (column + gap))]
    for axis, taps in enumerate(p.k[:-1]):
        apart = p.d[axis] if chunked and axis == p.rank - 2 else 1
        axes.append((taps, apart * math.prod(slots[axis + 1 :]) * p.icg))
    width = (c["wc"] - 1) * p.s[-1] + (p.k[-1] - 1) * p.d[-1] + 1
    return Window(width, tuple(slots), p.icg, gap, _merged([*axes, (p.icg, 1)]))


def _merged(axes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found = [axes[-1]]
    for extent, stride in reversed(axes[:-1]):
        inner, step = found[0]
        if inner * step == stride:
            found[0] = (extent * inner, step)
        elif extent > 1:
            found.insert(0, (extent, stride))
    return tuple(found)


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
        found += sorted(_configs(p, target, xb), key=lambda c: seconds(p, target, c))[:48]
    return sorted(found, key=lambda c: seconds(p, target, c))


def _configs(p: Problem, target: Target, xb: int) -> Iterator[Config]:
    for hc, wc in _chunks(p, target):
        run = window(p, {"hc": hc, "wc": wc}).loops[-1][0]
        for rw, v in dict.fromkeys(_tile.tiles(wc, -(-p.ocg // target.lanes), target, depth=1)):
            for rh in _heights(p, rw, v, hc, target):
                for ku in _unrolls(rw * rh, v, run, target):
                    yield {"xb": xb, "yb": target.lanes, "rw": rw, "rh": rh, "v": v, "ku": ku, "hc": hc, "wc": wc}


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
    """(rows, pixels of a row) packed at once: one row, and the most that leave half of L2 and even shares to threads.
    A taller window holds once what neighbouring rows share; of a single axis the pixels are cut instead."""
    if p.rank == 1:
        fitting = [w for w in _tile.divisors(p.o[0]) if _resident(p, target, 1, w) and _fair(p, target, 1, w)]
        return [(1, w) for w in {max(fitting, default=p.o[0]), p.o[0]}]
    found = sorted({-(-p.o[-2] // count) for count in range(1, p.o[-2] + 1)}, reverse=True)
    resident = [h for h in found if h == 1 or _resident(p, target, h, p.o[-1])]
    fair = [h for h in resident if _fair(p, target, h, p.o[-1])]
    small = [h for h in fair if _resident(p, target, 4 * h, p.o[-1])]
    whole = [h for h in fair if p.o[-2] % h == 0]
    return [(h, p.o[-1]) for h in sorted({1, *resident[:1], *fair[:1], *small[:1], *whole[:1]})]


def _resident(p: Problem, target: Target, hc: int, wc: int) -> bool:
    return window(p, {"hc": hc, "wc": wc}).elements * p.g * SIZES[p.dtype] <= target.l2 // 2


def _tasks(p: Problem, c: Config) -> tuple[int, ...]:
    """Windows per axis: chunks of rows, or of pixels where there is one axis."""
    if p.rank == 1:
        return (p.o[0] // c["wc"],)
    return (*p.o[:-2], -(-p.o[-2] // c["hc"]))


def _fair(p: Problem, target: Target, hc: int, wc: int) -> bool:
    count = p.mb * math.prod(_tasks(p, {"hc": hc, "wc": wc}))
    return target.threads == 1 or count % target.threads == 0 or count >= 8 * target.threads


def _parts(p: Problem, target: Target, c: Config) -> int:
    """In how many parts the output channels are cut so that every thread has a task; each part packs for itself."""
    if _fair(p, target, c["hc"], c["wc"]):
        return 1
    tiles = p.g * -(-p.ocg // c["yb"]) // c["v"]
    count = p.mb * math.prod(_tasks(p, c))
    return next((d for d in _tile.divisors(tiles) if count * d % target.threads == 0), tiles)


def seconds(p: Problem, target: Target, c: Config) -> float:
    form, windows = window(p, c), p.mb * math.prod(_tasks(p, c))
    tiles = p.g * -(-p.ocg // target.lanes) // c["v"]
    rows = p.mb * math.prod(p.o) / c["wc"] / c["rh"]
    size = form.elements * p.g * SIZES[p.dtype]
    computed = rows * tiles * _row_cycles(p, target, c, form) * (1 + CROWDING * size / target.l2)
    packed = windows * _parts(p, target, c) * form.elements * p.g * _pack_cycles(p, target, c)
    packed += windows * tiles * size / _tile.L2_BYTES_PER_CYCLE  # every tile of channels reads the window again
    weights = p.reduction * tiles * c["v"] * target.lanes * SIZES[p.dtype]
    streamed = windows * weights if weights > target.l2 // 2 else 0
    streamed += windows * tiles * size if size > target.l2 * 3 // 4 else 0
    return float(computed + packed + streamed / L3_BYTES_PER_CYCLE) / CLOCK


def _row_cycles(p: Problem, target: Target, c: Config, form: Window) -> float:
    """Cycles of `rh` rows of `wc` pixels by one tile of channels."""
    whole, rest = divmod(c["wc"], c["rw"])
    row = whole * _tile.tile_cycles(c["rh"] * c["rw"], c["v"], p.reduction, target)
    row += _tile.tile_cycles(c["rh"] * rest, c["v"], p.reduction, target) if rest else 0.0
    runs = math.prod(extent for extent, _ in form.loops[:-1])
    return float(row + (whole + bool(rest)) * (0.5 * p.reduction / c["ku"] + 15 * runs))


def _pack_cycles(p: Problem, target: Target, c: Config) -> float:
    """Cycles of one packed element: vectors where blocks of x stay whole, else a load and a store."""
    return 3 / target.lanes if c["xb"] > 1 and p.icg % c["xb"] == 0 else 1.2


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> [oc tiles, kw * taps of the other axes * icg, v * lanes], missing output channels 0."""
    from tvm import te, tirx

    width = c["v"] * c["yb"]
    tiles = p.g * -(-p.ocg // c["yb"]) // c["v"]

    def value(t: Any, k: Any, lane: Any) -> Any:
        channel, rest = k % p.icg, k // p.icg
        taps: list[Any] = []
        for extent in reversed(p.k[:-1]):
            taps.insert(0, rest % extent)
            rest = rest // extent
        found = w(tirx.min(t * width + lane, p.oc - 1), channel, *taps, rest)
        if p.oc == tiles * width:
            return found
        return tirx.if_then_else(t * width + lane < p.oc, found, tirx.const(0, w.dtype))

    return te.compute((tiles, p.reduction, width), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, ob, *o, lane] = sum over k of win[n, *task, group, column, element] * w[tile, k, lane]."""
    from tvm import te

    form, lanes, v = window(p, c), c["yb"], c["v"]
    win = _pack_window(x, p, c, form)
    axes = [te.reduce_axis((0, extent), f"k{i}") for i, (extent, _) in enumerate(form.loops)]

    def value(n: Any, ob: Any, *rest: Any) -> Any:
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
        return te.sum(win(n, *task, group, column, element) * w(ob // v, k, ob % v * lanes + lane), axis=axes)

    return te.compute((p.mb, -(-p.oc // lanes), *p.o, lanes), value, name="y")


def _start(p: Problem, c: Config, o: Sequence[Any]) -> tuple[list[Any], Any, Any]:
    """Task of output pixel `o`, and column and element of that task's window where the reduction starts."""
    if p.rank == 1:
        return [o[0] // c["wc"]], o[0] % c["wc"] * p.s[0], 0
    return [*o[:-2], o[-2] // c["hc"]], o[-1] * p.s[-1], o[-2] % c["hc"] * (p.s[-2] * p.icg)


def _pack_window(x: Any, p: Problem, c: Config, form: Window) -> Any:
    """win[n, *task, group, column, (*slots, channel)] = x there, 0 in the padding."""
    from tvm import te, tirx

    after = [max(a, 0) for a in p.after]
    if p.rank > 1 and p.o[-2] % c["hc"]:
        after[-2] = 1  # the last chunk hangs over

    def value(n: Any, *rest: Any) -> Any:
        *task, g, column, element = rest
        channel, element = g * p.icg + element % p.icg, element // p.icg
        slots: list[Any] = []
        for extent in reversed(form.slots):
            slots.insert(0, element % extent)
            element = element // extent
        at = _source(p, c, task, slots, column)
        inside = [a >= 0 for a, lo in zip(at, p.p, strict=True) if lo > 0]
        inside += [a < extent for a, extent, hi in zip(at, p.i, after, strict=True) if hi > 0]
        found = x(n, channel, *at) if c["xb"] == 1 else x(n, channel // c["xb"], *at, channel % c["xb"])
        return tirx.if_then_else(tirx.all(*inside), found, tirx.const(0, x.dtype)) if inside else found

    return te.compute((p.mb, *_tasks(p, c), p.g, form.width, form.column), value, name="win")


def _source(p: Problem, c: Config, task: Sequence[Any], slots: Sequence[Any], column: Any) -> list[Any]:
    """Index in x, per axis, of a slot of a task's window."""
    if p.rank == 1:
        return [task[0] * (c["wc"] * p.s[0]) + column - p.p[0]]
    at = [t * s + slot * d - before for t, s, slot, d, before in zip(task, p.s, slots, p.d, p.p, strict=False)]
    if c["hc"] > 1:
        at[-1] = task[-1] * (c["hc"] * p.s[-2]) + slots[-1] - p.p[-2]
    return [*at, column - p.p[-1]]


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, chunk | packed window | oc tile, row, column tile | taps and channels | pixels x vectors in registers."""
    y, z = sch.get_sblock("y"), sch.get_sblock("z")
    n, ob, *rest = sch.get_loops(y)
    o, (lane, *ks) = rest[: p.rank], rest[p.rank :]
    part, tile, v = sch.split(ob, [_parts(p, target, c), None, c["v"]])
    k0, k1 = sch.split(ks[-1], [None, c["ku"]])
    outer_ks = [*ks[:-1], k0]
    if p.rank == 1:
        chunk, pixels = sch.split(o[0], [None, c["wc"]])
        lead, row, hi = [chunk], [], []
    else:
        chunk, *split = sch.split(o[-2], [None, c["hc"] // c["rh"], c["rh"]])
        lead, row, hi, pixels = [*o[:-2], chunk], split[:1], split[1:], o[-1]
    wo, wi = sch.split(pixels, [None, c["rw"]])
    sch.reorder(n, *lead, part, tile, *row, wo, *outer_ks, k1, *hi, wi, v, lane)
    for loop in (*row, wo):
        sch.annotate(loop, "pragma_loop_partition_hint", 1)  # a tail gets code of its own instead of a test per pixel
    task = sch.fuse(n, *lead, part)
    if target.threads > 1:
        sch.parallel(task)
    _place_window(sch, p, c, task)
    _tile.accumulate(sch, y, z, wo, reductions=outer_ks, inner=[*hi, wi, v, lane], unrolled=[k1])


def _place_window(sch: Any, p: Problem, c: Config, task: Any) -> None:
    """Pack below `task`: x is read along its rows, in blocks whose columns stay in L1 while they are written."""
    win, form, lanes = sch.get_sblock("win"), window(p, c), c["yb"]
    sch.compute_at(win, task, preserve_unit_loops=True)
    if form.gap:
        sch.storage_align(win, 0, len(_tasks(p, c)) + 2, form.column, form.gap)
    *_, column, element = sch.get_loops(win)
    *slots, channel = sch.split(element, [*form.slots, form.channels])
    outer, lane = sch.split(channel, [None, min(lanes, form.channels)])
    sch.annotate(outer, "pragma_loop_partition_hint", 1)
    if c["xb"] > 1:
        sch.reorder(*slots, outer, column, lane)
        sch.vectorize(lane)
    else:
        block, pixel = sch.split(column, [None, lanes])
        sch.reorder(*slots, outer, block, lane, pixel)
        sch.annotate(block, "pragma_loop_partition_hint", 1)


def tasks(p: Problem, target: Target, c: Config) -> int:
    return p.mb * math.prod(_tasks(p, c)) * _parts(p, target, c)


def memory(p: Problem, c: Config) -> int:
    """The window of one task."""
    return SIZES[p.dtype] * p.g * window(p, c).elements


ALGORITHM = Algorithm(
    name="im2win",
    source="arXiv:2306.14320",
    refuses=refuses,
    space=space,
    seconds=seconds,
    pack=pack,
    define=define,
    schedule={"cpu": schedule},
    error=_tile.recursive_error,
    memory=memory,
    tasks=tasks,
)
