"""Winograd on GPUs without tensor cores: how matrices lie, and what its kernels compute.

They are cut as in `_gemm`: a thread block has `ty` x `tx` threads of `tm` tiles by `tn` output channels each, and takes
`bk` channels in a step. A thread's tiles and channels come in vectors of 4 that lie `ty` or `tx` vectors apart, so that
neighbouring threads read neighbouring banks. v[*n, group, block of tiles, step, bk, tm/4, ty, 4] in float32; u[*n,
block of channels, step, bk, tn/4, tx, 4]; acc[*n, vector of channels, tile, 4].
"""

from __future__ import annotations

from typing import Any

from convc.algorithm import Config
from convc.problem import Problem
from convc.schedules import _gpu
from convc.schedules import _winograd_cuda as common
from convc.schedules._index import ravel, unravel

VECTOR = 4  # float32 numbers in an access of 16 bytes
TILES = ((8, 8), (8, 4), (4, 8), (4, 4))  # of a thread: tiles by output channels


def tall(c: Config) -> int:
    """Tiles of a block."""
    return c["ty"] * c["tm"]


def wide(c: Config) -> int:
    """Output channels of a block."""
    return c["tx"] * c["tn"]


def along(c: Config) -> tuple[int, int, int]:
    """A block's tiles as threads have them: vectors of a thread, threads, tiles of a vector."""
    return c["tm"] // VECTOR, c["ty"], VECTOR


def across(c: Config) -> tuple[int, int, int]:
    """The same of output channels."""
    return c["tn"] // VECTOR, c["tx"], VECTOR


def steps(p: Problem, c: Config) -> int:
    return -(-p.icg // c["bk"])


def depth(p: Problem, c: Config) -> int:
    """Input channels, those that fill the last step of a group counted."""
    return p.g * steps(p, c) * c["bk"]


def columns(p: Problem, c: Config) -> int:
    """Output channels, those that fill the last block counted."""
    return _gpu.rounded(p.oc, wide(c))


def _down(p: Problem, c: Config) -> int:
    """Blocks of tiles."""
    return -(-common.work(p, c).tiles // tall(c))


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> u."""

    def place(bj: Any, step: Any, k: Any, *rest: Any) -> tuple[Any, Any]:
        return ravel((bj, *rest), (0, *across(c))), step * c["bk"] + k

    return common.pack(w, p, c, (-(-p.oc // wide(c)), steps(p, c), c["bk"], *across(c)), place)


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, ob, *o, lane] = AT [ sum over channels of (BT x) * u ] at o's place in its tile, axis by axis."""

    def place(group: Any, bi: Any, step: Any, k: Any, *rest: Any) -> tuple[Any, Any, Any]:
        return group, step * c["bk"] + k, ravel((bi, *rest), (0, *along(c)))

    lead = (p.g, _down(p, c), steps(p, c), c["bk"], *along(c))
    v = common.forward(x, p, c, lead, place, (steps(p, c) * c["bk"], _down(p, c) * tall(c)), common.ACCUMULATED)
    acc = _product(v, w, p, c)

    def product(*index: Any) -> Any:
        *i, o, t = index
        *vector, lane = unravel(o, (0, *across(c)))
        return acc(*i, *vector, *unravel(t, (0, *along(c))), lane)

    return common.inverse(product, p, c, (columns(p, c), _down(p, c) * tall(c)))


def _product(v: Any, w: Any, p: Problem, c: Config) -> Any:
    from tvm import te

    products, (_, down, depth) = v.shape[: p.rank], v.shape[p.rank : p.rank + 3]
    step, k = te.reduce_axis((0, depth), "step"), te.reduce_axis((0, c["bk"]), "k")

    def value(*index: Any) -> Any:
        at, (bj, jo, tx, bi, io, ty, ii, ji) = index[: p.rank], index[p.rank :]
        group = bj * wide(c) // p.ocg if p.g > 1 else 0
        left, right = v(*at, group, bi, step, k, io, ty, ii), w(*at, bj, step, k, jo, tx, ji)
        return te.sum(left * _gpu.wide(right), axis=[step, k])

    columns = (-(-p.oc // wide(c)), *across(c)[:2])
    return te.compute((*products, *columns, down, *along(c), VECTOR), value, name="acc")
