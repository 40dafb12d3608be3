"""Im2win on GPUs: a thread block keeps the rows under its output pixels in shared memory, column by column, and each
thread multiplies a strip of a column, held in registers, by all taps of it. The window is never written to memory.

Source: Lu et al., Im2win: An Efficient Convolution Paradigm on GPU (Euro-Par 2023, arXiv:2306.14316), with the window
of one thread block at a time instead of that of all of x.

A block owns `nb` images x `hs` strips of `rh` output rows x `wb` output columns, by `tx` * `tn` output channels; a
thread one strip by `tn` channels. The window of `ck` channels lies as [channel][image][column][row]: the taps of an
output pixel are rows of few columns, those of the pixels of a strip the same ones. Under a stride of s the columns are
in s groups, by column % s, so that the columns of neighbouring pixels are neighbours. Problems of one axis have strips
along it, and one column. The channels may be cut into `sk` parts, whose sums are added afterwards.

The steps of the paper's ablation: `shared` (0: x and w straight from global memory), the tile (`rh` = `tn` = 1),
`micro` (vector accesses and operands held in registers), `double` (two windows, one filled while the other is read) and
`prefetch` (1: asked for before a slice is multiplied and stored after it; 2: copied asynchronously).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convc.algorithm import Config
from convc.problem import Problem
from convc.schedules import _gpu
from convc.schedules._im2win_form import axes, block_columns, form, pixels, quads, scope, tiles, vector
from convc.schedules._matrix import sum_parts
from convc.target import Target

UNROLLED = 640  # multiply-adds of all taps of a channel in one body: fewer addresses


def pack(w: Any, p: Problem, c: Config) -> Any:
    """w of the model -> [channel tiles, slices, ck, columns of taps, rows of taps, *quads], 0 where there is none."""
    from tvm import te, tirx

    along, across = axes(p)
    parts = quads(c)

    def value(tile: Any, c0: Any, c1: Any, v: Any, u: Any, quad: Any, tx: Any, lane: Any) -> Any:
        o = tile * block_columns(c) + (tx * parts[0] + quad) * parts[2] + lane
        taps = (u, v) if p.rank == 2 else (u,)
        found = w(tirx.min(o, p.oc - 1), c0 * c["ck"] + c1, *taps)
        return tirx.if_then_else(o < p.oc, found, tirx.const(0, w.dtype))

    shape = (tiles(p, c)[3], p.icg // c["ck"], c["ck"], across.k, along.k, *parts)
    return te.compute(shape, value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """window[group, slice, tile, ck, image, column, row] of x; strips of it; acc[tile, thread, strip, channels]; y."""
    from tvm import te, tirx

    along, across = axes(p)
    f, cut = form(p, c), tiles(p, c)
    tall, ck = c["hs"] * c["rh"], c["ck"]

    def gathered(
        group: Any, c0: Any, bn: Any, bh: Any, bw: Any, c1: Any, n: Any, column: Any, row: Any
    ) -> Any:
        image = bn * c["nb"] + n
        h = bh * (tall * along.s) + row - along.p
        at = bw * c["wb"] + column % f.across
        v = at * across.s + column // f.across - across.p
        conditions = [row < f.rows, image < p.mb, h >= 0, h < along.i, v >= 0, v < across.i]
        channel = group * p.icg + c0 * ck + c1
        place = (h, v) if p.rank == 2 else (h,)
        image = tirx.min(image, p.mb - 1) if p.mb % c["nb"] else image
        where = (image, channel, *place) if c["xb"] == 1 else (image, channel // c["xb"], *place, channel % c["xb"])
        return tirx.if_then_else(tirx.all(*conditions), x(*where), tirx.const(0, x.dtype))

    slices, held = p.icg // ck, f.groups * f.across
    window = te.compute((p.g, slices, *cut[:3], ck, c["nb"], held, f.height), gathered, name="window")

    def taken(*index: Any) -> Any:
        *where, hs, column, e = index
        return window(*where, column, hs * (c["rh"] * along.s) + e)

    strip = te.compute((p.g, slices, *cut[:3], ck, c["nb"], c["hs"], held, f.strip), taken, name="strip")
    per = slices // c["sk"]
    c0, c1 = te.reduce_axis((0, per), "c0"), te.reduce_axis((0, ck), "c1")
    v, u = te.reduce_axis((0, across.k), "v"), te.reduce_axis((0, along.k), "u")

    def product(*index: Any) -> Any:
        part, bn, bh, bw, bo, i, quad, tx, n, hs, q, lane = index
        column = v * across.d % across.s * f.across + q + v * across.d // across.s
        group, at = bo * block_columns(c) // p.ocg if p.g > 1 else 0, part * per + c0
        value = strip(group, at, bn, bh, bw, c1, n, hs, column, i * along.s + u * along.d)
        return te.sum(value * w(bo, at, c1, v, u, quad, tx, lane), axis=[c0, c1, v, u])

    shape = (c["sk"], *cut, c["rh"], quads(c)[0], c["tx"], c["nb"], c["hs"], c["wb"], quads(c)[2])
    acc = te.compute(shape, product, name="acc")
    part = te.reduce_axis((0, c["sk"]), "part")

    def value(n: Any, ob: Any, *rest: Any) -> Any:
        (h, q), lane = (rest[:2] if p.rank == 2 else (rest[0], 0)), rest[p.rank] if c["yb"] > 1 else 0
        o = ob * c["yb"] + lane
        block = n // c["nb"], h // tall, q // c["wb"], o // block_columns(c)
        thread = o // c["tn"] % c["tx"], n % c["nb"], h // c["rh"] % c["hs"], q % c["wb"]
        at = *block, h % c["rh"], o // quads(c)[2] % quads(c)[0], *thread, o % quads(c)[2]
        return te.sum(acc(part, *at), axis=[part]) if c["sk"] > 1 else acc(0, *at)

    extents = (p.mb, -(-p.oc // c["yb"]), *p.o) + ((c["yb"],) if c["yb"] > 1 else ())
    return te.compute(extents, value, name="y")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """tiles of pixels and channels | channels, pixels as threads | slices, by way of shared memory | channel, column of
    taps | row of taps | registers."""
    acc, window, strip = (sch.get_sblock(name) for name in ("acc", "window", "strip"))
    _gpu.inline(sch, {"t", "y"} if c["sk"] == 1 else {"t"})
    if c["sk"] == 1:
        thread = _bind(sch, p, c)
        sch.set_scope(acc, 0, "local")
        sch.compute_at(acc, thread, preserve_unit_loops=True)
        *_, i, quad, _, _, _, _, lane, c0, c1, v, u = sch.get_loops(acc)
    else:
        *block, i, quad, tx, n, hs, q, lane, c0, c1, v, u = sch.get_loops(acc)
        sch.reorder(*block, tx, n, hs, q, c0, c1, v, u, i, quad, lane)
        thread = _bind_threads(sch, block, tx, (n, hs, q))
        _keep_parts(sch, acc, thread)
        sum_parts(sch, sch.get_sblock("z"))
    sch.reorder(c0, c1, v, u, i, quad, lane)
    f = form(p, c)
    if not c["shared"]:
        sch.compute_inline(window)
    if c["micro"]:
        sch.set_scope(strip, 0, "local")
        sch.compute_at(strip, v, preserve_unit_loops=True)
        lanes = f.lanes if c["shared"] else 1
        rows, row = sch.split(sch.get_loops(strip)[-1], [None, lanes], disable_predication=True)
        sch.unroll(rows)
        sch.vectorize(row)
    else:
        sch.compute_inline(strip)
    weights = _stage(sch, acc, window, c0, p, c) if c["shared"] else None
    if c["micro"]:
        held = sch.cache_read(acc, 1, "local")
        sch.compute_at(held, u, preserve_unit_loops=True)
        sch.unroll(sch.get_loops(held)[-3])
        sch.vectorize(sch.get_loops(held)[-1])
        sch.unroll(u)
        if p.taps * c["rh"] * c["tn"] <= UNROLLED:
            sch.unroll(v)
    for loop in (i, quad, lane):
        sch.unroll(loop)
    sch.decompose_reduction(acc, c0)
    if weights is not None and c["double"]:
        _pipeline(sch, (window, weights), c0, c)


def _bind(sch: Any, p: Problem, c: Config) -> Any:
    """z's loops in the order of the accumulators; the loop at which a thread's tile must be complete."""
    from convc.lower.guard import GUARD

    z = sch.get_sblock("z")
    n, o, h, *rest = sch.get_loops(z)
    q = rest.pop(0) if p.rank == 2 else None
    parts, tx, lanes = quads(c)

    def cut(loop: Any, *factors: int) -> list[Any]:
        found: list[Any] = sch.split(loop, [None, *factors], disable_predication=True, preserve_unit_iters=True)
        return found

    bn, ni = cut(n, c["nb"])
    bh, hs, i = cut(h, c["hs"], c["rh"])
    bw, wi = cut(q, c["wb"]) if q is not None else (None, None)
    if rest:
        bo, t, quad = cut(o, tx, parts)
        lane = rest[0]
        together = lanes if p.oc % lanes == 0 else 1
    else:
        bo, t, quad, lane = cut(o, tx, parts, lanes)
        together = 1
    outer, inner = [x for x in (bn, bh, bw, bo) if x is not None], [x for x in (ni, hs, wi) if x is not None]
    sch.reorder(*outer, t, *inner, i, quad, lane)
    thread = _bind_threads(sch, outer, t, inner)
    sch.unroll(i)
    sch.unroll(quad)
    (sch.vectorize if together > 1 else sch.unroll)(lane)
    axes_of_z = 2 + p.rank + (c["yb"] > 1)
    sch.annotate(z, GUARD, [1] * (axes_of_z - 1) + [together])
    return thread


def _bind_threads(sch: Any, block: Sequence[Any], tx: Any, pixel: Sequence[Any]) -> Any:
    """Channels before pixels: neighbours in a warp are neighbouring columns, in shared memory as in y."""
    sch.bind(sch.fuse(*block), "blockIdx.x")
    sch.bind(tx, "threadIdx.y")
    thread = sch.fuse(*pixel)
    sch.bind(thread, "threadIdx.x")
    return thread


def _keep_parts(sch: Any, acc: Any, thread: Any) -> None:
    """The sums of each part go to memory."""
    kept = sch.cache_write(acc, 0, "local")
    sch.reverse_compute_at(kept, thread, preserve_unit_loops=True)
    *_, i, quad, _, _, _, _, lane = sch.get_loops(kept)
    sch.unroll(i)
    sch.unroll(quad)
    sch.vectorize(lane)


def _stage(sch: Any, acc: Any, window: Any, c0: Any, p: Problem, c: Config) -> Any:
    """The window and the weights of a slice in shared memory, copied by all threads of the block."""
    f = form(p, c)
    sch.set_scope(window, 0, scope(p, c))
    sch.compute_at(window, c0, preserve_unit_loops=True)
    sch.storage_align(window, 0, 7, 8, f.pitch % 8)
    if f.image > f.groups * f.across:
        sch.storage_align(window, 0, 6, 8 * f.pitch, f.image % 8 * f.pitch)
    channel, image, column, row = sch.get_loops(window)[-4:]
    channel, lane = sch.split(channel, [None, vector(p, c)])
    group, column = sch.split(column, [None, f.across])
    sch.reorder(image, row, column, group, channel, lane)
    if c["prefetch"] != 1:  # what is kept in between has to be loops for TVM
        sch.unroll(channel)
    _copy(sch, sch.fuse(image, row, column, group), lane, c)
    weights = sch.cache_read(acc, 1, scope(p, c))
    sch.compute_at(weights, c0, preserve_unit_loops=True)
    flat = sch.fuse(*sch.get_loops(weights)[-6:])
    flat, lane = sch.split(flat, [None, quads(c)[2] if c["micro"] else 1])
    _copy(sch, flat, lane, c)
    return weights


def _copy(sch: Any, flat: Any, lane: Any, c: Config) -> None:
    rounds, ty, tx = sch.split(flat, [None, c["tx"], pixels(c)])
    if not (c["double"] and c["prefetch"] == 1):
        sch.annotate(rounds, "disable_unroll", 1)  # unrolled, the addresses of all rounds wait in registers
    sch.bind(ty, "threadIdx.y")
    sch.bind(tx, "threadIdx.x")
    sch.vectorize(lane)


def _pipeline(sch: Any, copies: Sequence[Any], c0: Any, c: Config) -> None:
    """While a slice is multiplied, the next one is on its way."""
    for copied in copies:
        sch.annotate(copied, "double_buffer_scope", 0)
        if c["prefetch"] == 1:
            sch.annotate(copied, "tirx.manifest_shared_memory_local_stage", 1)
    staged = c["prefetch"] == 1
    sch.annotate(c0, "software_pipeline_stage", [0, 0, 0, 0, 1] if staged else [0, 0, 1])
    sch.annotate(c0, "software_pipeline_order", [0, 3, 1, 4, 2] if staged else [0, 1, 2])
    if c["prefetch"] == 2:
        sch.annotate(c0, "software_pipeline_async_stages", [0])
