"""Winograd on GPUs in one kernel: a thread block transforms a slice of the channels of its tiles into shared memory and
multiplies it by transformed weights, each place of the transform by threads of its own. When all channels are summed,
the products go through shared memory to the threads that transform them back.

Source: Yan, Wang and Chu, Optimizing Batched Winograd Convolution on GPUs (PPoPP 2020), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from convc.algorithm import Config
from convc.gpu import WARP, most_registers
from convc.problem import Problem
from convc.schedules import _gpu
from convc.schedules import _winograd_cuda as common
from convc.schedules import _winograd_tiles as tiles
from convc.schedules._tiling import axes
from convc.target import GpuTarget, Target

SHARED = "shared.dyn"  # what ends before the other begins shares its bytes
SPREAD = 16, 8  # numbers from one channel's tiles to the next one's are 8 more than a multiple of 16: then the lanes of
# a block of channels are written to different banks
THREADS = ((4, 4), (2, 4), (4, 2), (2, 2), (4, 8), (8, 4))  # (rows, columns), for each place of the transform
MARGIN = 8  # registers that the estimate may be off by
HALO = 1.5  # times that a number of x is read by a thread block, of those that tiles share and L1 does not keep
LEAST, MOST = 96, 512  # threads of a block
DEPTHS = (8, 4)


def configs(p: Problem, target: GpuTarget, m: Sequence[int]) -> Iterator[Config]:
    """Those of tiles of m outputs that compile without spills and fit the machine, between row-major tensors."""
    if min(-(-o // b) for o, b in zip(p.o, m, strict=True)) < 2 or p.oc <= _gpu.lanes(p, target):
        return  # loops of one iteration are none that threads could share
    for ty, tx in THREADS:
        for tm, tn in tiles.TILES:
            for bk in DEPTHS:
                c = {**common.tiles(p, m), "fused": 1, "ty": ty, "tx": tx, "tm": tm, "tn": tn, "bk": bk}
                if _fits(p, c, target):
                    yield c


def _fits(p: Problem, c: Config, target: GpuTarget) -> bool:
    if not LEAST <= _threads(p, c) <= MOST or (p.g > 1 and p.ocg % tiles.wide(c)):
        return False
    if c["bk"] * tiles.wide(c) % common.TRANSFORMERS:  # what packs the weights
        return False
    room = most_registers(_threads(p, c))
    return _registers(p, c) + MARGIN <= room and _shared_bytes(p, c) <= target.l1


def _threads(p: Problem, c: Config) -> int:
    return common.work(p, c).places * c["ty"] * c["tx"]


def _registers(p: Problem, c: Config) -> int:
    """An estimate: accumulators, beside them the operands of two products or what a transform holds, addresses."""
    apart = 34 if p.rank == 2 else 0  # places of a window, tests for its padding
    held = max(2 * (c["tm"] + c["tn"]), *(side.held + apart for side in common.work(p, c).sides))
    return c["tm"] * c["tn"] + held + 34


def _shared_bytes(p: Problem, c: Config) -> int:
    """A slice of both operands, or the products of one vector of channels a thread."""
    places, (step, offset) = common.work(p, c).places, SPREAD
    row = _gpu.rounded(tiles.tall(c) - offset, step) + offset
    operands = c["bk"] * (4 * row + _gpu.size(p) * tiles.wide(c))
    return places * max(operands, 4 * tiles.tall(c) * c["tx"] * tiles.VECTOR)


def costs(p: Problem, target: Target, c: Config) -> tuple[_gpu.Cost, ...]:
    assert isinstance(target, GpuTarget)
    work, gpu, threads = common.work(p, c), target.gpu, _threads(p, c)
    tall, wide, steps, size = tiles.tall(c), tiles.wide(c), tiles.steps(p, c), _gpu.size(p)
    forward, inverse = work.sides
    warps = -(-threads // WARP)
    product = threads * c["tm"] * c["tn"] / gpu.fma + warps * (c["tm"] + c["tn"]) / tiles.VECTOR
    transform = tall * forward.instructions / gpu.fma  # of a channel
    weights = work.places * wide
    step = c["bk"] * (product + transform + 4 * weights / tiles.VECTOR / gpu.fma)
    ending = tall * wide * (inverse.instructions + inverse.loads) / gpu.fma
    outputs = tall * wide * inverse.stores
    inputs = tall * forward.loads / HALO
    block = _gpu.Block(
        threads, _registers(p, c), _shared_bytes(p, c), steps * step + ending, (steps + 1) * _gpu.LATENCY,
        size * steps * c["bk"] * (inputs + weights) + common.written(c, size) * outputs,
    )  # fmt: skip
    columns = tiles.columns(p, c)
    x, y = p.mb * p.ic * math.prod(p.i), p.mb * p.oc * math.prod(p.o)
    compulsory = float(size) * (x + y + work.places * columns * steps * c["bk"])
    return (_gpu.cost(block, -(-work.tiles // tall) * columns // wide, compulsory, gpu),)


def memory(p: Problem, c: Config) -> int:
    return 0


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """blocks | steps: transform, copy, products | vectors of channels: products to all threads, inverse, epilogue."""
    from tvm import tirx

    from convc.lower.guard import GUARD
    from convc.lower.simple import set_place

    z, parts = sch.get_sblock("z"), axes(p, c)
    _gpu.inline(sch, {"t", "y"})
    n, ob, *rest = sch.get_loops(z)
    o, lane = rest[: p.rank], rest[p.rank :]
    at, inner = common.cut(sch, o, parts)
    vectors, across, each = tiles.across(c)
    bj, jo, vector = sch.split(ob, [None, vectors, across * each // c["yb"]], disable_predication=True)
    tile = [*at] if p.mb == 1 else [n, *at]
    sch.reorder(*tile, bj, jo, vector, *lane, *inner)
    bi, own = sch.split(sch.fuse(*tile), [None, tiles.tall(c)], disable_predication=True)
    sch.reorder(bi, bj, jo, own, vector, *lane)
    sch.bind(bi, "blockIdx.x")
    sch.bind(bj, "blockIdx.y")
    thread, item = _share_evenly(sch, sch.fuse(own, vector, *lane), p, c)
    common.unroll(sch, inner)
    common.place_inverse(sch, p, thread)
    within = tirx.min(item // (c["tx"] * tiles.VECTOR), tiles.tall(c) - 1)
    set_place(sch, thread, z, "full_local", 1 + len(lane), sch.get(bi).loop_var * tiles.tall(c) + within)
    sch.annotate(z, GUARD, [1] * (3 + p.rank + len(lane)))
    sch.unroll(jo)
    _place_products(sch, p, c, bj, jo)


def _share(sch: Any, flat: Any, p: Problem, c: Config) -> Any:
    """Items on all threads of the block, as far as they reach."""
    _, ty, tx = sch.split(flat, [None, common.work(p, c).places, c["ty"] * c["tx"]])
    sch.bind(ty, "threadIdx.y")
    sch.bind(tx, "threadIdx.x")
    return tx


def _share_evenly(sch: Any, flat: Any, p: Problem, c: Config) -> tuple[Any, Any]:
    """The same by as many of the rows of threads as divide the items; the innermost loop, and the item that it is at,
    beyond the last for idle threads."""
    places, each, width = common.work(p, c).places, tiles.VECTOR * c["tm"], c["ty"] * c["tx"]
    at_once = max(n for n in (1, 2, 4, 8, 16, 32) if n <= min(places, each))
    times, row, tx = sch.split(flat, [None, at_once, width])
    _, ty = sch.split(row, [None, places])
    sch.bind(ty, "threadIdx.y")
    sch.bind(tx, "threadIdx.x")
    first, second, third = (sch.get(loop).loop_var for loop in (times, ty, tx))
    return tx, (first * at_once + second) * width + third


def _place_products(sch: Any, p: Problem, c: Config, block: Any, chunk: Any) -> None:
    acc = sch.get_sblock("acc")
    handed = sch.cache_read(sch.get_sblock("products"), 0, SHARED)
    sch.compute_at(handed, chunk, preserve_unit_loops=True)
    *place, bj, jo, tx, bi, io, ty, ii, ji = sch.get_loops(handed)[-p.rank - 8 :]
    sch.reorder(bj, jo, bi, *place, ty, tx, io, ii, ji)
    _bind(sch, place, ty, tx)
    common.unroll(sch, (io, ii))
    sch.vectorize(ji)
    sch.set_scope(acc, 0, "local")
    sch.compute_at(acc, block, preserve_unit_loops=True)
    *place, bj, jo, tx, bi, io, ty, ii, ji, step, k = sch.get_loops(acc)[-p.rank - 10 :]
    sch.reorder(bj, bi, *place, ty, tx, step, k, io, ii, jo, ji)
    _bind(sch, place, ty, tx)
    _stage(sch, p, c, acc, step)
    for index in (0, 1):
        held = sch.cache_read(acc, index, "local")
        sch.compute_at(held, k)
        sch.vectorize(sch.get_loops(held)[-1])
    common.unroll(sch, (k, io, ii, jo, ji))
    sch.decompose_reduction(acc, step)


def _bind(sch: Any, place: list[Any], ty: Any, tx: Any) -> None:
    sch.bind(sch.fuse(*place) if len(place) > 1 else place[0], "threadIdx.y")
    sch.bind(sch.fuse(ty, tx), "threadIdx.x")


def _stage(sch: Any, p: Problem, c: Config, acc: Any, step: Any) -> None:
    """A slice of channels: x transformed, and the weights of the block's output channels."""
    v = sch.get_sblock("v")
    sch.set_scope(v, 0, SHARED)
    sch.compute_at(v, step, preserve_unit_loops=True)
    *place, group, bi, one, k, io, ty, ii = sch.get_loops(v)[-p.rank - 7 :]
    ko, lane = sch.split(k, [None, tiles.VECTOR if c["xb"] > 1 else 1])
    sch.reorder(group, bi, one, ko, io, ty, ii, lane, *place)
    thread = _share(sch, sch.fuse(ko, io, ty, ii, lane), p, c)
    common.unroll(sch, place)
    common.place_forward(sch, p, thread)
    sch.storage_align(v, 0, p.rank + 3, *SPREAD)
    w = sch.cache_read(acc, 1, SHARED)
    sch.compute_at(w, step, preserve_unit_loops=True)
    *place, bj, one, k, jo, tx, lane = sch.get_loops(w)[-p.rank - 6 :]
    sch.reorder(bj, one, *place, k, jo, tx, lane)
    _share(sch, sch.fuse(*place, k, jo, tx), p, c)
    sch.vectorize(lane)
