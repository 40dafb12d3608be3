"""Winograd on GPUs in three kernels: tiles of x transformed, one product of matrices for each place of the transform,
and the inverse transform with the epilogue. What lies between them is in memory, or in L2 where it is small.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016, arXiv:1509.09308).

Names as on CPUs: an axis has tiles of m outputs from n products. Matrices are cut as in `_gemm`: a thread block has
`ty` x `tx` threads of `tm` tiles by `tn` output channels each, and takes `bk` channels in a step. A thread's tiles and
channels come in vectors of 4 that lie `ty` or `tx` vectors apart, so that neighbouring threads read neighbouring banks.
v[*n, group, block of tiles, step, bk, tm/4, ty, 4], the transformed input; u[*n, block of channels, step, bk, tn/4, tx,
4], the weights; acc[*n, vector of channels, tile, 4], the products. Copies of `ahead` steps are on their way to shared
memory while one is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from convc.algorithm import Config
from convc.gpu import MOST_REGISTERS, STATIC_SHARED, Gpu
from convc.problem import Problem
from convc.schedules import _gemm, _gpu, _transform
from convc.schedules._tiling import axes, form_of
from convc.target import GpuTarget, Target

VECTOR = 4  # float32 numbers in an access of 16 bytes
TRANSFORMERS = 128  # threads of a block that transforms
ACCUMULATED = "float32"  # what products are added in


# (rows, columns) of threads, and of each thread's tile.
THREADS = (
    (8, 8), (16, 8), (8, 16), (16, 16), (32, 8), (8, 32), (16, 4), (32, 4), (4, 8), (4, 16), (4, 32), (2, 32)
)  # fmt: skip
TILES = ((8, 8), (8, 4), (4, 8), (4, 4))
DEPTHS = (16, 8)
ASYNC = (8, 0)  # the capability from which copies to shared memory wait for nobody
HELD = 160  # registers that a thread's window may take
MOST_MEMORY = 1 << 30  # bytes of v and acc
ADDRESSES = 50  # instructions of a thread that transforms, beside loads, stores and arithmetic


def configs(p: Problem, target: GpuTarget, m: Sequence[int]) -> Iterator[Config]:
    """Those of tiles of m outputs that compile without spills and fit the machine, between row-major tensors."""
    whole = {f"m{a}": b for a, b in enumerate(m)} | {
        f"t{a}": -(-o // (b * d)) for a, (o, b, d) in enumerate(zip(p.o, m, p.d, strict=True))
    }
    for ty, tx in THREADS:
        for tm, tn in TILES:
            for bk in DEPTHS:
                c = {"xb": 1, "yb": 1, **whole, "ty": ty, "tx": tx, "tm": tm, "tn": tn, "bk": bk}
                if _fits(p, c):
                    yield {**c, "ahead": aheads(p, target, c)[0]}


def aheads(p: Problem, target: GpuTarget, c: Config) -> list[int]:
    """Steps whose copies may be on their way, most first: as there are some, and shared memory for them. Of two, TVM
    cannot tell how many to wait for."""
    most = min(1, steps(p, c) - 1) if target.capability >= ASYNC else 0
    return [a for a in range(most, -1, -1) if (a + 1) * _step_bytes(c) <= STATIC_SHARED]


def _fits(p: Problem, c: Config) -> bool:
    threads = c["ty"] * c["tx"]
    if any(c["bk"] * n % threads or c["bk"] * n % TRANSFORMERS for n in (tall(c), wide(c))):
        return False
    if p.g > 1 and p.ocg % wide(c):
        return False
    held = max(side.held for side in _work(p, c).sides)
    return held <= HELD and _step_bytes(c) <= STATIC_SHARED and memory(p, c) <= MOST_MEMORY


@dataclass(frozen=True)
class Side:
    """What a thread of a transform does: numbers that it loads and stores, arithmetic, and how many it holds at once,
    between its two passes and for one of them."""

    loads: int
    stores: int
    arithmetic: float
    held: int


@dataclass(frozen=True)
class Work:
    """What tiles of some size make of a problem: `tiles`, places of the transform, and its two sides."""

    tiles: int
    places: int
    sides: tuple[Side, Side]


def _work(p: Problem, c: Config) -> Work:
    return _work_of(p, tuple(c[f"m{a}"] for a in range(p.rank)))


@lru_cache(maxsize=4096)
def _work_of(p: Problem, m: tuple[int, ...]) -> Work:
    forms = [form_of(b, k, s) for b, k, s in zip(m, p.k, p.s, strict=True)]
    tiles = p.mb * math.prod(-(-o // (b * d)) * d for o, b, d in zip(p.o, m, p.d, strict=True))
    places = [form.n for form in forms]
    inverse = _side(places, list(m), [_transform.operations(form.at) for form in forms])
    forward = _side([form.span for form in forms], places, [_transform.operations(form.bt) for form in forms])
    return Work(tiles, math.prod(places), (forward, inverse))


def _side(taken: Sequence[int], given: Sequence[int], passes: Sequence[float]) -> Side:
    if len(taken) == 1:
        return Side(taken[0], given[0], passes[0], taken[0])
    arithmetic = passes[0] * taken[1] + passes[1] * given[0]
    return Side(math.prod(taken), math.prod(given), arithmetic, given[0] * taken[1] + taken[0])


def registers(c: Config) -> int:
    """An estimate of those of a thread that multiplies: accumulators, the operands of two products, addresses."""
    return c["tm"] * c["tn"] + 2 * (c["tm"] + c["tn"]) + 26


def _step_bytes(c: Config) -> int:
    """Of shared memory."""
    return 4 * c["bk"] * (tall(c) + wide(c))


def memory(p: Problem, c: Config) -> int:
    """v and acc."""
    return _between(p, c, _depth(p, c)) + _between(p, c, _columns(p, c))


def _between(p: Problem, c: Config, channels: int) -> int:
    """Bytes of the transform of all tiles."""
    work = _work(p, c)
    return 4 * work.places * _gpu.rounded(work.tiles, tall(c)) * channels


def _depth(p: Problem, c: Config) -> int:
    """Input channels, those that fill the last step of a group counted."""
    return p.g * steps(p, c) * c["bk"]


def _columns(p: Problem, c: Config) -> int:
    """Output channels, those that fill the last block counted."""
    return _gpu.rounded(p.oc, wide(c))


def seconds(p: Problem, target: Target, c: Config) -> float:
    return sum(cost.seconds for cost in costs(p, target, c))


def limit(p: Problem, target: Target, c: Config) -> str:
    """That of the kernel which takes longest."""
    return max(costs(p, target, c), key=lambda cost: cost.seconds).limit


def costs(p: Problem, target: Target, c: Config) -> tuple[_gpu.Cost, _gpu.Cost, _gpu.Cost]:
    """Of the three kernels. What lies between two of them comes from L2 if half of it holds that."""
    assert isinstance(target, GpuTarget)
    work, gpu = _work(p, c), target.gpu
    v, acc = _between(p, c, _depth(p, c)), _between(p, c, _columns(p, c))
    far_v, far_acc = (size if size > gpu.l2 / 2 else 0 for size in (v, acc))
    x, y = 4 * p.mb * p.ic * math.prod(p.i), 4 * p.mb * p.oc * math.prod(p.o)
    forward, inverse = (_transformer(side, gpu) for side in work.sides)
    rows = _gpu.rounded(work.tiles, tall(c))
    return (
        _gpu.cost(forward, rows * _depth(p, c) // TRANSFORMERS, x + far_v, gpu),
        _products(p, gpu, c, far_v + far_acc),
        _gpu.cost(inverse, -(-work.tiles * p.oc // TRANSFORMERS), y + far_acc, gpu),
    )


def _transformer(side: Side, gpu: Gpu) -> _gpu.Block:
    """A block of threads that transform; a window's loads are all on their way at once."""
    instructions = side.arithmetic + 2 * (side.loads + side.stores) + ADDRESSES
    return _gpu.Block(
        TRANSFORMERS, min(MOST_REGISTERS, side.held + 30), 0, TRANSFORMERS * instructions / gpu.fma, _gpu.LATENCY,
        4.0 * TRANSFORMERS * (side.loads + side.stores),
    )  # fmt: skip


def _products(p: Problem, gpu: Gpu, c: Config, far: float) -> _gpu.Cost:
    threads, depth = c["ty"] * c["tx"], steps(p, c) * c["bk"]
    warps = threads / 32
    fma = threads * c["tm"] * c["tn"] / gpu.fma
    loads = warps * 2 * (c["tm"] + c["tn"]) / VECTOR
    step = c["bk"] * (fma + loads / 2)
    waits = max(0.0, _gpu.LATENCY - c["ahead"] * step) * steps(p, c)
    block = _gpu.Block(
        threads, registers(c), (c["ahead"] + 1) * _step_bytes(c), steps(p, c) * step + c["tm"] * c["tn"] * warps,
        waits + _gpu.LATENCY, 4.0 * (depth * (tall(c) + wide(c)) + tall(c) * wide(c)),
    )  # fmt: skip
    work = _work(p, c)
    count = work.places * -(-work.tiles // tall(c)) * _columns(p, c) // wide(c)
    return _gpu.cost(block, count, 4.0 * work.places * _columns(p, c) * depth + far, gpu)


def tall(c: Config) -> int:
    """Tiles of a block."""
    return c["ty"] * c["tm"]


def wide(c: Config) -> int:
    """Output channels of a block."""
    return c["tx"] * c["tn"]


def _down(c: Config) -> tuple[int, int, int]:
    """A block's tiles as threads have them: vectors of a thread, threads, tiles of a vector."""
    return c["tm"] // VECTOR, c["ty"], VECTOR


def _across(c: Config) -> tuple[int, int, int]:
    """The same of output channels."""
    return c["tn"] // VECTOR, c["tx"], VECTOR


def steps(p: Problem, c: Config) -> int:
    return -(-p.icg // c["bk"])


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> u, 0 where there is no channel. As on CPUs it is transformed in float64 over whole numbers and
    divided once."""
    from tvm import te, tirx

    forms = [axis.form for axis in axes(p, c)]
    lead = (-(-p.oc // wide(c)), steps(p, c), c["bk"], *_across(c))
    whole = [_transform.over_whole_numbers(form.g) for form in forms]

    def tap(bj: Any, step: Any, k: Any, *rest: Any) -> Any:
        o, at = _ravel((bj, *rest[:3]), (0, *_across(c))), rest[3:]
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
    thread = _bind(sch, loops[p.rank :])
    for name in ["rows", "taps"][2 - p.rank :]:
        _keep(sch, name, thread)
    _unroll(sch, loops[: p.rank])


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, ob, *o, lane] = AT [ sum over channels of (BT x) * u ] at o's place in its tile, axis by axis."""
    return _inverse(_product(_forward(x, p, c), w, p, c), p, c)


def _forward(x: Any, p: Problem, c: Config) -> Any:
    """v = BT x of the tile, first along the first axis: rows; 0 where there is no channel, anything where no tile."""
    from tvm import te

    parts = axes(p, c)
    first, last = parts[0], parts[-1]
    lead = (p.g, -(-_work(p, c).tiles // tall(c)), steps(p, c), c["bk"], *_down(c))

    def take(group: Any, bi: Any, step: Any, k: Any, *rest: Any) -> Any:
        tile, at = _ravel((bi, *rest[:3]), (0, *_down(c))), rest[3:]
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

    parts, count = axes(p, c), _work(p, c).tiles
    tile = tirx.min(tile, count - 1) if count % tall(c) else tile
    n, *t = _unravel(tile, (p.mb, *(axis.count for axis in parts)))
    starts = [axis.start(a) + k * axis.dilation - b for axis, a, k, b in zip(parts, t, at, p.p, strict=True)]
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

    across = (-(-p.oc // wide(c)), *_across(c)[:2])
    return te.compute((*products, *across, down, *_down(c), VECTOR), value, name="acc")


def _inverse(acc: Any, p: Problem, c: Config) -> Any:
    """y = AT acc at o's place in its tile, first along the first axis: sums. A thread has a channel of a tile."""
    from tvm import te

    parts, lanes = axes(p, c), c["yb"]
    first, last = parts[0], parts[-1]
    lead = (-(-p.oc // lanes), *([lanes] if lanes > 1 else []), p.mb, *(axis.count for axis in parts))

    def take(*index: Any) -> Any:
        at, i = index[: len(index) - p.rank], index[len(index) - p.rank :]
        o = at[0] * lanes + at[1] if lanes > 1 else at[0]
        t = _ravel(at[-p.rank - 1 :], lead[-p.rank - 1 :])
        *vector, ji = _unravel(o, (0, *_across(c)))
        return acc(*i, *vector, *_unravel(t, (0, *_down(c))), ji)

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
        tile, phase, i = zip(*(axis.place(at) for axis, at in zip(parts, o, strict=True)), strict=True)
        t = [a * axis.dilation + b for axis, a, b in zip(parts, tile, phase, strict=True)]
        return full(ob, *lane, n, *t, *i)

    return te.compute((p.mb, lead[0], *p.o, *([lanes] if lanes > 1 else [])), value, name="y")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """Transform: threads | columns, rows. Products: place, blocks | threads | steps | k | registers. Inverse: threads |
    columns, rows, epilogue."""
    _place_forward(sch, p)
    _place_products(sch, p, c)
    _place_inverse(sch, p, c)


def _place_forward(sch: Any, p: Problem) -> None:
    """Lanes of a block of channels, then tiles, on neighbouring threads."""
    v = sch.get_sblock("v")
    loops = sch.get_loops(v)
    places, (group, bi, step, k, *tile) = loops[: p.rank], loops[p.rank :]
    ko, lane = sch.split(k, [None, VECTOR])
    outer = [group, bi, step, ko, *tile, lane]
    sch.reorder(*outer, *places)
    _place_passes(sch, ("taken", "rows"), _bind(sch, outer), p.rank)
    _unroll(sch, places)


def _place_passes(sch: Any, names: Sequence[str], at: Any, rank: int) -> None:
    """A transform along the first axis, column by column of what it takes; in registers."""
    if rank == 2:
        rows = _keep(sch, names[1], at)
        i, column = sch.get_loops(rows)[-2:]
        sch.reorder(column, i)
        _unroll(sch, (column, i))
        at = column
    taken = _keep(sch, names[0], at)
    _unroll(sch, sch.get_loops(taken)[-rank:])


def _place_products(sch: Any, p: Problem, c: Config) -> None:
    acc = sch.get_sblock("acc")
    loops = sch.get_loops(acc)
    places, (bj, jo, tx, bi, io, ty, ii, ji, step, k) = loops[: p.rank], loops[p.rank :]
    sch.reorder(*places, bi, bj, ty, tx, step, k, io, ii, jo, ji)
    place = sch.fuse(*places) if p.rank > 1 else places[0]
    for axis, loop in zip(_gemm.AXES, (place, bi, bj, ty, tx), strict=True):
        sch.bind(loop, axis)
    kept = sch.cache_write(acc, 0, "local")
    sch.reverse_compute_at(kept, tx)
    sch.vectorize(sch.get_loops(kept)[-1])
    for index in (0, 1):
        shared = sch.cache_read(acc, index, "shared")
        sch.compute_at(shared, step, preserve_unit_loops=True)
        _copy(sch, sch.fuse(*sch.get_loops(shared)[-4:]), c)
    for index in (0, 1):
        held = sch.cache_read(acc, index, "local")
        sch.compute_at(held, k)
        sch.vectorize(sch.get_loops(held)[-1])
    _unroll(sch, (k, io, ii, jo, ji))
    sch.decompose_reduction(acc, step)
    if c["ahead"]:
        sch.annotate(step, "software_pipeline_stage", [0, 0, c["ahead"]])
        sch.annotate(step, "software_pipeline_order", [0, 1, 2])
        sch.annotate(step, "software_pipeline_async_stages", [0])


def _copy(sch: Any, flat: Any, c: Config) -> None:
    """By all threads of the block, in the widest accesses that divide it among them."""
    threads, size = c["ty"] * c["tx"], int(sch.get(flat).extent)
    lanes = next(n for n in (4, 2, 1) if size % (threads * n) == 0)
    _, ty, tx, lane = sch.split(flat, [None, c["ty"], c["tx"], lanes])
    sch.bind(ty, "threadIdx.y")
    sch.bind(tx, "threadIdx.x")
    if lanes > 1:
        sch.vectorize(lane)


def _place_inverse(sch: Any, p: Problem, c: Config) -> None:
    """Threads as the products lie: the lanes of a block of channels, then tiles."""
    from convc.lower.guard import GUARD

    z, parts = sch.get_sblock("z"), axes(p, c)
    for name in ("t", "y"):
        if name in _sblocks(sch):
            sch.compute_inline(sch.get_sblock(name))
    n, ob, *rest = sch.get_loops(z)
    o, lane = rest[: p.rank], rest[p.rank :]
    split = [
        sch.split(at, [axis.tiles, axis.form.m, axis.dilation], disable_predication=True)
        for at, axis in zip(o, parts, strict=True)
    ]
    at, inner, phases = zip(*split, strict=True)
    outer = [ob, n, *(loop for pair in zip(at, phases, strict=True) for loop in pair), *lane]
    sch.reorder(*outer, *inner)
    thread = _bind(sch, outer)
    sch.annotate(z, GUARD, [1] * (2 + p.rank + len(lane)))
    _unroll(sch, inner)
    full = _keep(sch, "full", thread)
    _unroll(sch, sch.get_loops(full)[-p.rank :])
    _place_passes(sch, ("products", "sums"), thread, p.rank)


def _bind(sch: Any, loops: Sequence[Any]) -> Any:
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


def _unroll(sch: Any, loops: Sequence[Any]) -> None:
    for loop in loops:
        sch.unroll(loop)


def _sblocks(sch: Any) -> list[str]:
    return [sch.get(b).name_hint for b in sch.get_child_blocks(sch.get_sblock("root"))]


def _unravel(flat: Any, extents: Sequence[int]) -> list[Any]:
    found: list[Any] = []
    for extent in reversed(extents[1:]):
        found.append(flat % extent)
        flat = flat // extent
    return [flat, *reversed(found)]


def _ravel(index: Sequence[Any], extents: Sequence[int]) -> Any:
    at = index[0]
    for i, extent in zip(index[1:], extents[1:], strict=True):
        at = at * extent + i
    return at
