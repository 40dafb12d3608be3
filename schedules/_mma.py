"""Convolution as a product of matrices on tensor cores: definition and schedule. A thread block owns a tile of pixels x
channels, a warp a part of that in pieces of 16 x 8; both operands go through shared memory, several steps ahead.

Everything moves in chunks of 16 bytes, channels of one pixel or weights of one channel: from memory to shared memory,
and from there to the registers of the lane that multiplies them, with no two lanes of an access on one bank. In shared
memory a chunk of each pixel comes before the next chunks, as they lie in blocks of channels: threads copy what lies
together, a thread from one pixel. On an H200 it made 3 x 3 by 64 channels of 32 images 1.7 times as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from convc.algorithm import Config
from convc.problem import Problem
from convc.schedules import _gpu, _matrix
from convc.schedules._index import unravel
from convc.schedules._matrix import columns, rows
from convc.target import Target

LANES = (8, 4)  # g and t of lane 4 g + t
PIECE = (16, 8)  # rows and columns of a product
AXES = ("blockIdx.z", "blockIdx.x", "blockIdx.y")
THREADS = ("threadIdx.z", "threadIdx.y", "threadIdx.x")  # warp, g, t: lanes are numbered as CUDA does


def block_rows(c: Config) -> int:
    return c["wm"] * c["tm"] * PIECE[0]


def block_columns(c: Config) -> int:
    return c["wn"] * c["tn"] * PIECE[1]


def chunk(p: Problem) -> int:
    """Channels in 16 bytes."""
    return 16 // _gpu.size(p)


def depth(p: Problem, c: Config) -> int:
    """Products that a step adds to an element: `bk` times what the two instructions of a group take."""
    return c["bk"] * LANES[1] * chunk(p)


def is_whole(p: Problem) -> bool:
    """Whether a chunk keeps to the channels of one tap."""
    return p.icg % chunk(p) == 0


def is_vector(p: Problem, c: Config) -> bool:
    """Whether the channels of a chunk lie together in memory, so that one copy moves them: whole chunks of any blocks,
    or one block each, of which the last may have fewer channels. Those of bytes are whole, as TVM copies 16 bytes under
    a condition asynchronously of no type of 1 byte."""
    if is_whole(p):
        return c["xb"] % chunk(p) == 0
    return p.g == 1 and c["xb"] == chunk(p) and _gpu.size(p) > 1


def held(p: Problem, c: Config) -> int:
    """Channels of a group, where they are copied as chunks with the zeros that fill the last one."""
    return _gpu.rounded(p.icg, chunk(p)) if is_vector(p, c) else p.icg


def steps(p: Problem, c: Config) -> int:
    return -(-p.taps * held(p, c) // depth(p, c))


def part_steps(p: Problem, c: Config) -> int:
    """Those of one of the `sk` parts into which the sum is cut."""
    return -(-steps(p, c) // c["sk"])


def _place(p: Problem, c: Config, step: Any, k: Any, q: Any, e: Any) -> tuple[Any, Any, Any]:
    """Of element e of chunk q of group k of a step: whether there is one, its tap and its channel, both always valid
    but for channels of the zeros that fill a chunk. A step is of one tap where its channels divide, and then taps come
    before channels: they share most of x."""
    from tvm import tirx

    size, true = chunk(p), tirx.const(True, "bool")
    total, channels = part_steps(p, c) * c["sk"], held(p, c)
    if channels % depth(p, c) == 0:
        found = step < steps(p, c) if total > steps(p, c) else true
        step = tirx.min(step, steps(p, c) - 1) if total > steps(p, c) else step
        return found, step % p.taps, step // p.taps * depth(p, c) + (k * LANES[1] + q) * size + e
    exact = total * depth(p, c) == p.taps * channels
    at = step * (depth(p, c) // size) + k * LANES[1] + q
    if channels % size == 0:
        blocks = channels // size
        found = true if exact else at < p.taps * blocks
        at = at if exact else tirx.min(at, p.taps * blocks - 1)
        return found, at // blocks, at % blocks * size + e
    at = at * size + e
    found = true if exact else at < p.reduction
    at = at if exact else tirx.min(at, p.reduction - 1)
    return found, at // p.icg, at % p.icg


def packed(p: Problem, c: Config) -> tuple[int, ...]:
    """Extents of packed weights: steps of all parts, tiles, groups, pieces of columns, g, t, chunk."""
    across = -(-columns(p, c) // block_columns(c))
    return part_steps(p, c) * c["sk"], across, c["bk"], c["wn"] * c["tn"], *LANES, chunk(p)


def weight(w: Any, p: Problem, c: Config, step: Any, tile: Any, k: Any, piece: Any, g: Any, t: Any, e: Any) -> Any:
    """What packed weights have there of w of the model: 0 where there is none."""
    from tvm import tirx

    o = tile * block_columns(c) + piece * PIECE[1] + g
    inside, tap, channel = _place(p, c, step, k, t, e)
    inside, o = tirx.all(inside, o < p.oc, channel < p.icg), tirx.min(o, p.oc - 1)
    channel = tirx.min(channel, p.icg - 1)
    at = (channel, o) if p.kind == "matmul" else (o, channel, *unravel(tap, p.k))
    return tirx.if_then_else(inside, w(*at), tirx.const(0, w.dtype))


def pack(w: Any, p: Problem, c: Config) -> Any:
    """w of the model -> [steps of all parts, tiles, groups, pieces of columns, g, t, chunk]."""
    from tvm import te

    return te.compute(packed(p, c), lambda *at: weight(w, p, c, *at), name="packed")


def gathered(x: Any, p: Problem, c: Config) -> Any:
    """col[group, step, k, tile of rows, t, row, chunk], x as a matrix by group of products."""
    from tvm import te, tirx

    from convc.lower.copies import first

    tall = block_rows(c)

    def value(group: Any, step: Any, k: Any, tile: Any, q: Any, row: Any, e: Any) -> Any:
        inside, tap, channel = _place(p, c, step, k, q, e)
        if held(p, c) > p.icg:
            inside = tirx.all(inside, first(p.icg - _place(p, c, step, k, q, 0)[2], chunk(p)))
        if rows(p) < tall:  # else one row is read 32 times, as all blocks do at once
            inside = tirx.all(inside, row < rows(p))
        return _matrix.element(x, p, c, tall, group, tile * tall + row, (inside, tap, channel))

    shape = (p.g, part_steps(p, c) * c["sk"], c["bk"], -(-rows(p) // tall), LANES[1], tall, chunk(p))
    return te.compute(shape, value, name="col")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """col, x as a matrix by group of products; acc, the sums; the same as a matrix; y."""
    acc = products(gathered(x, p, c), w, p, c, c["sk"])
    return _matrix.result(acc, p, c, (block_rows(c), block_columns(c)), lambda m, o: place_of(m, o, c))


def products(left: Any, right: Any, p: Problem, c: Config, parts: int) -> Any:
    """acc[part, tile of rows, tile of columns, warp, piece, g, t, register], the sums of as many steps each by the lane
    and register that hold them, of left[group, step, k, tile, t, row, chunk] and right[step, tile, k, piece, g, t,
    chunk]; on the way a and b, the operands by the lane that holds them."""
    from tvm import te

    down, across = -(-rows(p) // block_rows(c)), -(-columns(p, c) // block_columns(c))
    many, size = part_steps(p, c), chunk(p)
    a = te.compute(
        (p.g, many * parts, c["bk"], down, c["wm"], c["tm"], 2, *LANES, size),
        lambda group, step, k, tile, wm, i, h, g, t, e:
            left(group, step, k, tile, t, (i * c["wm"] + wm) * PIECE[0] + h * 8 + g, e),
        name="a",
    )  # fmt: skip
    b = te.compute(
        (many * parts, c["bk"], across, c["wn"], c["tn"], *LANES, size),
        lambda step, k, tile, wn, j, g, t, e: right(step, tile, k, wn * c["tn"] + j, g, t, e),
        name="b",
    )
    step, k = te.reduce_axis((0, many), "step"), te.reduce_axis((0, c["bk"]), "k")
    q, e = te.reduce_axis((0, LANES[1]), "q"), te.reduce_axis((0, size), "e")

    def product(part: Any, bi: Any, bj: Any, wm: Any, wn: Any, i: Any, j: Any, g: Any, t: Any, r: Any) -> Any:
        at, group = part * many + step, bj * block_columns(c) // p.ocg if p.g > 1 else 0
        left = a(group, at, k, bi, wm, i, r // 2, g, q, e)
        return te.sum(_gpu.wide(left) * _gpu.wide(b(at, k, bj, wn, j, 2 * t + r % 2, q, e)), axis=[step, k, q, e])

    shape = (parts, down, across, c["wm"], c["wn"], c["tm"], c["tn"], *LANES, 4)
    return te.compute(shape, product, name="acc")


def place_of(m: Any, o: Any, c: Config) -> tuple[Any, ...]:
    """Where acc has row m and column o of a part."""
    place = (m // block_rows(c), o // block_columns(c), m // 16 % c["wm"], o // (c["tn"] * 8) % c["wn"])
    return (*place, m // (c["wm"] * 16) % c["tm"], o // 8 % c["tn"], m % 8, o // 2 % 4, m // 8 % 2 * 2 + o % 2)


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """block of pixels, block of channels, part | warps and lanes | steps, by way of shared memory | groups | pieces."""
    loops = place_sums(sch, p, c)
    place_products(sch, sch.get_sblock("acc"), loops, p, c)
    col = sch.get_sblock("col")
    kept = col if is_vector(p, c) else sch.cache_read(sch.get_sblock("a"), 0, "shared.dyn")
    sch.set_scope(kept, 0, "shared.dyn")
    sch.storage_align(kept, 0, 4, 8 * chunk(p), 2 * chunk(p))  # the chunks of two rows on all banks
    right, ahead = (sch.get_sblock("b"), 0), is_vector(p, c)
    copying = stage(sch, kept, right, loops[3], c, lambda *copied: gathering(p, c, *copied), ahead=ahead)
    if not is_vector(p, c):  # a thread gathers a chunk in registers, so that no element waits for the one before
        sch.set_scope(col, 0, "local")
        sch.compute_at(col, copying, preserve_unit_loops=True)
        sch.unroll(sch.get_loops(col)[-1])


def place_sums(sch: Any, p: Problem, c: Config) -> tuple[Any, ...]:
    """The sums in the registers of their lanes and the result beside them; the loops i, j, r, step, k, q, e."""
    acc, z = sch.get_sblock("acc"), sch.get_sblock("z")
    _gpu.inline(sch, {"t", "y" if c["sk"] == 1 else "matrix"})
    if c["sk"] > 1:
        _matrix.sum_parts(sch, z)
        return place_parts(sch, acc)
    return place_tiles(sch, p, c, -(-rows(p) // block_rows(c)))


def place_tiles(sch: Any, p: Problem, c: Config, down: int, **row: Any) -> tuple[Any, ...]:
    """`place_sums` where they are in one part: `down` tiles of rows."""
    acc, z = sch.get_sblock("acc"), sch.get_sblock("z")
    _matrix.flatten(sch, z, p, c)
    sch.compute_inline(sch.get_sblock("matrix"))
    lane = bind_tiles(sch, z, acc, p, c, down, **row)
    sch.set_scope(acc, 0, "local")
    sch.compute_at(acc, lane, preserve_unit_loops=True)
    *_, i, j, _, _, r, step, k, q, e = sch.get_loops(acc)
    return i, j, r, step, k, q, e


def gathering(p: Problem, c: Config, k: Any, tile: Any, q: Any, row: Any, e: Any) -> tuple[list[Any], Any]:
    """The loops of a copy to shared memory, neighbouring threads on what lies together in x, and the one that is a
    vector: pixels, or where all channels of one lie together its chunks."""
    together = c["xb"] > chunk(p) and is_vector(p, c)
    return [k, tile, row, q] if together else [k, tile, q, row], e


def place_parts(sch: Any, acc: Any) -> tuple[Any, ...]:
    """A part as it is in memory, in 16 bytes a lane and piece; the loops i, j, r, step, k, q, e."""
    part, bi, bj, wm, wn, i, j, g, t, r, step, k, q, e = sch.get_loops(acc)
    sch.reorder(part, bi, bj, wm, wn, g, t, i, j, r)
    warp = sch.fuse(wm, wn)
    for axis, loop in zip((*AXES, *THREADS), (part, bi, bj, warp, g, t), strict=True):
        sch.bind(loop, axis)
    kept = sch.cache_write(acc, 0, "local")
    sch.reverse_compute_at(kept, t)
    sch.vectorize(sch.get_loops(kept)[-1])
    return i, j, r, step, k, q, e


def place_products(sch: Any, acc: Any, loops: Sequence[Any], p: Problem, c: Config) -> None:
    """Steps, groups | pieces, each by one instruction for every lane's two parts."""
    from convc.lower.mma import multiply

    i, j, r, step, k, q, e = loops
    half, e = sch.split(e, [2, None])  # an instruction takes one, and no two in a row add to the same sums
    sch.reorder(step, k, half, i, j, r, q, e)
    sch.decompose_reduction(acc, step)
    multiply(sch, r, p.dtype)
    for operand, axes in (("a", 5), ("b", 4)):
        held = sch.get_sblock(operand)
        sch.set_scope(held, 0, "local")
        sch.compute_at(held, k, preserve_unit_loops=True)
        *pieces, lanes = sch.get_loops(held)[-axes:]
        for loop in pieces:
            sch.unroll(loop)
        sch.vectorize(lanes)
    for loop in (k, half, i, j):
        sch.unroll(loop)


def bind_tiles(sch: Any, z: Any, acc: Any, p: Problem, c: Config, down: int, **row: Any) -> Any:
    """z's loops in the order of the accumulators, of `down` tiles of rows; the loop at which a thread's tile must be
    complete. `row` as `at_registers` takes it."""
    from convc.lower.mma import at_registers

    m, o = sch.get_loops(z)
    bi, i, wm, h, g = sch.split(m, [down, c["tm"], c["wm"], 2, LANES[0]], disable_predication=True)
    bj, wn, j, t, two = sch.split(o, [None, c["wn"], c["tn"], LANES[1], 2], disable_predication=True)
    loops = (bi, bj, wm, wn, g, t, i, j, h, two)
    sch.reorder(*loops)
    together = 2 if p.oc % 2 == 0 and c["yb"] % 2 == 0 else 1
    at_registers(sch, loops, acc, _register, together, **row)
    warp = sch.fuse(wm, wn)
    for axis, loop in zip((*AXES[1:], *THREADS), (bi, bj, warp, g, t), strict=True):
        sch.bind(loop, axis)
    for loop in (i, j, h):
        sch.unroll(loop)
    (sch.vectorize if together == 2 else sch.unroll)(two)
    return t


def _register(bi: Any, bj: Any, wm: Any, wn: Any, g: Any, t: Any, i: Any, j: Any, h: Any, two: Any) -> Sequence[Any]:
    """The index of acc of an element of the result."""
    return (0, bi, bj, wm, wn, i, j, g, t, h * 2 + two)


def stage(
    sch: Any, left: Any, right: tuple[Any, int], step: Any, c: Config,
    order: Callable[..., tuple[list[Any], Any]], *, ahead: bool,
) -> Any:  # fmt: skip
    """Both operands of a step in shared memory, copied by all threads of the block; steps ahead where whole chunks are
    copied. `right` is the sblock that reads the weights, and which of its operands they are; `order` gives the loops of
    the left one and its vector. Returns the loop around what a thread copies of that at once."""
    sch.compute_at(left, step, preserve_unit_loops=True)
    copying = copy(sch, *order(*sch.get_loops(left)[-5:]), c)
    stage_weights(sch, right, step, c)
    pipeline(sch, step, c, 2, ahead=ahead)
    return copying


def stage_weights(sch: Any, right: tuple[Any, int], step: Any, c: Config) -> None:
    w = sch.cache_read(*right, "shared.dyn")
    sch.compute_at(w, step, preserve_unit_loops=True)
    *loops, e = sch.get_loops(w)[-5:]
    copy(sch, loops, e, c)


def pipeline(sch: Any, step: Any, c: Config, copies: int, *, ahead: bool) -> None:
    """`copies` of `step` run `st` - 1 steps before the products."""
    if c["st"] > 1:
        sch.annotate(step, "software_pipeline_stage", [*[0] * copies, c["st"] - 1])
        sch.annotate(step, "software_pipeline_order", list(range(copies + 1)))
        if ahead:
            sch.annotate(step, "software_pipeline_async_stages", [0])


def copy(sch: Any, loops: Sequence[Any], lane: Any, c: Config) -> Any:
    sch.reorder(*loops)
    _, warp, g, t = sch.split(sch.fuse(*loops), [None, c["wm"] * c["wn"], *LANES])
    sch.bind(warp, "threadIdx.z")
    sch.bind(g, "threadIdx.y")
    sch.bind(t, "threadIdx.x")
    sch.vectorize(lane)
    return t
