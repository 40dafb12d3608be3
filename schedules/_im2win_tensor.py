"""Convolution by windows on warpgroups: definition and schedule. A thread block copies the window of its rows once, all
channels, and every tap reads it from there at a distance of its own: of a tap's rows an instruction takes eight that
follow one another, and they follow one another in the window of every tap.

Rows are places of padded images, one after the other: row n R P + y P + x of image n, with P places a line and R lines.
A tap is then the same distance from each of them. What pads the end of a line pads the start of the next one, and the
last lines of an image the next image's first.

Source: Lu, Chu and Liu, Im2win: Memory Efficient Convolution On SIMD Architectures (HPEC 2022, arXiv:2306.14320).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from convc.algorithm import Config
from convc.problem import Problem
from convc.schedules import _gpu, _matrix, _mma
from convc.schedules._index import ravel, unravel
from convc.schedules._matrix import columns
from convc.target import Target

LANE = 4  # the loop of a lane's columns, in that of its rows, of warps and of both axes of blocks


def extents(p: Problem) -> tuple[int, ...]:
    """Of a padded image: lines, and places of one."""
    return tuple(i + b for i, b in zip(p.i, p.p, strict=True))


def shifts(p: Problem) -> tuple[int, ...]:
    """Places from a row to that of each axis' next tap."""
    every = extents(p)
    return tuple(d * math.prod(every[k + 1 :]) for k, d in enumerate(p.d))


def reach(p: Problem) -> int:
    """Places from a row to its last tap."""
    return sum((k - 1) * s for k, s in zip(p.k, shifts(p), strict=True))


def places(p: Problem) -> int:
    """Rows with those between images and lines."""
    return (p.mb - 1) * math.prod(extents(p)) + ravel([o - 1 for o in p.o], extents(p)) + 1


def down(p: Problem, c: Config) -> int:
    """Tiles of rows."""
    return -(-places(p) // _mma.block_rows(c))


def parts(p: Problem, c: Config) -> int:
    """Steps of a tap."""
    return p.icg // _mma.depth(p, c)


def span(p: Problem, c: Config) -> int:
    """Places of a window."""
    return _mma.block_rows(c) + reach(p)


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """win[step, k, tile of rows, t, place, chunk], x by windows; acc, the sums by the lane and register that hold them;
    the same as a matrix; y."""
    from tvm import te, tirx

    size, tall, wide = _mma.chunk(p), _mma.block_rows(c), _mma.block_columns(c)
    total = p.mb * math.prod(extents(p))

    def value(step: Any, k: Any, tile: Any, q: Any, place: Any, e: Any) -> Any:
        n, *at = unravel(tirx.min(tile * tall + place, total - 1), (p.mb, *extents(p)))
        at = [a - b for a, b in zip(at, p.p, strict=True)]
        channel = ((step * c["bk"] + k) * _mma.LANES[1] + q) * size + e
        where = (n, channel // c["xb"], *at, channel % c["xb"])
        inside = [a >= 0 for a, b in zip(at, p.p, strict=True) if b]
        inside += [tile * tall + place < total]
        return tirx.if_then_else(tirx.all(*inside), x(*where), tirx.const(0, x.dtype))

    shape = (parts(p, c), c["bk"], down(p, c), _mma.LANES[1], span(p, c), size)
    win = te.compute(shape, value, name="win")
    step, k = te.reduce_axis((0, parts(p, c) * p.taps), "step"), te.reduce_axis((0, c["bk"]), "k")
    q, e = te.reduce_axis((0, _mma.LANES[1]), "q"), te.reduce_axis((0, size), "e")

    def product(part: Any, bi: Any, bj: Any, wm: Any, wn: Any, i: Any, j: Any, g: Any, t: Any, r: Any) -> Any:
        shift = sum(tap * s for tap, s in zip(unravel(step % p.taps, p.k), shifts(p), strict=True))
        row = (i * c["wm"] + wm) * 16 + r // 2 * 8 + g
        left = win(step // p.taps, k, bi, q, row + shift, e)
        right = w(step, bj, k, q, wn * c["tn"] + j, 2 * t + r % 2, e)
        return te.sum(_gpu.wide(left) * _gpu.wide(right), axis=[step, k, q, e])

    across = -(-columns(p, c) // wide)
    shape = (1, down(p, c), across, c["wm"], c["wn"], c["tm"], c["tn"], *_mma.LANES, 4)
    acc = te.compute(shape, product, name="acc")

    def place_of(m: Any, o: Any) -> tuple[Any, ...]:
        n, *at = unravel(m, (p.mb, *p.o))
        return _mma.place_of(ravel((n, *at), (0, *extents(p))), o, c)

    return _matrix.result(acc, p, c, (1, wide), place_of)


def _row(p: Problem, place: Any) -> tuple[Any, Sequence[Any]]:
    n, *at = unravel(place, (p.mb, *extents(p)))
    inside = [a < o for a, o in zip(at, p.o, strict=True)]
    return ravel((n, *at), (0, *p.o)), [n < p.mb, *inside]


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """block of pixels, block of channels | warps and lanes | the window | steps, by way of shared memory."""
    from convc.lower.wgmma import multiply

    acc = sch.get_sblock("acc")
    _gpu.inline(sch, {"t", "y"})
    i, j, r, step, k, q, e = _mma.place_tiles(sch, p, c, down(p, c), row=lambda place: _row(p, place))
    sch.reorder(step, k, i, j, r, q, e)
    win = sch.get_sblock("win")
    sch.set_scope(win, 0, "shared.dyn")
    sch.compute_at(win, sch.get_loops(acc)[LANE], preserve_unit_loops=True)
    step_, k_, tile, q_, place, e_ = sch.get_loops(win)[LANE + 1 :]
    sch.reorder(place, step_, k_, tile, q_, e_)  # a place is looked for once
    _mma.copy(sch, [place], e_, c)
    sch.annotate(sch.get_loops(win)[LANE + 1], "pragma_async", 1)
    _mma.stage_weights(sch, (acc, 1), step, c)
    _mma.pipeline(sch, step, c, 1, ahead=True)
    sch.decompose_reduction(acc, step)
    multiply(sch, k, p.dtype)
