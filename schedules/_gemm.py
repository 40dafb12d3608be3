"""Convolution as a product of matrices whose left one is never written down: pixels x channels, summed over taps and
input channels. A thread block owns a tile of it, a thread a tile of that; both operands go through shared memory.

Source: Chetlur et al., cuDNN: Efficient Primitives for Deep Learning (arXiv:1410.0759), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from convc.algorithm import Config
from convc.gpu import MOST_REGISTERS, SCHEDULERS, WARP
from convc.problem import Problem
from convc.schedules import _gpu, _matrix
from convc.schedules._index import ravel, unravel
from convc.schedules._matrix import SPLITS, columns, rows
from convc.target import GpuTarget, Target

VECTOR = 4  # float32 numbers in an access of 16 bytes

# (rows, columns) of threads, and registers of each: rows * tm pixels by columns * tn channels.
THREADS = ((8, 8), (16, 8), (8, 16), (16, 16), (32, 8), (16, 4), (32, 4), (16, 12), (8, 12))
TILES = ((8, 8), (8, 4), (4, 8), (4, 4))
DEPTHS = (16, 8)
GATHER = 14.0  # instructions that bring 16 bytes or less of x: address, test for padding, load, stores
FLAT_GATHER = 40.0  # where tap and channel of each product have to be found out by division
BARRIER = 20.0  # and those of a step's barriers and of its loop
AXES = ("blockIdx.z", "blockIdx.x", "blockIdx.y", "threadIdx.y", "threadIdx.x")


def block_rows(c: Config) -> int:
    return c["ty"] * c["tm"]


def block_columns(c: Config) -> int:
    return c["tx"] * c["tn"]


def steps(p: Problem, c: Config) -> int:
    """Of `bk` products each: whole channels of one tap where they divide, else of all taps' channels in a row."""
    return p.taps * (p.icg // c["bk"]) if p.icg % c["bk"] == 0 else -(-p.reduction // c["bk"])


def part_steps(p: Problem, c: Config) -> int:
    """Those of one of the `sk` parts into which the sum is cut."""
    return -(-steps(p, c) // c["sk"])


def configs(p: Problem, target: GpuTarget, blocks: tuple[int, int]) -> Iterator[Config]:
    """Every config between two layouts that compiles without spills and fits the machine."""
    xb, yb = blocks
    for ty, tx in THREADS:
        for tm, tn in TILES:
            for bk in DEPTHS:
                base = {"xb": xb, "yb": yb, "ty": ty, "tx": tx, "tm": tm, "tn": tn, "bk": bk}
                if not _fits(p, base, target):
                    continue
                for sk in SPLITS:
                    if sk == 1 or steps(p, base) >= 4 * sk:
                        yield {**base, "sk": sk, "db": int(steps(p, base) > sk)}


def _fits(p: Problem, c: Config, target: GpuTarget) -> bool:
    threads = c["ty"] * c["tx"]
    if (c["bk"] * block_columns(c)) % threads:
        return False
    if (c["bk"] * block_rows(c)) % (threads * vector(p, c)):
        return False
    if p.g > 1 and p.ocg % block_columns(c):
        return False
    waste = _gpu.rounded(rows(p), block_rows(c)) * _gpu.rounded(columns(p, c), block_columns(c))
    least = _gpu.rounded(rows(p), 32) * _gpu.rounded(columns(p, c), 32)
    return waste <= 1.6 * least and registers(p, c) <= MOST_REGISTERS - 40 and shared_bytes(c) <= target.l1


def vector(p: Problem, c: Config) -> int:
    """Channels of x that one access reads: those of a block, where a step keeps to the channels of one tap."""
    whole = c["xb"] % VECTOR == 0 and p.icg % c["bk"] == 0
    return VECTOR if whole else 1


def weight_vector(c: Config) -> int:
    return VECTOR if (c["bk"] * block_columns(c)) % (c["ty"] * c["tx"] * VECTOR) == 0 else 1


def registers(p: Problem, c: Config) -> int:
    """An estimate: accumulators, one step's operands, what is on its way to shared memory, and addresses."""
    threads = c["ty"] * c["tx"]
    staged = c["bk"] * (block_rows(c) + block_columns(c)) // threads
    return c["tm"] * c["tn"] + c["tm"] + c["tn"] + staged + 40


def shared_bytes(c: Config) -> int:
    """Two steps' tiles of both operands."""
    return 2 * 4 * c["bk"] * (block_rows(c) + block_columns(c))


def cost(p: Problem, target: GpuTarget, c: Config) -> _gpu.Cost:
    threads, depth = c["ty"] * c["tx"], part_steps(p, c) * c["bk"]
    tiles = -(-rows(p) // block_rows(c)) * -(-columns(p, c) // block_columns(c))
    warps, step = threads / WARP, step_cycles(p, target, c)
    moved = 4.0 * depth * (block_rows(c) + block_columns(c))
    block = _gpu.Block(
        threads, registers(p, c), shared_bytes(c), part_steps(p, c) * step + 2 * c["tm"] * c["tn"] * warps,
        part_steps(p, c) * max(0.0, _gpu.LATENCY - step), moved,
    )  # fmt: skip
    return _matrix.with_sums(_gpu.cost(block, tiles * c["sk"], _matrix.compulsory(p), target.gpu), p, target, c)


def step_cycles(p: Problem, target: GpuTarget, c: Config) -> float:
    """Of a thread block alone on its multiprocessor: multiply-adds, or all instructions at one a cycle and scheduler,
    or reads of shared memory, 8 lanes a cycle whatever they have in common, whichever is slowest."""
    threads, tile = c["ty"] * c["tx"], c["tm"] * c["tn"]
    reads = (c["tm"] + c["tn"]) / VECTOR
    gathers = c["bk"] * block_rows(c) / (threads * vector(p, c))
    copies = 3 * c["bk"] * block_columns(c) / (threads * weight_vector(c))
    copies += (GATHER if p.icg % c["bk"] == 0 else FLAT_GATHER) * gathers
    issued = c["bk"] * (tile + reads) + copies + BARRIER
    return threads / WARP * max(c["bk"] * tile * WARP / target.gpu.fma, issued / SCHEDULERS, 4 * c["bk"] * reads)


seconds, limit = _gpu.modelled(cost)


def memory(p: Problem, c: Config) -> int:
    return _matrix.parts_bytes(p, c, (block_rows(c), block_columns(c)))


def pack(w: Any, p: Problem, c: Config) -> Any:
    """w of the model -> [steps of all parts, bk, channels in tiles], 0 where there is nothing."""
    from tvm import te, tirx

    across = -(-columns(p, c) // block_columns(c))
    tiles = (across, c["tx"], c["tn"])

    def value(step: Any, k: Any, *tile: Any) -> Any:
        o = ravel(tile, tiles)
        inside, tap, channel = _place(p, c, step, k)
        taps = unravel(tap, p.k)
        inside = tirx.all(inside, o < p.oc)
        at = (channel, tirx.min(o, p.oc - 1)) if p.kind == "matmul" else (tirx.min(o, p.oc - 1), channel, *taps)
        return tirx.if_then_else(inside, w(*at), tirx.const(0, w.dtype))

    return te.compute((part_steps(p, c) * c["sk"], c["bk"], *tiles), value, name="packed")


def _place(p: Problem, c: Config, step: Any, k: Any) -> tuple[Any, Any, Any]:
    """Of product k of a step: whether there is one, its tap and its channel in the group, both always valid."""
    from tvm import tirx

    if p.icg % c["bk"] == 0:
        inside = step < steps(p, c) if part_steps(p, c) * c["sk"] > steps(p, c) else tirx.const(True, "bool")
        step = tirx.min(step, steps(p, c) - 1) if part_steps(p, c) * c["sk"] > steps(p, c) else step
        return inside, step % p.taps, step // p.taps * c["bk"] + k
    at = step * c["bk"] + k
    exact = p.reduction == part_steps(p, c) * c["sk"] * c["bk"]
    inside = tirx.const(True, "bool") if exact else at < p.reduction
    at = at if exact else tirx.min(at, p.reduction - 1)
    return inside, at // p.icg, at % p.icg


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """col[group, step, k, pixel] from x; acc[part, pixel, channel], both cut into tiles; the same without tiles; y."""
    from tvm import te

    tall, wide = block_rows(c), block_columns(c)
    down, across, depth = -(-rows(p) // tall), -(-columns(p, c) // wide), part_steps(p, c)

    def gathered(group: Any, step: Any, k: Any, *tile: Any) -> Any:
        return _matrix.element(x, p, c, tall, group, ravel(tile, tiles), _place(p, c, step, k))

    tiles = (down, c["ty"], c["tm"])
    col = te.compute((p.g, depth * c["sk"], c["bk"], *tiles), gathered, name="col")
    step, k = te.reduce_axis((0, depth), "step"), te.reduce_axis((0, c["bk"]), "k")
    shape = (c["sk"], down, across, c["ty"], c["tx"], c["tm"], c["tn"])

    def product(part: Any, bi: Any, bj: Any, ty: Any, tx: Any, i: Any, j: Any) -> Any:
        at, group = part * depth + step, bj * wide // p.ocg if p.g > 1 else 0
        return te.sum(_gpu.wide(col(group, at, k, bi, ty, i)) * _gpu.wide(w(at, k, bj, tx, j)), axis=[step, k])

    acc = te.compute(shape, product, name="acc")

    def place_of(m: Any, o: Any) -> tuple[Any, ...]:
        ty, tx = m // c["tm"] % c["ty"], o // c["tn"] % c["tx"]
        return m // tall, o // wide, ty, tx, m % c["tm"], o % c["tn"]

    return _matrix.result(acc, p, c, (tall, wide), place_of)


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """block of pixels, block of channels, part | threads | steps, each by way of shared memory | k | registers."""
    acc, z = sch.get_sblock("acc"), sch.get_sblock("z")
    _gpu.inline(sch, {"t", "y" if c["sk"] == 1 else "matrix"})
    _matrix.flatten(sch, z, p, c)
    if c["sk"] == 1:
        thread = _bind_tiles(sch, z, p, c)
        for sblock in (sch.get_sblock("matrix"), acc):
            sch.set_scope(sblock, 0, "local")
            sch.compute_at(sblock, thread, preserve_unit_loops=True)
        for loop in sch.get_loops(sch.get_sblock("matrix"))[-2:]:
            sch.unroll(loop)
        *_, i, j, step, k = sch.get_loops(acc)
        sch.reorder(step, k, i, j)
    else:
        _matrix.sum_parts(sch, z)
        part, bi, bj, thread_y, thread, i, j, step, k = sch.get_loops(acc)
        sch.reorder(step, k, i, j)
        for axis, loop in zip(AXES, (part, bi, bj, thread_y, thread), strict=True):
            sch.bind(loop, axis)
        kept = sch.cache_write(acc, 0, "local")
        sch.reverse_compute_at(kept, thread)
        _vectorize(sch, kept)
    _stage(sch, acc, step, p, c)
    for index in (0, 1):
        held = sch.cache_read(acc, index, "local")
        sch.compute_at(held, k)
        _vectorize(sch, held)
    for loop in (k, i, j):
        sch.unroll(loop)
    sch.decompose_reduction(acc, step)


def _bind_tiles(sch: Any, z: Any, p: Problem, c: Config) -> Any:
    """z's loops in the order of the accumulators; the loop at which a thread's tile must be complete."""
    from convc.lower.guard import GUARD

    m, o = sch.get_loops(z)
    bi, ty, i = sch.split(m, [None, c["ty"], c["tm"]], disable_predication=True)
    bj, tx, j = sch.split(o, [None, c["tx"], c["tn"]], disable_predication=True)
    sch.reorder(bi, bj, ty, tx, i, j)
    for axis, loop in zip(AXES[1:], (bi, bj, ty, tx), strict=True):
        sch.bind(loop, axis)
    sch.unroll(i)
    together = VECTOR if p.oc % VECTOR == 0 and c["yb"] % VECTOR == 0 else 1
    j, lane = sch.split(j, [None, together])
    sch.unroll(j)
    sch.vectorize(lane)
    sch.annotate(z, GUARD, [1, together])
    return tx


def _stage(sch: Any, acc: Any, step: Any, p: Problem, c: Config) -> None:
    """Both operands of a step in shared memory, copied by all threads of the block."""
    col = sch.get_sblock("col")
    sch.set_scope(col, 0, "shared")
    sch.compute_at(col, step)
    *_, k, ty, i = sch.get_loops(col)
    m = sch.fuse(ty, i)
    if (lanes := vector(p, c)) > 1:
        k, lane = sch.split(k, [None, lanes])
        sch.reorder(k, m, lane)
        _copy(sch, sch.fuse(k, m), lane, c)
    else:
        _copy(sch, sch.fuse(k, m), None, c)
    w = sch.cache_read(acc, 1, "shared")
    sch.compute_at(w, step)
    flat, lane = sch.split(sch.fuse(*sch.get_loops(w)[-3:]), [None, weight_vector(c)])
    _copy(sch, flat, lane, c)
    if c["db"]:
        # While a step's tiles are multiplied, the next one's are on their way: asked for before, stored after.
        for copied in (col, w):
            sch.annotate(copied, "tirx.manifest_shared_memory_local_stage", 1)
            sch.annotate(copied, "double_buffer_scope", 0)
        sch.annotate(step, "software_pipeline_stage", [0, 0, 0, 0, 1])
        sch.annotate(step, "software_pipeline_order", [0, 3, 1, 4, 2])


def _vectorize(sch: Any, copy: Any) -> None:
    _, lanes = sch.split(sch.get_loops(copy)[-1], [None, VECTOR])
    sch.vectorize(lanes)


def _copy(sch: Any, flat: Any, lane: Any | None, c: Config) -> None:
    _, ty, tx = sch.split(flat, [None, c["ty"], c["tx"]])
    sch.bind(ty, "threadIdx.y")
    sch.bind(tx, "threadIdx.x")
    if lane is not None:
        sch.vectorize(lane)
