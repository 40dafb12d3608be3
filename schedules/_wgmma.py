"""Convolution as a product of matrices by warpgroups: definition and schedule. As `_mma`, a thread block owns a tile of
pixels x channels, and both operands go through shared memory, several steps ahead; tensor cores read them from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convc.algorithm import Config
from convc.problem import Problem
from convc.schedules import _gpu, _matrix, _mma
from convc.schedules._matrix import columns, rows
from convc.target import Target

GROUP = 4  # warps that multiply together


def pack(w: Any, p: Problem, c: Config) -> Any:
    """w of the model -> [steps of all parts, tiles, groups, chunks, pieces of columns, g, chunk], 0 where there is
    none."""
    from tvm import te

    steps, across, bk, pieces, g, t, size = _mma.packed(p, c)

    def value(step: Any, tile: Any, k: Any, t: Any, piece: Any, g: Any, e: Any) -> Any:
        return _mma.weight(w, p, c, step, tile, k, piece, g, t, e)

    return te.compute((steps, across, bk, t, pieces, g, size), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """col, x as a matrix by group of products; acc, the sums; the same as a matrix; y."""
    col = _mma.gathered(x, p, c)

    def left(step: Any, k: Any, bi: Any, bj: Any, q: Any, row: Any, e: Any) -> Any:
        group = bj * _mma.block_columns(c) // p.ocg if p.g > 1 else 0
        return col(group, step, k, bi, q, row, e)

    tile = _mma.block_rows(c), _mma.block_columns(c)
    acc = products(left, w, p, c, -(-rows(p) // tile[0]), _mma.part_steps(p, c))
    return _matrix.result(acc, p, c, tile, lambda m, o: _mma.place_of(m, o, c))


def products(left: Callable[..., Any], w: Any, p: Problem, c: Config, down: int, many: int) -> Any:
    """acc[part, tile of rows, tile of columns, *warps, *pieces, g, t, register], the sums of `many` steps each, by the
    lane and register that hold them, of left(step, k, tile of rows, tile of columns, t, row, e) and packed weights."""
    from tvm import te

    step, k = te.reduce_axis((0, many), "step"), te.reduce_axis((0, c["bk"]), "k")
    q, e = te.reduce_axis((0, _mma.LANES[1]), "q"), te.reduce_axis((0, _mma.chunk(p)), "e")

    def product(part: Any, bi: Any, bj: Any, wm: Any, wn: Any, i: Any, j: Any, g: Any, t: Any, r: Any) -> Any:
        at, row = part * many + step, (i * c["wm"] + wm) * _mma.PIECE[0] + r // 2 * 8 + g
        right = w(at, bj, k, q, wn * c["tn"] + j, 2 * t + r % 2, e)
        return te.sum(_gpu.wide(left(at, k, bi, bj, q, row, e)) * _gpu.wide(right), axis=[step, k, q, e])

    across = -(-columns(p, c) // _mma.block_columns(c))
    shape = (c["sk"], down, across, c["wm"], c["wn"], c["tm"], c["tn"], *_mma.LANES, 4)
    return te.compute(shape, product, name="acc")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """block of pixels, block of channels, part | warps and lanes | steps, by way of shared memory."""
    from convc.lower.wgmma import multiply

    acc = sch.get_sblock("acc")
    i, j, r, step, k, q, e = _mma.place_sums(sch, p, c)
    sch.reorder(step, k, i, j, r, q, e)
    col = sch.get_sblock("col")
    sch.set_scope(col, 0, "shared.dyn")
    sch.storage_align(col, 0, 4, 8 * _mma.chunk(p), 2 * _mma.chunk(p))  # the chunks of two rows on all banks
    _mma.stage(sch, col, (acc, 1), step, c, lambda *loops: _mma.gathering(p, c, *loops), ahead=True)
    sch.decompose_reduction(acc, step)
    multiply(sch, k, p.dtype)
