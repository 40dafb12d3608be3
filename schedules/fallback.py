"""The definition itself, vectorised over output channels or over pixels: right for every problem, fast for none.

Source: none; every other algorithm is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config
from convc.dtypes import HALVES
from convc.ir.check import SUMS
from convc.problem import Problem
from convc.schedules import _gpu, _matrix, _threads, _tile
from convc.target import Target

TILES = (8, 4, 1)  # accumulators in registers; more would help, but this is not where time is to be gained
# Against a model of ports, lanes of channels and lanes of pixels: branches, addresses, tails one element at a time.
SLOWER = (2.4, 2.4)
WIDE = 0.4  # of that, where several vectors of pixels share each weight: 16 channels to 3 by 9x9 at 240 GFLOP/s, not 97
BYTES = {"float64": 8}


def refuses(p: Problem, target: Target) -> str | None:
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    """Every pair of layouts that the tensors can have; tiles of several accumulators."""
    if p.kind == "matmul":
        pairs = [{"xb": p.ic, "yb": p.oc, "lanes": target.lanes if p.oc > 1 else 1}]
    else:
        blocks = {n: [target.lanes, 1] if n > 1 else [1] for n in (p.ic, p.oc)}
        pairs = [{"xb": xb, "yb": yb, "lanes": yb} for yb in blocks[p.oc] for xb in blocks[p.ic]]
    width = target.lanes
    tiles = [{**pair, "width": width, "r": r} for pair in pairs for r in sorted({_tile_of(p, pair, r) for r in TILES})]
    found = [{**tile, "q": q} for tile in tiles for q in _widths(p, target, tile)]
    return sorted(found, key=lambda c: seconds(p, target, c))


def _widths(p: Problem, target: Target, c: Config) -> list[int]:
    """Vectors of pixels in a tile: more than one where a long row is convolved to so few channels that other algorithms
    refuse; elsewhere they are faster than the model of this one says of itself."""
    if c["lanes"] > 1 or _gathers(p, c) or p.kind == "matmul" or p.taps == 1 or p.oc >= target.lanes // 2:
        return [1]
    most = (target.registers - 4) // c["r"]
    return sorted({1, *(q for q in (2, 4, 8) if q <= most and q * c["width"] <= p.o[-1])})


def _tile_of(p: Problem, c: Config, most: int) -> int:
    """Pixels of a tile where lanes are channels, else channels."""
    if c["lanes"] > 1:
        return min(p.o[-1], most)
    return int(max(d for d in _tile.divisors(p.oc) if d <= most))


def seconds(p: Problem, target: Target, c: Config) -> float:
    size = BYTES.get(p.dtype, 4)
    blocks = -(-p.oc // c["lanes"])
    if c["lanes"] > 1:
        tiles = p.mb * blocks * math.prod(p.o[:-1]) * -(-p.o[-1] // c["r"])
    else:
        tiles = p.mb * p.oc // c["r"] * math.prod(p.o[:-1]) * -(-p.o[-1] // (c["width"] * c["q"]))
    tile = _tile.tile_cycles(c["r"], c["q"], p.reduction, target) * size / 4 * (WIDE if c["q"] > 1 else 1)
    tile += p.reduction * _gathers(p, c) * c["width"]
    weights = size * blocks * c["lanes"] * p.reduction
    passes = -(-p.o[0] // c["r"]) if p.kind == "matmul" else p.mb
    copied = p.mb * p.ic * math.prod(_padded(p)) * _copy_cycles(p, target) if _needs_padding(p) else 0.0
    computed = SLOWER[c["lanes"] == 1] * tiles * tile + copied
    return float(computed + _tile.streamed_cycles(weights, passes, target)) / target.rates.clock


def _copy_cycles(p: Problem, target: Target) -> float:
    """Cycles of one element of padded x; the zeros between elements of a transposed problem are not vectorised."""
    return 4.0 if p.kind == "transposed" and max(p.s) > 1 else 4 / target.lanes


def _gathers(p: Problem, c: Config) -> int:
    """Vectors of x in one step whose elements lie apart: lanes of several groups, or pixels a stride or block apart."""
    if c["lanes"] > 1:
        return c["r"] if p.g > 1 and p.ocg % c["lanes"] and not _same_channels(p, c) else 0
    groups = -(-c["r"] // p.ocg) if p.g > 1 else 1
    return groups if c["xb"] > 1 or (p.kind == "conv" and p.s[-1] > 1) else 0


def _same_channels(p: Problem, c: Config) -> bool:
    """Depthwise, with x in the blocks of y: lane for lane."""
    return p.is_depthwise and c["xb"] == c["lanes"]


def pack(w: Any, p: Problem, c: Config) -> Any:
    """w of the model -> [oc blocks, icg, *k, lanes], missing output channels 0, transposed problems' taps flipped."""
    from tvm import te, tirx

    lanes = c["lanes"]

    def value(ob: Any, ci: Any, *rest: Any) -> Any:
        *taps, lane = rest
        o = tirx.min(ob * lanes + lane, p.oc - 1)
        at: tuple[Any, ...] = (o, ci, *taps[: len(w.shape) - 2])
        if p.kind == "matmul":
            at = (ci, o)
        elif p.kind == "transposed":
            at = (o // p.ocg * p.icg + ci, o % p.ocg, *[k - 1 - u for k, u in zip(p.k, taps, strict=True)])
        return tirx.if_then_else(ob * lanes + lane < p.oc, w(*at), tirx.const(0, w.dtype)) if p.oc % lanes else w(*at)

    return te.compute((-(-p.oc // lanes), p.icg, *p.k, lanes), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, o, *pixel] = sum over ci, *k of xp[n, channel, pixel*s + k*d] * w[o, ci, *k]."""
    from tvm import te, tirx

    source = _pad(x, p, c) if _needs_padding(p) else x
    lanes, xb = c["lanes"], c["xb"]
    steps = (1,) * p.rank if p.kind == "transposed" else p.s
    ci = te.reduce_axis((0, p.icg), "ci")
    taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(p.k)]

    def value(n: Any, ob: Any, *rest: Any) -> Any:
        pixel, lane = (rest[:-1], rest[-1]) if lanes > 1 else (rest, 0)
        o = ob * lanes + lane
        if p.oc % lanes and not _same_channels(p, c):
            o = tirx.min(o, p.oc - 1)
        channel = o // p.ocg * p.icg + ci if p.g > 1 else ci
        at = [q * s + u * d for q, s, u, d in zip(pixel, steps, taps, p.d, strict=True)]
        where = (n, channel, *at) if xb == 1 else (n, channel // xb, *at, channel % xb)
        return te.sum(source(*where) * w(ob, ci, *taps, lane), axis=[ci, *taps])

    shape = (p.mb, -(-p.oc // lanes), *p.o)
    return te.compute((*shape, lanes) if lanes > 1 else shape, value, name="y")


def _padded(p: Problem) -> tuple[int, ...]:
    """Extents of x that the windows touch: padding included and, transposed, with s - 1 zeros between its elements."""
    steps = (1,) * p.rank if p.kind == "transposed" else p.s
    return tuple((o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(p.o, steps, p.k, p.d, strict=True))


def _needs_padding(p: Problem) -> bool:
    if p.kind == "transposed":
        return any(s > 1 for s in p.s) or any((k - 1) * d != 0 for k, d in zip(p.k, p.d, strict=True)) or p.o != p.i
    return any(p.p) or any(a > 0 for a in p.after)


def _pad(x: Any, p: Problem, c: Config) -> Any:
    from tvm import te, tirx

    transposed = p.kind == "transposed"
    shape = [*x.shape[:2], *_padded(p), *x.shape[2 + p.rank :]]

    def value(*index: Any) -> Any:
        at, inside = [], []
        for axis, place in enumerate(index[2 : 2 + p.rank]):
            start = (p.k[axis] - 1) * p.d[axis] - p.p[axis] if transposed else p.p[axis]
            step = p.s[axis] if transposed else 1
            place = place - start
            inside += [place >= 0, place < p.i[axis] * step] + ([place % step == 0] if step > 1 else [])
            at.append(place // step)
        found = x(*index[:2], *at, *index[2 + p.rank :])
        return tirx.if_then_else(tirx.all(*inside), found, tirx.const(0, x.dtype))

    return te.compute(shape, value, name="xp")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """padded x; n, channels, pixels | channels and taps | one tile of accumulators."""
    y, z = sch.get_sblock("y"), sch.get_sblock("z")
    if _needs_padding(p):
        n, channel, *_ = loops = sch.get_loops(sch.get_sblock("xp"))
        sch.vectorize(loops[-1])
        _spread(sch, sch.fuse(n, channel), target)
    n, ob, *rest = sch.get_loops(y)
    pixel, rest = rest[: p.rank], rest[p.rank :]
    if c["lanes"] > 1:
        lane, *reductions = rest
        column, ri = sch.split(pixel[-1], [None, c["r"]])
        order, inner = [n, ob, *pixel[:-1], column], [ri, lane]
    else:
        reductions = rest
        ob, ri = sch.split(ob, [None, c["r"]])
        column, qi, lane = sch.split(pixel[-1], [None, c["q"], min(p.o[-1], c["width"])])
        order, inner = [n, ob, *pixel[:-1], column], [ri, qi, lane]
    sch.reorder(*order, *reductions, *inner)
    sch.annotate(column, "pragma_loop_partition_hint", 1)  # the tail gets code of its own: without a test per element
    place = _tile.accumulate_apart if _is_apart(p, c) else _tile.accumulate
    _spread(sch, sch.fuse(*order[:-1]), target)
    place(sch, y, z, column, reductions=reductions, inner=inner)


def _is_apart(p: Problem, c: Config) -> bool:
    """Whether the epilogue is a pass of its own: lanes do not divide a row of the result, or a tile is one element."""
    return c["yb"] % c["lanes"] > 0 or (c["lanes"] == 1 and c["r"] == 1 and p.o[-1] == 1)


def _spread(sch: Any, loop: Any, target: Target) -> None:
    if target.threads > 1:
        sch.parallel(loop)


def memory(p: Problem, c: Config) -> int:
    """Padded x, and y where the epilogue is a pass of its own."""
    size, total = BYTES.get(p.dtype, 4), 0
    if _needs_padding(p):
        total += p.mb * -(-p.ic // c["xb"]) * c["xb"] * math.prod(_padded(p))
    if _is_apart(p, c):
        total += p.mb * -(-p.oc // c["lanes"]) * c["lanes"] * math.prod(p.o)
    return size * total


ALGORITHM = Algorithm(
    name="fallback",
    source="",
    refuses=refuses,
    space=space,
    seconds=seconds,
    pack=pack,
    define=define,
    schedule=schedule,
    error=_tile.recursive_error,
    memory=memory,
)


def space_on_cuda(p: Problem, target: Target) -> Sequence[Config]:
    """Every pair of layouts that the tensors can have."""
    found = [{"xb": xb, "yb": yb, "lanes": yb} for xb, yb in _matrix.layouts(p, target)]
    return sorted(found, key=lambda c: (_threads.seconds(p, target, c), c["yb"]))


def define_on_cuda(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """The same, of 2-byte types with products and sums in float32, of 8-bit types in int32."""
    return define(_widened(x), _widened(w), p, c) if p.dtype in (*HALVES, *SUMS) else define(x, w, p, c)


def _widened(x: Any) -> Any:
    from tvm import te

    return te.compute(x.shape, lambda *index: _gpu.wide(x(*index)), name=f"{x.op.name}_wide")


ON_CUDA = Algorithm(
    name="fallback",
    source="",
    refuses=refuses,
    space=space_on_cuda,
    seconds=_threads.seconds,
    pack=pack,
    define=define_on_cuda,
    schedule=_threads.schedule,
    error=_gpu.error,
    memory=lambda p, c: 0,
    limit=_threads.limit,
    kind="cuda",
)
