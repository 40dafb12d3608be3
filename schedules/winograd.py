"""Winograd convolution F(m, r) of any tile: the input of a group of tiles transformed, one GEMM for each product of the
tile's transform, and the inverse transform with the epilogue, all while the group is in cache.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016, arXiv:1509.09308), with the points
of `convc.numerics`. Axes differ in m; an axis with m = 1 is computed directly. Strides are split in phases and dilated
axes in interleaved ones, so that one schedule serves them all.

Names: axis a has tiles of m outputs from n products; a group holds `t0` x `t1` tiles, each `d` interleaved ones where
the axis is dilated; v, the transformed input [n0, n1, channels, tiles]; u, the weights; prod, their GEMMs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config
from convc.dtypes import HALVES, ROUNDING
from convc.numerics.bilinear import Bilinear, denominator, mantissa, significand
from convc.numerics.objective import largest_spread
from convc.problem import Problem
from convc.schedules import (
    _matrix,
    _tile,
    _transform,
    _winograd_cuda,
    _winograd_fused,
    _winograd_tensor,
    _winograd_three,
    _winograd_tiles,
    tensor_core,
)  # fmt: skip
from convc.schedules._tiling import Axis, axes, form_of
from convc.target import GpuTarget, Target

MOST = 8  # outputs of a tile along an axis: beyond it the error grows faster than products are saved
TAPS = 7  # of an axis, or of a phase of its stride, for which the table has points
PAIRS = 12  # tile shapes of a space, those with the fewest products and bytes
TRIED = 10  # configs of a tile shape
SHARES = (0.25, 0.5, 1.0, 4.0)  # of L2, that the transformed input of a group may take
RESIDENT = 0.5  # part of L2 that the transformed input of a group, or the weights, may fill beside the others
LAST_LEVEL = 24 << 20  # bytes of weights that it keeps from one group of tiles to the next
# Fitted to 540 configs of nine layers with 64 to 512 channels on Zen 5, root mean square of the error 7 %.
PADDED = 1.7  # cycles to copy a vector of x with its padding
ENTRY = 6.0  # cycles to begin a row or a column of a transform
SHARED = 0.85  # part of the operations of a transform that are left after LLVM has shared sums between rows
L1_KEEPS = 0.2  # part of L1 in which weights last from one register tile to the next
L2_RATE = 0.52  # of its bandwidth, while weights come from beyond it
# Of the bandwidth beyond L2. The fit says 0.58 for memory; in networks it is slower at times, and 0.45 loses nothing.
LAST_RATE, MEMORY_RATE = 0.78, 0.45
ROLLED = 1.02  # times its time, of a tile whose loop is not unrolled: with fewer than 64 channels LLVM makes it 2.3
CROWDED = 1.3  # times its time, of an unrolled tile of more than ROOM of the registers: 14 x 2 of 32
ROOM = 29 / 32
EXPOSED = 0.34  # part of the streaming of weights that nothing hides where one register tile has all rows
# Largest error of y for independent normal x and w, in roundings relative to the largest |y|: lambda^2 of the tile's
# worst output times sqrt(BASE + DEPTH * C). Fitted to F(2, 3) to F(8, 3) with 32 to 512 channels: off by at most x1.35.
BASE, DEPTH = 2.0, 0.19
MARGIN = 2.5
STORED = 0.4  # in place of BASE, where v and u are rounded to 2 bytes and nothing else is
FEWEST, KEPT = 8, 5  # on GPUs: channels that it is for; configs of a tile shape, in every layout
SMALL = 9  # whole numbers x, and w in units of the grain, are at most
MANTISSA = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}  # bits


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind != "conv":
        return f"the problem is {p.kind}"
    if p.dtype not in ("float32", "float64"):
        return f"{p.dtype} is not a float type"
    if p.rank > 2:
        return f"{p.rank} axes"
    if all(len(_tiles(p, a)) == 1 for a in range(p.rank)):
        return _why_one(p)
    if any(s > 1 and d > 1 for s, d in zip(p.s, p.d, strict=True)):
        return "an axis has a stride and a dilation"
    for name, channels in (("input", p.icg), ("output", p.ocg)):
        if p.g > 1 and channels % target.lanes:
            return f"{channels} {name} channels a group do not fill vectors of {target.lanes}"
        if channels < target.lanes // 2:
            return f"{channels} {name} channels fill less than half of a vector of {target.lanes}"
    return None


def _why_one(p: Problem) -> str:
    if p.taps == 1:
        return "one tap leaves nothing to save"
    taps, stride, outputs = ("x".join(map(str, values)) for values in (p.k, p.s, p.o))
    return f"{taps} taps at stride {stride} save no products on {outputs} outputs"


def _tiles(p: Problem, axis: int) -> list[int]:
    """Outputs of a tile that an axis admits; 1 is always among them."""
    r, s = p.k[axis], p.s[axis]
    phase = -(-r // s)
    if phase < 2 or phase > TAPS or r < s:
        return [1]
    return [1, *(m for m in range(2, MOST + 1) if m < 2 * -(-p.o[axis] // p.d[axis]))]


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    found: list[Config] = []
    for shape in _shapes(p):  # some of each: budgets for errors and for memory leave few of them
        found += _tile.ranked(p, target, _configs(p, target, shape), seconds, tasks)[:TRIED]
    return _tile.ranked(p, target, found, seconds, tasks)


def _configs(p: Problem, target: Target, shape: Sequence[int]) -> Iterator[Config]:
    lanes = target.lanes
    kb, blocks = math.gcd(p.icg, lanes), -(-p.ocg // lanes)
    for tiles in _groups(p, target, shape):
        count = math.prod(t * d for t, d in zip(tiles, p.d, strict=True))
        for rw, v in _register_tiles(p, target, count, blocks, kb):
            for ku in _tile.unrolls(rw, v, kb, target)[-2:]:
                config = {"xb": lanes, "yb": lanes, "kb": kb, "rw": rw, "v": v, "ku": ku}
                for a in range(p.rank):
                    config |= {f"m{a}": shape[a], f"t{a}": tiles[a]}
                yield from ({**config, "kt": kt} for kt in _chunks(p, target, config))


def _shapes(p: Problem) -> list[tuple[int, ...]]:
    """Outputs of a tile, per axis: those with the fewest products; and with the fewest weights among those that save
    at least a third of the products, as small images read all of the weights for few tiles."""
    found = [m for m in itertools.product(*(_tiles(p, a) for a in range(p.rank))) if max(m) > 1]
    few = sorted(found, key=lambda m: (_multiplied(p, m), max(m) / min(m)))
    slim = sorted(
        (m for m in few if 1.5 * _multiplied(p, m) < p.taps * math.prod(p.o)),
        key=lambda m: _weights(p, m) * _multiplied(p, m),
    )
    even = [m for m in few if len(set(m)) == 1]
    return list(dict.fromkeys([*few[: PAIRS // 2], *slim[: PAIRS // 2], *even]))


def _multiplied(p: Problem, m: Sequence[int]) -> int:
    """Products of an input and an output channel."""
    return math.prod(
        form_of(b, k, s).n * d * -(-o // (d * b)) for b, k, s, d, o in zip(m, p.k, p.s, p.d, p.o, strict=True)
    )


def _weights(p: Problem, m: Sequence[int]) -> int:
    """Transformed weights of an input and an output channel."""
    return math.prod(form_of(b, k, s).n for b, k, s in zip(m, p.k, p.s, strict=True))


def _groups(p: Problem, target: Target, m: Sequence[int]) -> list[tuple[int, ...]]:
    """Tiles of a group, per axis: as many as keep their transform in parts of L2, whole rows first; and even shares to
    threads."""
    counts = [-(-o // (d * b)) for o, d, b in zip(p.o, p.d, m, strict=True)]
    one = 4 * _weights(p, m) * p.icg * math.prod(p.d)
    found: dict[tuple[int, ...], None] = {}
    fair = math.prod(counts) / target.threads
    rooms = [share * target.l2 / one for share in SHARES]
    for room in [*rooms, *(min(room, fair) for room in rooms if target.threads > 1)]:
        last = next(t for t in _tile.even(counts[-1]) if t <= room or t == 1)
        rows = [next(t for t in _tile.even(counts[0]) if t * last <= room or t == 1)] if p.rank == 2 else []
        found[(*rows, last)] = None
    return list(found)


def _register_tiles(p: Problem, target: Target, count: int, blocks: int, kb: int) -> list[tuple[int, int]]:
    found = dict.fromkeys(_tile.tiles(count, blocks, target, depth=kb))
    return sorted(found, key=lambda tile: _tile.row_cycles(count, *tile, p.icg, target) / tile[1])[:3]


def _chunks(p: Problem, target: Target, c: Config) -> list[int]:
    """Tiles of output channels whose products wait for the inverse transform: one, and as many as fill a part of L2."""
    parts = axes(p, c)
    tile = 4 * math.prod(a.form.n * a.count for a in parts) * c["v"] * target.lanes
    most = [kt for kt in _tile.divisors(-(-p.ocg // target.lanes) // c["v"]) if kt == 1 or kt * tile <= target.l2 // 4]
    return sorted({1, most[-1]})


def _shares(p: Problem, target: Target, c: Config) -> int:
    return _tile.shares(_pieces(p, c), -(-p.ocg // c["yb"]) // (c["v"] * c["kt"]), target)


def _pieces(p: Problem, c: Config) -> int:
    return p.mb * p.g * math.prod(axis.groups for axis in axes(p, c))


def tasks(p: Problem, target: Target, c: Config) -> int:
    return _pieces(p, c) * _shares(p, target, c)


def seconds(p: Problem, target: Target, c: Config) -> float:
    """Products as register tiles or as bytes, whichever takes longer, and the transforms. Every register tile reads the
    weights of its product, from L2 what L1 does not keep of them, after the first has brought them from beyond L2; a
    transformed input that L2 does not hold is read again for every chunk."""
    parts, lanes, rates = axes(p, c), target.lanes, target.rates
    count, products = math.prod(a.count for a in parts), math.prod(a.form.n for a in parts)
    inputs, outputs = -(-p.icg // lanes), -(-p.ocg // lanes)
    pieces, shares = _pieces(p, c), _shares(p, target, c)
    row = _tile.row_cycles(count, c["rw"], c["v"], p.icg, target)
    steps = pieces * products * outputs / c["v"] * row * _unrolled(target, c)
    weights, held = 4 * lanes * products * p.icg * outputs, 4 * lanes * products * inputs * count
    row_tiles, block = -(-count // c["rw"]), 4 * lanes * p.icg * c["v"]
    missed = pieces * row_tiles * weights * max(0.0, 1 - L1_KEEPS * target.l1 / block)
    streaming = weights / MEMORY_RATE
    if weights > RESIDENT * target.l2:
        streaming += (pieces - 1) * weights / (MEMORY_RATE if weights > LAST_LEVEL else LAST_RATE)
    again = pieces * held * (outputs / (c["v"] * c["kt"]) + 1) if held > RESIDENT * target.l2 else 0
    reading = missed / (L2_RATE * rates.l2) + (streaming + again) / rates.far
    padded = PADDED * inputs * math.prod(a.extent for a in parts)
    forward = padded + SHARED * inputs * count * _passes(parts, target, inverse=False)
    backward = SHARED * outputs * count * _passes(parts, target, inverse=True)
    transforms = pieces * (forward * shares + backward)
    return (max(steps, reading) + transforms + EXPOSED * streaming / rates.far / row_tiles) / rates.clock


def _unrolled(target: Target, c: Config) -> float:
    if c["ku"] == 1:
        return ROLLED
    return CROWDED if (c["rw"] + 1) * c["v"] > ROOM * target.registers else 1.0


def _passes(parts: Sequence[Axis], target: Target, *, inverse: bool) -> float:
    """Cycles of one tile's transform of a vector of channels."""
    forms = [axis.form for axis in parts]
    cycles = [_pass_cycles(form, target, inverse=inverse) for form in forms]
    if len(forms) == 1:
        return cycles[0]
    columns, rows = (forms[1].n, forms[0].m) if inverse else (forms[1].span, forms[0].n)
    return columns * cycles[0] + rows * cycles[1]


def _pass_cycles(form: Bilinear, target: Target, *, inverse: bool) -> float:
    """Cycles of a 1-D transform: operations with shared sums, loads, stores, and spills of what exceeds registers."""
    rates = target.rates
    loads, stores = (form.n, form.m) if inverse else (form.span, form.n)
    spilled = max(0, loads + 4 - target.registers)
    operations = _operations(form.m, form.r, form.stride, inverse)
    return max(operations / rates.fma, (loads + spilled) / rates.load, stores + spilled) + ENTRY


@lru_cache(maxsize=1024)
def _operations(m: int, r: int, stride: int, inverse: bool) -> float:
    form = form_of(m, r, stride)
    return _transform.operations(form.at if inverse else form.bt)


def grain(p: Problem, c: Config) -> int:
    """The denominators of both transforms of the weights, where every number on the way is held: by the type, or by
    float32 where that has 2 bytes, and then both factors of a product by it."""
    forms = [axis.form for axis in axes(p, c)]
    wanted = sum(_mantissa(c[f"m{a}"], p.k[a], p.s[a]) for a in range(p.rank)) + math.log2(SMALL**2 * p.icg)
    held = wanted <= MANTISSA["float32" if p.dtype in HALVES else p.dtype]
    if p.dtype in HALVES:
        held = held and sum(map(significand, forms)) + math.log2(SMALL) <= MANTISSA[p.dtype]
    return math.prod(denominator(form) for form in forms) if held else 0


def memory(p: Problem, c: Config) -> int:
    parts, size = axes(p, c), 4 if p.dtype == "float32" else 8
    count, products = math.prod(a.count for a in parts), math.prod(a.form.n for a in parts)
    v = products * (-(-p.icg // c["xb"]) * count + 1) * c["xb"]
    prod = products * (c["kt"] * c["v"] * count + 1) * c["yb"]
    return size * (v + prod + math.prod(a.extent for a in parts) * c["xb"])


@lru_cache(maxsize=1024)
def _mantissa(m: int, r: int, stride: int) -> float:
    return mantissa(form_of(m, r, stride))


@lru_cache(maxsize=1024)
def _spread(m: int, r: int, stride: int) -> float:
    return largest_spread(form_of(m, r, stride))


def error(p: Problem, c: Config) -> float:
    """MARGIN times the largest error, relative to the largest |y|, of independent normal data. It grows by lambda in
    the transforms, which is known in closed form, and by the root of the channels in the sums over them."""
    return MARGIN * _spreads(p, c) * math.sqrt(BASE + DEPTH * p.icg)


def _spreads(p: Problem, c: Config) -> float:
    return math.prod(_spread(c[f"m{a}"], p.k[a], p.s[a]) for a in range(p.rank))


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> [oc chunks, *n, oc tiles of a chunk, icg/kb, kb, v * lanes], missing output channels 0: in the
    order in which it is read. The transform runs in float64 over whole numbers and divides once, so that weights that
    are multiples of the denominators lose nothing."""
    from tvm import te, tirx

    forms, width, kb, kt = [axis.form for axis in axes(p, c)], c["v"] * c["yb"], c["kb"], c["kt"]
    tiles = p.g * _blocks(p, c) // c["v"]
    wide, lead = p.oc < tiles * width, (tiles, p.icg // kb, kb)
    whole = [_transform.over_whole_numbers(form.g) for form in forms]

    def taps(t: Any, co: Any, ci: Any, *rest: Any) -> Any:
        *k, lane = rest
        o = t * width + lane
        found = w(tirx.min(o, p.oc - 1), co * kb + ci, *k).astype("float64")
        return tirx.if_then_else(o < p.oc, found, tirx.const(0, "float64")) if wide else found

    found = te.compute((*lead, *p.k, width), taps, name="taps")

    def rows(t: Any, co: Any, ci: Any, i: Any, tap: Any, lane: Any) -> Any:
        values = _transform.times(whole[0][0], lambda k: gathered(t, co, ci, k, tap, lane), "float64")
        return _transform.chosen(i, values)

    if p.rank == 2:
        gathered = found
        found = te.compute((*lead, forms[0].n, p.k[1], width), rows, name="rows")

    def value(chunk: Any, *rest: Any) -> Any:
        *i, t, co, ci, lane = rest
        values = _transform.times(whole[-1][0], lambda k: found(chunk * kt + t, co, ci, *i[:-1], k, lane), "float64")
        over: Any = 1
        for at, (_, divisors) in zip(i, whole, strict=True):
            over = over * _transform.chosen(at, [tirx.const(float(d), "float64") for d in divisors])
        return (_transform.chosen(i[-1], values) / over).astype(w.dtype)

    return te.compute((tiles // kt, *(form.n for form in forms), kt, *lead[1:], width), value, name="packed")


def arrange(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """oc tile, channel | taps gathered | rows, then columns of the transform in vectors."""
    packed = sch.get_sblock("packed")
    chunk, *i, t, co, ci, lane = sch.get_loops(packed)
    sch.reorder(chunk, t, co, ci, *i, lane)
    task = sch.fuse(chunk, t, co)
    if target.threads > 1:
        sch.parallel(task)
    if p.rank == 2:
        rows = sch.get_sblock("rows")
        sch.compute_at(rows, ci, preserve_unit_loops=True)
        *_, i0, tap, width = _tile.own_loops(sch, rows, ci)
        sch.reorder(tap, i0)
        _tile.in_registers(sch, [i0, *sch.split(width, [None, c["yb"]])])
    sch.compute_at(sch.get_sblock("taps"), ci)
    _tile.in_registers(sch, [i[-1], *sch.split(lane, [None, c["yb"]])])


def _blocks(p: Problem, c: Config) -> int:
    """Vectors of output channels of a group."""
    return -(-p.ocg // c["yb"])


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, ob, *o, lane] = AT [ sum over channels of (BT x) * w ] at o's place in its tile, axis by axis."""
    from tvm import te

    parts, lanes, blocks = axes(p, c), c["yb"], _blocks(p, c)
    v = _forward(_pad(x, p, c), p, c)
    co, ci = te.reduce_axis((0, p.icg // c["kb"]), "co"), te.reduce_axis((0, c["kb"]), "ci")

    def product(n: Any, *rest: Any) -> Any:
        *g, ob = rest[: p.rank + 1]
        *i, t, lane = rest[p.rank + 1 :]
        channel = co * c["kb"] + ci
        tile = ob // c["v"]
        weight = w(tile // c["kt"], *i, tile % c["kt"], co, ci, ob % c["v"] * lanes + lane)
        return te.sum(v(n, *g, ob // blocks, *i, channel // c["xb"], t, channel % c["xb"]) * weight, axis=[co, ci])

    groups, products = [axis.groups for axis in parts], [axis.form.n for axis in parts]
    shape = (p.mb, *groups, p.g * blocks, *products, math.prod(axis.count for axis in parts), lanes)
    acc = te.compute(shape, product, name="acc")
    prod = te.compute(shape, lambda *index: acc(*index), name="prod")
    return _inverse(prod, p, c, x.dtype)


def _pad(x: Any, p: Problem, c: Config) -> Any:
    """xp[n, *group, conv group, block, *input of the group, lane] = x there, 0 in the padding."""
    from tvm import te, tirx

    parts, blocks = axes(p, c), -(-p.icg // c["xb"])

    def value(n: Any, *rest: Any) -> Any:
        *g, group, block = rest[: p.rank + 2]
        *at, lane = rest[p.rank + 2 :]
        place = [i * axis.step + j - before for i, axis, j, before in zip(g, parts, at, p.p, strict=True)]
        inside = tirx.all(*(tirx.all(a >= 0, a < extent) for a, extent in zip(place, p.i, strict=True)))
        return tirx.if_then_else(inside, x(n, group * blocks + block, *place, lane), tirx.const(0, x.dtype))

    shape = (p.mb, *(axis.groups for axis in parts), p.g, blocks, *(axis.extent for axis in parts), c["xb"])
    return te.compute(shape, value, name="xp")


def _forward(xp: Any, p: Problem, c: Config) -> Any:
    """v[n, *group, conv group, *i, block, tile, lane] = BT xp of the tile, first along the first axis: rows."""
    from tvm import te

    parts = axes(p, c)
    first, last = parts[0], parts[-1]
    lead, (block, *_, lanes) = xp.shape[: p.rank + 2], xp.shape[p.rank + 2 :]
    tiles = math.prod(axis.count for axis in parts)

    def across(n: Any, *rest: Any) -> Any:
        *at, t, i, column, lane = rest
        row, start = first.start(t // last.count), last.start(t % last.count) + column * last.dilation
        values = _transform.times_by_rows(
            first.form.bt, lambda k: xp(n, *at, row + k * first.dilation, start, lane), xp.dtype
        )
        return _transform.chosen(i, values)

    if p.rank == 2:
        rows = te.compute((*lead, block, tiles, first.form.n, last.form.span, lanes), across, name="rows")

    def value(n: Any, *rest: Any) -> Any:
        at, i, (b, t, lane) = rest[: p.rank + 1], rest[p.rank + 1 : -3], rest[-3:]

        def element(k: int) -> Any:
            if p.rank == 2:
                return rows(n, *at, b, t, i[0], k, lane)
            return xp(n, *at, b, last.start(t) + k * last.dilation, lane)

        return _transform.chosen(i[-1], _transform.times_by_rows(last.form.bt, element, xp.dtype))

    return te.compute((*lead, *(axis.form.n for axis in parts), block, tiles, lanes), value, name="v")


def _inverse(prod: Any, p: Problem, c: Config, dtype: str) -> Any:
    """y = AT prod at o's place in its tile, first along the first axis: sums."""
    from tvm import te

    parts = axes(p, c)
    first, last = parts[0], parts[-1]
    shape = (p.mb, p.g * _blocks(p, c))

    def down(n: Any, ob: Any, ta: Any, tb: Any, pa: Any, pb: Any, i: Any, column: Any, lane: Any) -> Any:
        (ga, ta), (gb, tb) = first.in_group(ta, pa), last.in_group(tb, pb)
        t = ta * last.count + tb
        values = _transform.times_by_columns(first.form.at, lambda k: prod(n, ga, gb, ob, k, column, t, lane), dtype)
        return _transform.chosen(i, values)

    if p.rank == 2:
        tiles = [axis.groups * axis.tiles for axis in parts]
        sums = te.compute((*shape, *tiles, *p.d, first.form.m, last.form.n, c["yb"]), down, name="sums")

    def value(n: Any, ob: Any, *rest: Any) -> Any:
        *o, lane = rest
        tile, phase, i = zip(*(axis.place(at) for axis, at in zip(parts, o, strict=True)), strict=True)
        group, t = last.in_group(tile[-1], phase[-1])

        def element(k: int) -> Any:
            return sums(n, ob, *tile, *phase, i[0], k, lane) if p.rank == 2 else prod(n, group, ob, k, t, lane)

        return _transform.chosen(i[-1], _transform.times_by_columns(last.form.at, element, dtype))

    return te.compute((*shape, *p.o, c["yb"]), value, name="y")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, group of tiles, share | channels | padded rows | tile | v | chunk of oc | products | oc, tile | y by rows."""
    parts, y, z = axes(p, c), sch.get_sblock("y"), sch.get_sblock("z")
    n, ob, *o, lane = sch.get_loops(y)
    group, share, chunk, vector = sch.split(ob, [p.g, _shares(p, target, c), None, c["kt"] * c["v"]])
    split = [sch.split(at, [a.groups, a.tiles, a.form.m, a.dilation]) for a, at in zip(parts, o, strict=True)]
    outer, tiles, inner, phases = zip(*split, strict=True)
    sch.reorder(n, *outer, group, share, chunk, vector, *tiles, *phases, *inner, lane)
    task = sch.fuse(n, *outer, group, share)
    if target.threads > 1:
        sch.parallel(task)
    if p.rank == 2:
        _place_pass(sch, sch.get_sblock("sums"), tiles[-1])
    _tile.in_registers(sch, [inner[-1], lane])
    if max(p.d) == 1:
        _tile.place_epilogue(sch, z, inner[0] if p.rank == 2 else phases[-1], c["yb"])
    else:  # the outputs of one of several interleaved tiles are no contiguous run
        _tile.place_epilogue_over_tiles(sch, z, tiles[-1])
    _place_products(sch, p, target, c, chunk)
    _place_forward(sch, p, c, task)


def _place_pass(sch: Any, sblock: Any, at: Any) -> None:
    """A transform along the first axis, column by column."""
    sch.compute_at(sblock, at, preserve_unit_loops=True)
    *_, i, column, lane = _tile.own_loops(sch, sblock, at)
    sch.reorder(column, i)
    _tile.in_registers(sch, [i, lane])


def _place_products(sch: Any, p: Problem, target: Target, c: Config, at: Any) -> None:
    """One product of the tile after the other: a GEMM of all tiles of the group by the chunk's output channels."""
    prod, acc = sch.get_sblock("prod"), sch.get_sblock("acc")
    sch.compute_at(prod, at, preserve_unit_loops=True)
    ob, *i, t, lane = _tile.own_loops(sch, prod, at)[-(p.rank + 3) :]
    kt, v = sch.split(ob, [None, c["v"]])
    to, ti = sch.split(t, [None, c["rw"]])
    _tile.split_tail(sch, to, math.prod(axis.count for axis in axes(p, c)) % c["rw"], target)
    sch.reorder(*i, kt, to, ti, v, lane)
    _spread_places(sch, prod, p, c["yb"])
    _tile.in_registers(sch, [ti, v, lane])
    sch.set_scope(acc, 0, "local")  # else it may share memory with rows, where LLVM stores it after every step
    sch.compute_at(acc, to, preserve_unit_loops=True)
    v, *_, ti, lane, co, ci = _tile.own_loops(sch, acc, to)[-(p.rank + 5) :]
    c0, c1 = sch.split(ci, [None, c["ku"]])
    sch.reorder(co, c0, c1, ti, v, lane)
    row_tiles = -(-math.prod(axis.count for axis in axes(p, c)) // c["rw"])
    steps = [to, co, c0, *([c1] if c["v"] % row_tiles == 0 else [])]  # whole lines in each, as even as can be
    _tile.ask_ahead(sch, steps, p.icg * c["v"] * c["yb"])
    _tile.in_registers(sch, [c1, ti, v, lane])
    _tile.in_registers(sch, _tile.own_loops(sch, sch.decompose_reduction(acc, co), to))


def _place_forward(sch: Any, p: Problem, c: Config, at: Any) -> None:
    """Block by block of channels: the padded rows of the group, then tile by tile the transform along both axes."""
    v = sch.get_sblock("v")
    sch.compute_at(v, at, preserve_unit_loops=True)
    *i, block, t, lane = _tile.own_loops(sch, v, at)[-(p.rank + 3) :]
    sch.reorder(block, t, *i, lane)
    _tile.in_registers(sch, [i[-1], lane])
    _spread_places(sch, v, p, c["xb"])
    if p.rank == 2:
        _place_pass(sch, sch.get_sblock("rows"), t)
    xp = sch.get_sblock("xp")
    sch.compute_at(xp, block, preserve_unit_loops=True)
    sch.vectorize(sch.get_loops(xp)[-1])


def _spread_places(sch: Any, sblock: Any, p: Problem, lanes: int) -> None:
    """An odd number of vectors from one place (i, j) of the transform to the next, so that those of a tile, which are
    read or written together, do not share a few sets of L1."""
    sch.storage_align(sblock, 0, 2 * p.rank + 1, 2 * lanes, lanes)


ALGORITHM = Algorithm(
    name="winograd",
    source="arXiv:1509.09308",
    refuses=refuses,
    space=space,
    seconds=seconds,
    pack=pack,
    define=define,
    schedule=schedule,
    error=error,
    memory=memory,
    tasks=tasks,
    arrange=arrange,
    grain=grain,
    mixes=True,
)


def refuses_on_cuda(p: Problem, target: Target) -> str | None:
    assert isinstance(target, GpuTarget)
    if p.kind != "conv":
        return f"the problem is {p.kind}"
    if p.dtype not in ("float32", *HALVES):
        return f"{p.dtype} is neither float32 nor of 2 bytes"
    if p.rank > 2:
        return f"{p.rank} axes"
    if all(len(_tiles(p, a)) == 1 for a in range(p.rank)):
        return _why_one(p)
    if max(p.d) > 1:
        return "an axis is dilated"
    for name, channels in (("input", p.icg), ("output", p.ocg)):
        if channels < FEWEST:
            return f"{channels} {name} channels a group fill less than a step of {FEWEST}"
    if not space_on_cuda(p, target):
        return f"no tile divides the {p.ocg} output channels of a group" if p.g > 1 else "no tile fits memory"
    return None


@lru_cache(maxsize=4096)
def space_on_cuda(p: Problem, target: Target) -> Sequence[Config]:
    """Some of each tile, between all pairs of layouts."""
    assert isinstance(target, GpuTarget)

    def modelled(c: Config) -> float:
        return seconds_on_cuda(p, target, c)

    wide = (_winograd_three, _winograd_fused)
    halves = p.dtype in HALVES and target.capability >= tensor_core.CAPABILITY
    forms = (_winograd_tensor, *wide) if halves else wide
    best = [c for m in _shapes(p) for form in forms for c in sorted(form.configs(p, target, m), key=modelled)[:KEPT]]
    found = [{**c, "xb": xb, "yb": yb} for xb, yb in _matrix.layouts(p, target) for c in best]
    return sorted(found, key=modelled)


def _form(c: Config) -> Any:
    """The file whose kernels a config is of."""
    if _on_tensor_cores(c):
        return _winograd_tensor
    return _winograd_fused if c["fused"] else _winograd_three


def _on_tensor_cores(c: Config) -> bool:
    return "fused" not in c


def _matrices(c: Config) -> Any:
    """The file that says how its matrices lie."""
    return _winograd_tensor if _on_tensor_cores(c) else _winograd_tiles


def seconds_on_cuda(p: Problem, target: Target, c: Config) -> float:
    return float(sum(cost.seconds for cost in _form(c).costs(p, target, c)))


def limit_on_cuda(p: Problem, target: Target, c: Config) -> str:
    """That of the kernel which takes longest."""
    return str(max(_form(c).costs(p, target, c), key=lambda cost: cost.seconds).limit)


def error_on_cuda(p: Problem, c: Config) -> float:
    """As `error`; of 2-byte types what rounds is u and y, and v where tensor cores multiply it."""
    if p.dtype not in HALVES:
        return error(p, c)
    summed = ROUNDING["float32"] / ROUNDING[p.dtype]
    stored = STORED if _on_tensor_cores(c) else STORED / 2
    return 1.0 + MARGIN * _spreads(p, c) * math.sqrt(stored + (BASE + DEPTH * p.icg) * summed**2)


def pack_on_cuda(w: Any, p: Problem, c: Config) -> Any:
    return _matrices(c).pack(w, p, c)


def define_on_cuda(x: Any, w: Any, p: Problem, c: Config) -> Any:
    return _matrices(c).define(x, w, p, c)


def schedule_on_cuda(sch: Any, p: Problem, target: Target, c: Config) -> None:
    _form(c).schedule(sch, p, target, c)


def memory_on_cuda(p: Problem, c: Config) -> int:
    return int(_form(c).memory(p, c))


ON_CUDA = Algorithm(
    name="winograd",
    source="arXiv:1509.09308",
    refuses=refuses_on_cuda,
    space=space_on_cuda,
    seconds=seconds_on_cuda,
    pack=pack_on_cuda,
    define=define_on_cuda,
    schedule=schedule_on_cuda,
    error=error_on_cuda,
    memory=memory_on_cuda,
    arrange=_winograd_cuda.arrange,
    grain=grain,
    limit=limit_on_cuda,
    mixes=True,
    kind="cuda",
)
