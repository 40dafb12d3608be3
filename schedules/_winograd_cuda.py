"""Winograd on GPUs: the transforms of weights, inputs and products, and how a thread transforms a tile. How matrices
lie between them is up to the kernel that multiplies them: it says of each of their indices what that is for.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016, arXiv:1509.09308).

Names as on CPUs: an axis has tiles of m outputs from n products; v, the transformed input; u, the weights; acc, the
products. Transforms are computed in float32, those of weights in float64. u is stored in the problem's type, v in what
the kernel multiplies it in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from convc.algorithm import Config
from convc.gpu import MOST_REGISTERS, Gpu
from convc.problem import Problem
from convc.schedules import _gpu, _transform
from convc.schedules._index import ravel, unravel
from convc.schedules._tiling import Axis, axes, form_of
from convc.target import Target

SECTOR = 32  # bytes
TRANSFORMERS = 128  # threads of a block that transforms
ACCUMULATED, SUMMED = "float32", 4  # what products are added in, and its bytes
ADDRESSES = 50  # instructions of a thread that transforms, beside loads, stores and arithmetic

Place = Callable[..., Any]
"""Of an index of a matrix, what it is for; or of that, the element."""


@dataclass(frozen=True)
class Side:
    """What a thread of a transform does: numbers that it loads and stores, arithmetic, and how many it holds at once,
    between its two passes and for one of them."""

    loads: int
    stores: int
    arithmetic: float
    held: int

    @property
    def instructions(self) -> float:
        """Of a thread; an access takes an address or a test as well."""
        return self.arithmetic + 2 * (self.loads + self.stores) + ADDRESSES


@dataclass(frozen=True)
class Work:
    """What tiles of some size make of a problem: `tiles`, places of the transform, and its two sides."""

    tiles: int
    places: int
    sides: tuple[Side, Side]


def tiles(p: Problem, m: Sequence[int]) -> dict[str, int]:
    """The part of a config that says how the outputs are cut: in one group. Tensors are row-major."""
    counts = [-(-o // b) for o, b in zip(p.o, m, strict=True)]
    cut = {f"m{a}": b for a, b in enumerate(m)} | {f"t{a}": t for a, t in enumerate(counts)}
    return {"xb": 1, "yb": 1, **cut}


def work(p: Problem, c: Config) -> Work:
    return _work_of(p, tuple(c[f"m{a}"] for a in range(p.rank)))


@lru_cache(maxsize=4096)
def _work_of(p: Problem, m: tuple[int, ...]) -> Work:
    forms = [form_of(b, k, s) for b, k, s in zip(m, p.k, p.s, strict=True)]
    tiles = p.mb * math.prod(-(-o // b) for o, b in zip(p.o, m, strict=True))
    places = [form.n for form in forms]
    inverse = _side(places, list(m), [_transform.operations(form.at) for form in forms])
    forward = _side([form.span for form in forms], places, [_transform.operations(form.bt) for form in forms])
    return Work(tiles, math.prod(places), (forward, inverse))


def _side(taken: Sequence[int], given: Sequence[int], passes: Sequence[float]) -> Side:
    if len(taken) == 1:
        return Side(taken[0], given[0], passes[0], taken[0])
    arithmetic = passes[0] * taken[1] + passes[1] * given[0]
    return Side(math.prod(taken), math.prod(given), arithmetic, given[0] * taken[1] + taken[0])


def far(gpu: Gpu, *sizes: int) -> list[int]:
    """Bytes of what lies between two kernels that come from memory: none where half of L2 holds it."""
    return [size if size > gpu.l2 / 2 else 0 for size in sizes]


def transforms(
    p: Problem, gpu: Gpu, c: Config, threads: int, stored: int, far: Sequence[int]
) -> tuple[_gpu.Cost, _gpu.Cost]:
    """Of x, by so many threads, and of acc; a number of v has `stored` bytes, `far` bytes of v and of acc in memory."""
    shape, (v, acc), size = work(p, c), far, _gpu.size(p)
    x, y = size * p.mb * p.ic * math.prod(p.i), size * p.mb * p.oc * math.prod(p.o)
    taken, given = shape.sides
    forward, inverse = _transformer(taken, gpu, size, stored), _transformer(given, gpu, SUMMED, written(c, size))
    return (
        _gpu.cost(forward, threads // TRANSFORMERS, x + v, gpu),
        _gpu.cost(inverse, -(-shape.tiles * p.oc // TRANSFORMERS), y + acc, gpu),
    )


def written(c: Config, size: int) -> int:
    """Bytes that L2 sees of a number of y: blocks of channels fill half of its sectors of 32 bytes, and of tiles beside
    one another every number is written to a sector alone."""
    return SECTOR if c["yb"] == 1 else 2 * size


def _transformer(side: Side, gpu: Gpu, loaded: int, stored: int) -> _gpu.Block:
    """A block of threads that transform, of bytes of a number; a window's loads are all on their way at once."""
    return _gpu.Block(
        TRANSFORMERS, min(MOST_REGISTERS, side.held + 30), 0, TRANSFORMERS * side.instructions / gpu.fma,
        _gpu.LATENCY, float(TRANSFORMERS * (side.loads * loaded + side.stores * stored)),
    )  # fmt: skip


def pack(w: Any, p: Problem, c: Config, lead: Sequence[int], place: Place) -> Any:
    """[oc, icg, *k] -> u[*n, *lead], where `place` gives an output channel and a channel of its group; 0 where there is
    none. As on CPUs it is transformed in float64 over whole numbers and divided once."""
    from tvm import te, tirx

    forms = [axis.form for axis in axes(p, c)]
    whole = [_transform.over_whole_numbers(form.g) for form in forms]

    def tap(*index: Any) -> Any:
        o, channel = place(*index[: len(lead)])
        at = index[len(lead) :]
        found = w(tirx.min(o, p.oc - 1), tirx.min(channel, p.icg - 1), *at).astype("float64")
        return tirx.if_then_else(tirx.all(o < p.oc, channel < p.icg), found, tirx.const(0, "float64"))

    found = te.compute((*lead, *p.k), tap, name="taps")

    def row(*index: Any) -> Any:
        *at, i, column = index
        values = _transform.times(whole[0][0], lambda k: taken(*at, k, column), "float64")
        return _transform.chosen(i, values)

    if p.rank == 2:
        taken = found
        found = te.compute((*lead, forms[0].n, p.k[1]), row, name="rows")

    def value(*index: Any) -> Any:
        i, at = index[: p.rank], index[p.rank :]
        values = _transform.times(whole[-1][0], lambda k: found(*at, *i[:-1], k), "float64")
        over: Any = 1
        for row_at, (_, divisors) in zip(i, whole, strict=True):
            over = over * _transform.chosen(row_at, [tirx.const(float(d), "float64") for d in divisors])
        return (_transform.chosen(i[-1], values) / over).astype(w.dtype)

    return te.compute((*(form.n for form in forms), *lead), value, name="packed")


def arrange(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """A thread an input and an output channel."""
    packed = sch.get_sblock("packed")
    loops = sch.get_loops(packed)
    sch.reorder(*loops[p.rank :], *loops[: p.rank])
    thread = bind(sch, loops[p.rank :])
    for name in ["rows", "taps"][2 - p.rank :]:
        _keep(sch, name, thread)
    unroll(sch, loops[: p.rank])


def forward(
    x: Any, p: Problem, c: Config, lead: Sequence[int], place: Place, reach: tuple[int, int], dtype: str
) -> Any:
    """v[*n, *lead] = BT x of the tile in `dtype`, first along the first axis: rows. `place` gives a group, a channel of
    it and a tile, up to `reach` channels and tiles: 0 where there is no channel, anything where there is no tile."""
    from tvm import te

    parts = axes(p, c)
    first, last = parts[0], parts[-1]

    def take(*index: Any) -> Any:
        return _element(x, p, c, place(*index[: len(lead)]), index[len(lead) :], reach)

    taken = te.compute((*lead, *(axis.form.span for axis in parts)), take, name="taken")

    def down(*index: Any) -> Any:
        *at, i, column = index
        values = _transform.times_by_rows(first.form.bt, lambda k: _gpu.wide(taken(*at, k, column)), ACCUMULATED)
        return _transform.chosen(i, values)

    rows = te.compute((*lead, first.form.n, last.form.span), down, name="rows") if p.rank == 2 else taken

    def value(*index: Any) -> Any:
        i, at = index[: p.rank], index[p.rank :]
        values = _transform.times_by_rows(last.form.bt, lambda k: _gpu.wide(rows(*at, *i[:-1], k)), ACCUMULATED)
        return _transform.chosen(i[-1], values).astype(dtype)

    return te.compute((*(axis.form.n for axis in parts), *lead), value, name="v")


def _element(x: Any, p: Problem, c: Config, place: Sequence[Any], at: Sequence[Any], reach: tuple[int, int]) -> Any:
    """x of a channel of a group at a place of a tile, 0 in the padding."""
    from tvm import tirx

    (group, channel, tile), (channels, tiles) = place, reach
    parts, count = axes(p, c), work(p, c).tiles
    tile = tirx.min(tile, count - 1) if tiles > count else tile
    n, *t = unravel(tile, (p.mb, *(axis.tiles for axis in parts)))
    starts = [axis.start(a) + k - b for axis, a, k, b in zip(parts, t, at, p.p, strict=True)]
    inside = [test for a, extent in zip(starts, p.i, strict=True) for test in (a >= 0, a < extent)]
    if channels > p.icg:
        inside.append(channel < p.icg)
        channel = tirx.min(channel, p.icg - 1)
    channel, xb = group * p.icg + channel, c["xb"]
    found = x(n, channel, *starts) if xb == 1 else x(n, channel // xb, *starts, channel % xb)
    return tirx.if_then_else(tirx.all(*inside), found, tirx.const(0, x.dtype))


def inverse(acc: Place, p: Problem, c: Config, reach: tuple[int, int]) -> Any:
    """y = AT acc at o's place in its tile, first along the first axis: sums. A thread has a channel of a tile; `acc`
    gives the product at *n of an output channel and a tile, up to `reach` of them.

    Tiles are one axis, and its blocks and those of channels whole: so a thread block's share is seen to be its own."""
    from tvm import te

    parts, lanes = axes(p, c), c["yb"]
    first, last = parts[0], parts[-1]
    tiles = (p.mb, *(axis.tiles for axis in parts))
    channels = (reach[0] // lanes, *([lanes] if lanes > 1 else []))
    lead = (*channels, reach[1])

    def take(*index: Any) -> Any:
        (*o, t), i = index[: len(lead)], index[len(lead) :]
        return acc(*i, ravel(o, channels), t)

    taken = te.compute((*lead, *(axis.form.n for axis in parts)), take, name="products")

    def down(*index: Any) -> Any:
        *at, i, column = index
        values = _transform.times_by_columns(first.form.at, lambda k: taken(*at, k, column), ACCUMULATED)
        return _transform.chosen(i, values)

    sums = te.compute((*lead, first.form.m, last.form.n), down, name="sums") if p.rank == 2 else taken

    def whole(*index: Any) -> Any:
        *at, i = index
        return _transform.chosen(
            i, _transform.times_by_columns(last.form.at, lambda k: sums(*at, k), ACCUMULATED)
        )

    full = te.compute((*lead, *(axis.form.m for axis in parts)), whole, name="full")

    def value(n: Any, ob: Any, *rest: Any) -> Any:
        o, lane = rest[: p.rank], rest[p.rank :]
        tile, i = zip(*((at // axis.form.m, at % axis.form.m) for axis, at in zip(parts, o, strict=True)), strict=True)
        return full(ob, *lane, ravel((n, *tile), tiles), *i)

    return te.compute((p.mb, -(-p.oc // lanes), *p.o, *channels[1:]), value, name="y")


def cut(sch: Any, o: Sequence[Any], parts: Sequence[Axis]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The loops over outputs as loops over tiles, and over the outputs of a tile."""
    split = [
        sch.split(at, [axis.tiles, axis.form.m], disable_predication=True) for at, axis in zip(o, parts, strict=True)
    ]
    outer, inner = zip(*split, strict=True)
    return outer, inner


def place_forward(sch: Any, p: Problem, thread: Any) -> None:
    _place_passes(sch, ("taken", "rows"), thread, p.rank)


def place_inverse(sch: Any, p: Problem, thread: Any) -> None:
    full = _keep(sch, "full", thread)
    unroll(sch, sch.get_loops(full)[-p.rank :])
    _place_passes(sch, ("products", "sums"), thread, p.rank)


def _place_passes(sch: Any, names: Sequence[str], at: Any, rank: int) -> None:
    """A transform along the first axis, column by column of what it takes; in registers."""
    if rank == 2:
        rows = _keep(sch, names[1], at)
        i, column = sch.get_loops(rows)[-2:]
        sch.reorder(column, i)
        unroll(sch, (column, i))
        at = column
    taken = _keep(sch, names[0], at)
    unroll(sch, sch.get_loops(taken)[-rank:])


def place_results(sch: Any, p: Problem, c: Config) -> None:
    """Threads as the products lie: the lanes of a block of channels, then tiles."""
    from convc.lower.guard import GUARD

    z, parts = sch.get_sblock("z"), axes(p, c)
    _gpu.inline(sch, {"t", "y"})
    n, ob, *rest = sch.get_loops(z)
    o, lane = rest[: p.rank], rest[p.rank :]
    at, inner = cut(sch, o, parts)
    outer = [ob, n, *at, *lane]
    sch.reorder(*outer, *inner)
    thread = bind(sch, outer)
    sch.annotate(z, GUARD, [1] * (2 + p.rank + len(lane)))
    unroll(sch, inner)
    place_inverse(sch, p, thread)


def bind(sch: Any, loops: Sequence[Any]) -> Any:
    block, thread = sch.split(sch.fuse(*loops), [None, TRANSFORMERS], disable_predication=True)
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return thread


def _keep(sch: Any, name: str, at: Any) -> Any:
    """In registers, from `at` on."""
    sblock = sch.get_sblock(name)
    sch.compute_at(sblock, at, preserve_unit_loops=True)
    sch.set_scope(sblock, 0, "local")
    return sblock


def unroll(sch: Any, loops: Sequence[Any]) -> None:
    for loop in loops:
        sch.unroll(loop)
