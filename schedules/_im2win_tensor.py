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
from convc.schedules import _gpu, _matrix, _mma, _wgmma
from convc.schedules._index import ravel, unravel
from convc.target import Target

THREAD = 4  # the innermost of the loops of acc that are bound: blocks of both axes, warps, g, t


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
    """win[step, k, tile of rows, t, place, chunk], x by windows; acc, the sums; the same as a matrix; y."""
    from tvm import te, tirx

    size, tall, wide = _mma.chunk(p), _mma.block_rows(c), _mma.block_columns(c)
    total = p.mb * math.prod(extents(p))

    def value(step: Any, k: Any, tile: Any, q: Any, place: Any, e: Any) -> Any:
        n, *at = unravel(tirx.min(tile * tall + place, total - 1), (p.mb, *extents(p)))
        at = [a - b for a, b in zip(at, p.p, strict=True)]
        channel = ravel((step, k, q, e), (0, c["bk"], _mma.LANES[1], size))
        inside = [a >= 0 for a, b in zip(at, p.p, strict=True) if b]
        inside += [tile * tall + place < total]
        return tirx.if_then_else(
            tirx.all(*inside), x(n, channel // c["xb"], *at, channel % c["xb"]), tirx.const(0, x.dtype)
        )

    win = te.compute((parts(p, c), c["bk"], down(p, c), _mma.LANES[1], span(p, c), size), value, name="win")

    def left(step: Any, k: Any, bi: Any, bj: Any, q: Any, row: Any, e: Any) -> Any:
        shift = sum(tap * s for tap, s in zip(unravel(step % p.taps, p.k), shifts(p), strict=True))
        return win(step // p.taps, k, bi, q, row + shift, e)

    acc = _wgmma.products(left, w, p, c, down(p, c), parts(p, c) * p.taps)

    def place_of(m: Any, o: Any) -> tuple[Any, ...]:
        return _mma.place_of(ravel(unravel(m, (p.mb, *p.o)), (0, *extents(p))), o, c)

    return _matrix.result(acc, p, c, (1, wide), place_of)


def _row(p: Problem, place: Any) -> tuple[Any, Sequence[Any]]:
    """The row of the matrix that a place is for, and where there is one."""
    n, *at = unravel(place, (p.mb, *extents(p)))
    inside = [a < o for a, o in zip(at, p.o, strict=True)]
    return ravel((n, *at), (0, *p.o)), [n < p.mb, *inside]


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """block of pixels, block of channels | warps and lanes | the window | steps, by way of shared memory."""
    from convc.lower.copies import ASYNC
    from convc.lower.wgmma import multiply

    acc = sch.get_sblock("acc")
    _gpu.inline(sch, {"t", "y"})
    i, j, r, step, k, q, e = _mma.place_tiles(sch, p, c, down(p, c), row=lambda place: _row(p, place))
    sch.reorder(step, k, i, j, r, q, e)
    win = sch.get_sblock("win")
    sch.set_scope(win, 0, "shared.dyn")
    sch.compute_at(win, sch.get_loops(acc)[THREAD], preserve_unit_loops=True)
    step_, k_, tile, q_, place, e_ = sch.get_loops(win)[THREAD + 1 :]
    sch.reorder(place, step_, k_, tile, q_, e_)  # a place is looked for once
    _mma.copy(sch, [place], e_, c)
    sch.annotate(sch.get_loops(win)[THREAD + 1], ASYNC, 1)
    _mma.stage_weights(sch, (acc, 1), step, c)
    _mma.pipeline(sch, step, c, 1, ahead=True)
    sch.decompose_reduction(acc, step)
    multiply(sch, k, p.dtype)
