"""Winograd on tensor cores, for types of 2 bytes, in three kernels: tiles of x transformed, one product of matrices for
each place of the transform, and the inverse transform with the epilogue. Transforms are computed in float32 and the
products summed in it; what is multiplied has 2 bytes.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016, arXiv:1509.09308), section 4; for
the points that 2 bytes ask for, Lohia, NOVA (arXiv:2512.18453).

A product is that of `_mma` for a convolution of one tap over tiles, with places for the parts of its sum:
v[*n, group, step, bk, block of tiles, tile, t, chunk], u[*n, step, block of channels, bk, piece, g, t, chunk], acc as
lanes hold it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from convc.algorithm import Config
from convc.problem import Problem
from convc.schedules import _gpu, _mma, tensor_core
from convc.schedules import _winograd_cuda as common
from convc.schedules._index import ravel, unravel
from convc.schedules._tiling import axes
from convc.target import GpuTarget, Target

HELD = 160  # registers that a thread's window may take
MOST_MEMORY = 1 << 30  # bytes of v and acc
STORED = 2  # bytes of v and u


def configs(p: Problem, target: GpuTarget, m: Sequence[int]) -> Iterator[Config]:
    """Those of tiles of m outputs that compile without spills and fit the machine, between row-major tensors."""
    cut = common.tiles(p, m)
    if max(side.held for side in common.work(p, cut).sides) > HELD:
        return
    q = product(p, cut)
    for c in tensor_core.configs(q, target, (_mma.chunk(q), _mma.chunk(q))):
        if c["sk"] == 1 and memory(p, found := {**c, **cut}) <= MOST_MEMORY:
            yield found


def product(p: Problem, c: Config) -> Problem:
    """A place's product: tiles for pixels, channels filled up to whole chunks."""
    one, tiles = (1,), (common.work(p, c).tiles,)
    ic = p.g * _gpu.rounded(p.icg, _mma.chunk(p))
    return replace(p, mb=1, ic=ic, i=tiles, o=tiles, k=one, s=one, p=(0,), d=one)


def _matrices(p: Problem, c: Config) -> tuple[Problem, Config]:
    """The product as `_mma` has it, whatever the layouts of x and y."""
    q = product(p, c)
    return q, {**c, "xb": _mma.chunk(q), "yb": _mma.chunk(q), "sk": 1}


def _reach(p: Problem, c: Config) -> tuple[int, int, int]:
    """Input channels of a group, tiles and output channels, those that fill the last step or block counted."""
    q, k = _matrices(p, c)
    wide = _mma.block_columns(c)
    return _mma.steps(q, k) * _mma.depth(q, k), _gpu.rounded(q.o[0], _mma.block_rows(c)), _gpu.rounded(p.oc, wide)


def memory(p: Problem, c: Config) -> int:
    """v and acc."""
    return sum(_between(p, c))


def _between(p: Problem, c: Config) -> tuple[int, int]:
    """Bytes of v and of acc."""
    places, (channels, tiles, columns) = common.work(p, c).places, _reach(p, c)
    return STORED * places * p.g * channels * tiles, common.SUMMED * places * tiles * columns


def costs(p: Problem, target: Target, c: Config) -> tuple[_gpu.Cost, ...]:
    """Of the three kernels."""
    assert isinstance(target, GpuTarget)
    (v, acc), (channels, tiles, columns), gpu = _between(p, c), _reach(p, c), target.gpu
    q, k = _matrices(p, c)
    places, far = common.work(p, c).places, common.far(gpu, v, acc)
    block = tensor_core.block(q, target, k)
    weights = STORED * places * channels * columns
    forward, inverse = common.transforms(p, gpu, c, p.g * channels * tiles, STORED, far)
    return forward, _gpu.cost(block, places * tensor_core.blocks(q, k), weights + sum(far), gpu), inverse


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> u."""
    q, k = _matrices(p, c)
    pieces, size = c["wn"] * c["tn"], _mma.chunk(q)

    def place(step: Any, tile: Any, group: Any, piece: Any, g: Any, t: Any, e: Any) -> tuple[Any, Any]:
        return ravel((tile, piece, g), (0, pieces, _mma.PIECE[1])), _channel(c, size, step, group, t, e)

    lead = (_mma.steps(q, k), _reach(p, c)[2] // _mma.block_columns(c), c["bk"], pieces, *_mma.LANES, size)
    return common.pack(w, p, c, lead, place)


def _channel(c: Config, size: int, *place: Any) -> Any:
    """Of a group, at (step, k, t, element)."""
    return ravel(place, (0, c["bk"], _mma.LANES[1], size))


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, ob, *o, lane] = AT [ sum over channels of (BT x) * u ] at o's place in its tile, axis by axis."""
    q, k = _matrices(p, c)
    size, steps, tall = _mma.chunk(q), _mma.steps(q, k), _mma.block_rows(c)
    channels, tiles, columns = _reach(p, c)
    places = [axis.form.n for axis in axes(p, c)]

    def place(group: Any, step: Any, k: Any, tile: Any, row: Any, t: Any, e: Any) -> tuple[Any, Any, Any]:
        return group, _channel(c, size, step, k, t, e), tile * tall + row

    lead = (p.g, steps, c["bk"], tiles // tall, tall, _mma.LANES[1], size)
    v = common.forward(x, p, c, lead, place, (channels, tiles), p.dtype)

    def left(group: Any, step: Any, k: Any, tile: Any, t: Any, row: Any, e: Any) -> Any:
        return v(*unravel(step // steps, places), group, step % steps, k, tile, row, t, e)

    def right(step: Any, *rest: Any) -> Any:
        return w(*unravel(step // steps, places), step % steps, *rest)

    acc = _mma.products(left, right, q, k, math.prod(places))

    def product(*index: Any) -> Any:
        *i, o, tile = index
        return acc(ravel(i, places), *_mma.place_of(tile, o, c))

    return common.inverse(product, p, c, (columns, tiles))


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """Transform: threads | columns, rows. Products: place, blocks | warps and lanes | steps, by way of shared memory |
    groups | pieces. Inverse: threads | columns, rows, epilogue."""
    v, acc = sch.get_sblock("v"), sch.get_sblock("acc")
    loops = sch.get_loops(v)
    sch.reorder(*loops[p.rank :], *loops[: p.rank])
    common.place_forward(sch, p, common.bind(sch, loops[p.rank :]))
    common.unroll(sch, loops[: p.rank])
    q, k = _matrices(p, c)
    loops = _mma.place_parts(sch, acc)
    _mma.place_products(sch, acc, loops, q, k)
    copied = sch.cache_read(sch.get_sblock("a"), 0, "shared.dyn")
    right = sch.get_sblock("b"), 0
    _mma.stage(sch, copied, right, loops[3], k, lambda *each: ([*each[:-1]], each[-1]), ahead=True)
    common.place_results(sch, p, c)
