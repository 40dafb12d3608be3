"""Winograd on GPUs: what its kernels compute, and how a thread transforms a tile.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016, arXiv:1509.09308).

Names as on CPUs: an axis has tiles of m outputs from n products. Matrices are cut as in `_gemm`: a thread block has
`ty` x `tx` threads of `tm` tiles by `tn` output channels each, and takes `bk` channels in a step. A thread's tiles and
channels come in vectors of 4 that lie `ty` or `tx` vectors apart, so that neighbouring threads read neighbouring banks.
v[*n, group, block of tiles, step, bk, tm/4, ty, 4], the transformed input; u[*n, block of channels, step, bk, tn/4, tx,
4], the weights; acc[*n, vector of channels, tile, 4], the products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from convc.algorithm import Config
from convc.problem import Problem
from convc.schedules import _gpu, _transform
from convc.schedules._index import ravel, unravel
from convc.schedules._tiling import Axis, axes, form_of
from convc.target import Target

VECTOR = 4  # float32 numbers in an access of 16 bytes
TRANSFORMERS = 128  # threads of a block that transforms
ACCUMULATED = "float32"  # what products are added in
ADDRESSES = 50  # instructions of a thread that transforms, beside loads, stores and arithmetic
TILES = ((8, 8), (8, 4), (4, 8), (4, 4))  # of a thread: tiles by output channels


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


def tall(c: Config) -> int:
    """Tiles of a block."""
    return c["ty"] * c["tm"]


def wide(c: Config) -> int:
    """Output channels of a block."""
    return c["tx"] * c["tn"]


def along(c: Config) -> tuple[int, int, int]:
    """A block's tiles as threads have them: vectors of a thread, threads, tiles of a vector."""
    return c["tm"] // VECTOR, c["ty"], VECTOR


def across(c: Config) -> tuple[int, int, int]:
    """The same of output channels."""
    return c["tn"] // VECTOR, c["tx"], VECTOR


def steps(p: Problem, c: Config) -> int:
    return -(-p.icg // c["bk"])


def depth(p: Problem, c: Config) -> int:
    """Input channels, those that fill the last step of a group counted."""
    return p.g * steps(p, c) * c["bk"]


def columns(p: Problem, c: Config) -> int:
    """Output channels, those that fill the last block counted."""
    return _gpu.rounded(p.oc, wide(c))


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> u, 0 where there is no channel. As on CPUs it is transformed in float64 over whole numbers and
    divided once."""
    from tvm import te, tirx

    forms = [axis.form for axis in axes(p, c)]
    lead = (-(-p.oc // wide(c)), steps(p, c), c["bk"], *across(c))
    whole = [_transform.over_whole_numbers(form.g) for form in forms]

    def tap(bj: Any, step: Any, k: Any, *rest: Any) -> Any:
        o, at = ravel((bj, *rest[:3]), (0, *across(c))), rest[3:]
        channel = step * c["bk"] + k
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
        for place, (_, divisors) in zip(i, whole, strict=True):
            over = over * _transform.chosen(place, [tirx.const(float(d), "float64") for d in divisors])
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


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, ob, *o, lane] = AT [ sum over channels of (BT x) * u ] at o's place in its tile, axis by axis."""
    return _inverse(_product(_forward(x, p, c), w, p, c), p, c)


def _forward(x: Any, p: Problem, c: Config) -> Any:
    """v = BT x of the tile, first along the first axis: rows; 0 where there is no channel, anything where no tile."""
    from tvm import te

    parts = axes(p, c)
    first, last = parts[0], parts[-1]
    lead = (p.g, -(-work(p, c).tiles // tall(c)), steps(p, c), c["bk"], *along(c))

    def take(group: Any, bi: Any, step: Any, k: Any, *rest: Any) -> Any:
        tile, at = ravel((bi, *rest[:3]), (0, *along(c))), rest[3:]
        return _element(x, p, c, group, step * c["bk"] + k, tile, at)

    taken = te.compute((*lead, *(axis.form.span for axis in parts)), take, name="taken")

    def down(*index: Any) -> Any:
        *at, i, column = index
        return _transform.chosen(
            i, _transform.times_by_rows(first.form.bt, lambda k: taken(*at, k, column), str(x.dtype))
        )

    rows = te.compute((*lead, first.form.n, last.form.span), down, name="rows") if p.rank == 2 else taken

    def value(*index: Any) -> Any:
        i, at = index[: p.rank], index[p.rank :]
        values = _transform.times_by_rows(last.form.bt, lambda k: rows(*at, *i[:-1], k), str(x.dtype))
        return _transform.chosen(i[-1], values)

    return te.compute((*(axis.form.n for axis in parts), *lead), value, name="v")


def _element(x: Any, p: Problem, c: Config, group: Any, channel: Any, tile: Any, at: Sequence[Any]) -> Any:
    """x of a channel of a group at a place of a tile, 0 in the padding."""
    from tvm import tirx

    parts, count = axes(p, c), work(p, c).tiles
    tile = tirx.min(tile, count - 1) if count % tall(c) else tile
    n, *t = unravel(tile, (p.mb, *(axis.tiles for axis in parts)))
    starts = [axis.start(a) + k - b for axis, a, k, b in zip(parts, t, at, p.p, strict=True)]
    inside = [test for a, extent in zip(starts, p.i, strict=True) for test in (a >= 0, a < extent)]
    if p.icg % c["bk"]:
        inside.append(channel < p.icg)
        channel = tirx.min(channel, p.icg - 1)
    channel, xb = group * p.icg + channel, c["xb"]
    found = x(n, channel, *starts) if xb == 1 else x(n, channel // xb, *starts, channel % xb)
    return tirx.if_then_else(tirx.all(*inside), found, tirx.const(0, x.dtype))


def _product(v: Any, w: Any, p: Problem, c: Config) -> Any:
    from tvm import te

    products, (_, down, depth) = v.shape[: p.rank], v.shape[p.rank : p.rank + 3]
    step, k = te.reduce_axis((0, depth), "step"), te.reduce_axis((0, c["bk"]), "k")

    def value(*index: Any) -> Any:
        at, (bj, jo, tx, bi, io, ty, ii, ji) = index[: p.rank], index[p.rank :]
        group = bj * wide(c) // p.ocg if p.g > 1 else 0
        left, right = v(*at, group, bi, step, k, io, ty, ii), w(*at, bj, step, k, jo, tx, ji)
        return te.sum(left.astype(ACCUMULATED) * right.astype(ACCUMULATED), axis=[step, k])

    columns = (-(-p.oc // wide(c)), *across(c)[:2])
    return te.compute((*products, *columns, down, *along(c), VECTOR), value, name="acc")


def _inverse(acc: Any, p: Problem, c: Config) -> Any:
    """y = AT acc at o's place in its tile, first along the first axis: sums. A thread has a channel of a tile.

    Tiles are one axis, and its blocks and those of channels whole: so a thread block's share is seen to be its own."""
    from tvm import te

    parts, lanes = axes(p, c), c["yb"]
    first, last = parts[0], parts[-1]
    tiles = (p.mb, *(axis.tiles for axis in parts))
    channels = (columns(p, c) // lanes, *([lanes] if lanes > 1 else []))
    lead = (*channels, _gpu.rounded(math.prod(tiles), tall(c)))

    def take(*index: Any) -> Any:
        (*o, t), i = index[: len(lead)], index[len(lead) :]
        *vector, ji = unravel(ravel(o, channels), (0, *across(c)))
        return acc(*i, *vector, *unravel(t, (0, *along(c))), ji)

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


def sblocks(sch: Any) -> list[str]:
    return [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]
