"""Winograd on GPUs in three kernels: tiles of x transformed, one product of matrices for each place of the transform,
and the inverse transform with the epilogue. What lies between them is in memory, or in L2 where it is small.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016, arXiv:1509.09308), section 4.

With `ahead` the copies of the next step are on their way to shared memory while one is multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from convc.algorithm import Config
from convc.gpu import STATIC_SHARED, Gpu
from convc.problem import Problem
from convc.schedules import _gemm, _gpu
from convc.schedules import _winograd_cuda as common
from convc.schedules import _winograd_tiles as tiles
from convc.target import GpuTarget, Target

THREADS = (
    (8, 8), (16, 8), (8, 16), (16, 16), (32, 8), (8, 32), (16, 4), (32, 4), (4, 8), (4, 16), (4, 32), (2, 32)
)  # fmt: skip
DEPTHS = (16, 8)
ASYNC = (8, 0)  # the capability from which copies to shared memory wait for nobody
HELD = 160  # registers that a thread's window may take
STAGED = 24  # registers that copies may pass through, where they do
MOST_MEMORY = 1 << 30  # bytes of v and acc


def configs(p: Problem, target: GpuTarget, m: Sequence[int]) -> Iterator[Config]:
    """Those of tiles of m outputs that compile without spills and fit the machine, between row-major tensors."""
    for ty, tx in THREADS:
        for tm, tn in tiles.TILES:
            for bk in DEPTHS:
                c = {**common.tiles(p, m), "fused": 0, "ty": ty, "tx": tx, "tm": tm, "tn": tn, "bk": bk}
                c["ahead"] = int(target.capability >= ASYNC and tiles.steps(p, c) > 1)
                if _fits(p, c):
                    yield c


def _fits(p: Problem, c: Config) -> bool:
    threads = c["ty"] * c["tx"]
    if any(c["bk"] * n % threads or c["bk"] * n % common.TRANSFORMERS for n in (tiles.tall(c), tiles.wide(c))):
        return False
    if p.g > 1 and p.ocg % tiles.wide(c):
        return False
    held, staged = max(side.held for side in common.work(p, c).sides), _shared_bytes(p, c) / (4 * threads)
    if held > HELD or (staged > STAGED and not c["ahead"]):
        return False
    return _shared_bytes(p, c) <= STATIC_SHARED and memory(p, c) <= MOST_MEMORY


def registers(c: Config) -> int:
    """An estimate of those of a thread that multiplies: accumulators, the operands of two products, addresses."""
    return c["tm"] * c["tn"] + 2 * (c["tm"] + c["tn"]) + 26


def _shared_bytes(p: Problem, c: Config) -> int:
    return (c["ahead"] + 1) * c["bk"] * _operands(p, c)


def _operands(p: Problem, c: Config) -> int:
    """Bytes of v and u of a channel."""
    return 4 * tiles.tall(c) + _gpu.size(p) * tiles.wide(c)


def memory(p: Problem, c: Config) -> int:
    """v and acc."""
    return _between(p, c, tiles.depth(p, c)) + _between(p, c, tiles.columns(p, c))


def _between(p: Problem, c: Config, channels: int) -> int:
    """Bytes of the transform of all tiles."""
    work = common.work(p, c)
    return 4 * work.places * _gpu.rounded(work.tiles, tiles.tall(c)) * channels


def costs(p: Problem, target: Target, c: Config) -> tuple[_gpu.Cost, ...]:
    """Of the three kernels."""
    assert isinstance(target, GpuTarget)
    gpu, depth, columns = target.gpu, tiles.depth(p, c), tiles.columns(p, c)
    far = common.far(gpu, _between(p, c, depth), _between(p, c, columns))
    rows = _gpu.rounded(common.work(p, c).tiles, tiles.tall(c))
    forward, inverse = common.transforms(p, gpu, c, rows * depth, common.SUMMED, far)
    return forward, _products(p, gpu, c, sum(far)), inverse


def _products(p: Problem, gpu: Gpu, c: Config, far: float) -> _gpu.Cost:
    threads, depth = c["ty"] * c["tx"], tiles.steps(p, c) * c["bk"]
    warps = threads / 32
    fma = threads * c["tm"] * c["tn"] / gpu.fma
    loads = warps * 2 * (c["tm"] + c["tn"]) / tiles.VECTOR
    step = c["bk"] * (fma + loads / 2)
    waits = max(0.0, _gpu.LATENCY - c["ahead"] * step) * tiles.steps(p, c)
    block = _gpu.Block(
        threads, registers(c), _shared_bytes(p, c), tiles.steps(p, c) * step + c["tm"] * c["tn"] * warps,
        waits + _gpu.LATENCY, float(depth * _operands(p, c) + 4 * tiles.tall(c) * tiles.wide(c)),
    )  # fmt: skip
    work = common.work(p, c)
    count = work.places * -(-work.tiles // tiles.tall(c)) * tiles.columns(p, c) // tiles.wide(c)
    weights = _gpu.size(p) * work.places * tiles.columns(p, c) * depth
    return _gpu.cost(block, count, weights + far, gpu)


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """Transform: threads | columns, rows. Products: place, blocks | threads | steps | k | registers. Inverse: threads |
    columns, rows, epilogue."""
    _place_transform(sch, p)
    _place_products(sch, p, c)
    common.place_results(sch, p, c)


def _place_transform(sch: Any, p: Problem) -> None:
    """Lanes of a block of channels, then tiles, on neighbouring threads."""
    v = sch.get_sblock("v")
    loops = sch.get_loops(v)
    places, (group, bi, step, k, *rest) = loops[: p.rank], loops[p.rank :]
    ko, lane = sch.split(k, [None, tiles.VECTOR])
    outer = [group, bi, step, ko, *rest, lane]
    sch.reorder(*outer, *places)
    common.place_forward(sch, p, common.bind(sch, outer))
    common.unroll(sch, places)


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
    common.unroll(sch, (k, io, ii, jo, ji))
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
