"""A convolution as a product of matrices on GPUs: pixels of all images x channels, summed over taps and input channels.
Where an element of the left one lies in x, one of the product in y, and what it takes to cut the sum into parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from convc.algorithm import Config
from convc.problem import Problem
from convc.schedules import _gpu
from convc.schedules._index import ravel, unravel
from convc.target import GpuTarget, Target

SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)  # parts, `sk` of a config
ADDERS = 256  # threads of a block that adds them
KEPT = 64  # configs between two layouts


def rows(p: Problem) -> int:
    return p.mb * math.prod(p.o)


def columns(p: Problem, c: Config) -> int:
    """Output channels with the lanes that pad the last block."""
    return _gpu.rounded(p.oc, 1 if p.kind == "matmul" else c["yb"])


def needs_padding(p: Problem) -> bool:
    return any(p.p) or any(a > 0 for a in p.after)


def layouts(p: Problem, target: Target) -> list[tuple[int, int]]:
    """Channel blocks of x and of the result: of one access or row-major, and the matrices as they are."""
    if p.kind == "matmul":
        return [(p.ic, p.oc)]
    blocks = {n: [_gpu.lanes(p, target), 1] if n > 1 else [1] for n in (p.ic, p.oc)}
    return [(xb, yb) for yb in blocks[p.oc] for xb in blocks[p.ic]]


def ranked(
    p: Problem, target: GpuTarget, configs: Callable[[Problem, GpuTarget, tuple[int, int]], Iterable[Config]],
    seconds: Callable[[Problem, Target, Config], float],
) -> Sequence[Config]:  # fmt: skip
    """The fastest `KEPT` configs between each two layouts, the fastest of all first."""
    found: list[tuple[float, Config]] = []
    for pair in layouts(p, target):
        timed = [(seconds(p, target, c), c) for c in configs(p, target, pair)]
        found += sorted(timed, key=lambda row: row[0])[:KEPT]
    return [config for _, config in sorted(found, key=lambda row: row[0])]


def element(x: Any, p: Problem, c: Config, tall: int, group: Any, m: Any, place: tuple[Any, Any, Any]) -> Any:
    """Row m of the left matrix at a place: whether there is one, its tap and its channel in the group, both valid. Rows
    come in tiles of `tall`; behind the last one, in the padding and where there is none, 0."""
    from tvm import tirx

    inside, tap, channel = place
    n, *o = unravel(tirx.min(m, rows(p) - 1) if rows(p) % tall else m, (p.mb, *p.o))
    at = [i * s + u * d - b for i, s, u, d, b in zip(o, p.s, unravel(tap, p.k), p.d, p.p, strict=True)]
    conditions = [inside] if not isinstance(inside, tirx.IntImm) else []
    if needs_padding(p):
        conditions += [t for a, extent in zip(at, p.i, strict=True) for t in (a >= 0, a < extent)]
    channel = channel if p.g == 1 else group * p.icg + channel
    where = (n, channel, *at) if c["xb"] == 1 else (n, channel // c["xb"], *at, channel % c["xb"])
    found = x(*where)
    return tirx.if_then_else(tirx.all(*conditions), found, tirx.const(0, x.dtype)) if conditions else found


def result(
    acc: Any, p: Problem, c: Config, tile: tuple[int, int], place_of: Callable[[Any, Any], tuple[Any, ...]]
) -> Any:
    """y of acc[part, *place of a row and a column], tiles of the product; between them the product as a matrix."""
    from tvm import te

    parts = (c["sk"],) if c["sk"] > 1 else ()
    extents = (_gpu.rounded(rows(p), tile[0]), _gpu.rounded(columns(p, c), tile[1]))

    def untiled(*index: Any) -> Any:
        *part, m, o = index
        return acc(*(part or [0]), *place_of(m, o))

    matrix = te.compute((*parts, *extents), untiled, name="matrix")
    part = te.reduce_axis((0, c["sk"]), "part")

    def value(*index: Any) -> Any:
        at = index_in_matrix(index, p, c)
        return te.sum(matrix(part, *at), axis=[part]) if c["sk"] > 1 else matrix(*at)

    shape = (p.mb, -(-p.oc // c["yb"]), *p.o) + ((c["yb"],) if c["yb"] > 1 else ())
    return te.compute(shape, value, name="y")


def index_in_matrix(index: Sequence[Any], p: Problem, c: Config) -> tuple[Any, Any]:
    """The row and column of an index of the result."""
    n, ob, *rest = index
    pixel, lane = (rest[: p.rank], rest[p.rank]) if c["yb"] > 1 else (rest, 0)
    return ravel((n, *pixel), (p.mb, *p.o)), ob * c["yb"] + lane


def flatten(sch: Any, z: Any, p: Problem, c: Config) -> None:
    """z as rows and columns, like what it reads."""
    from tvm import tirx

    from convc.lower.simple import simplify_indices

    rank = 2 + p.rank + (c["yb"] > 1)
    flat = tirx.IndexMap.from_func(lambda *index: index_in_matrix(index, p, c), ndim=rank, index_dtype="int32")
    sch.transform_block_layout(z, flat)
    simplify_indices(sch, z, same="matrix")


def sum_parts(sch: Any, z: Any) -> None:
    """A second kernel adds the parts: a thread an element of z."""
    y = sch.get_sblock("y")
    block, thread = sch.split(sch.fuse(*sch.get_loops(z)), [None, ADDERS])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.set_scope(y, 0, "local")
    sch.compute_at(y, thread)


def compulsory(p: Problem) -> float:
    """Bytes that move to and from memory at least."""
    return float(_gpu.size(p) * (p.mb * p.ic * math.prod(p.i) + p.oc * p.reduction + rows(p) * p.oc))


def with_sums(cost: _gpu.Cost, p: Problem, target: GpuTarget, c: Config, *, far: bool = False) -> _gpu.Cost:
    """The cost of the product and of adding its parts, `far` at no more than the memory's rate."""
    if c["sk"] == 1:
        return cost
    moved = 4.0 * (c["sk"] + 1) * rows(p) * columns(p, c)
    return _gpu.Cost(cost.seconds + _gpu.streamed(moved, target.gpu, far=far), cost.limit)


def parts_bytes(p: Problem, c: Config, tile: tuple[int, int]) -> int:
    if c["sk"] == 1:
        return 0
    return 4 * c["sk"] * _gpu.rounded(rows(p), tile[0]) * _gpu.rounded(columns(p, c), tile[1])
