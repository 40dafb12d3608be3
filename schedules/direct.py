"""Direct convolution in blocked layouts: pixels x vectors of y in registers, x broadcast, w streamed.

Source: Georganas et al., Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures (SC 2018,
arXiv:1808.05567), with the padded rows of x kept in cache per chunk of output rows instead of in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from convc.algorithm import Algorithm, Config
from convc.dtypes import HALVES
from convc.problem import Problem
from convc.schedules import _gemm, _gpu, _matrix, _tile
from convc.target import GpuTarget, Target


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind != "conv":
        return f"the problem is {p.kind}"
    if p.dtype not in ("float32", "float64"):
        return f"{p.dtype} is not a float type"
    if p.rank == 1 and p.g == 1 and p.is_pointwise and p.s == (1,):
        return "one tap at stride 1 is a matrix product"
    if p.g > 1 and p.ocg % target.lanes:
        return f"{p.ocg} output channels a group do not fill vectors of {target.lanes}"
    if p.oc < target.lanes // 2:
        return f"{p.oc} output channels fill less than half of a vector of {target.lanes}"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    blocks = [target.lanes, 1] if p.ic > 1 else [1]
    found: list[Config] = []
    for xb in blocks:
        found += _tile.ranked(p, target, _configs(p, target, xb), seconds, tasks)[:64]
    return found


def _configs(p: Problem, target: Target, xb: int) -> Iterator[Config]:
    lanes = target.lanes
    kb = math.gcd(p.icg, xb)
    for rw, v in dict.fromkeys(_tile.tiles(p.o[-1], -(-p.ocg // lanes), target, depth=kb)):
        for rh in _heights(p, rw, v, target):
            for ku in _tile.unrolls(rw * rh, v, kb, target):
                for hc in _chunks(p, target, rh):
                    config = {"xb": xb, "yb": lanes, "kb": kb, "rw": rw, "rh": rh, "v": v, "ku": ku, "hc": hc}
                    yield from ({**config, "kc": kc} for kc in _parts(p, target, config))


def _heights(p: Problem, rw: int, v: int, target: Target) -> list[int]:
    """Rows in a tile: more than one only where a row leaves most registers idle."""
    if p.rank < 2 or rw < p.o[-1]:
        return [1]
    return [h for h in _tile.divisors(p.o[-2]) if h == 1 or _tile.fits(h * rw, v, target, depth=1)]


def _chunks(p: Problem, target: Target, rh: int) -> list[int]:
    """Output rows computed at once, with their padded input rows in cache."""
    return [h for h in _tile.divisors(p.o[-2]) if h % rh == 0] if p.rank > 1 else [1]


def _parts(p: Problem, target: Target, c: Config) -> list[int]:
    step = 4 * p.taps * c["kb"] * c["v"] * target.lanes
    return _tile.parts(p.icg // c["kb"], step, _held(p, c), (c["rw"] * c["rh"], c["v"]), target)


def _held(p: Problem, c: Config) -> int:
    """Vectors of y that one chunk and tile of output channels completes."""
    return (1 if p.rank == 1 else c["hc"]) * p.o[-1] * c["v"]


def seconds(p: Problem, target: Target, c: Config) -> float:
    """Register tiles, the rolled loop, the copy of padded rows, and what has to come from beyond L2."""
    groups = p.g * -(-p.ocg // target.lanes) // c["v"]
    rows = p.mb * math.prod(p.o[:-1]) / c["rh"]
    whole, rest = divmod(p.o[-1], c["rw"])
    row = whole * _tile.tile_cycles(c["rh"] * c["rw"], c["v"], p.reduction, target)
    row += _tile.tile_cycles(c["rh"] * rest, c["v"], p.reduction, target) if rest else 0.0
    rolled = 0.5 * p.reduction / c["ku"] * rows * groups * (whole + bool(rest))
    passes = _pieces(p, c)
    chunk = _chunk_bytes(p, c)
    vectors = passes * _shares(p, target, c) * chunk / (4 * target.lanes)
    copied = 2 * vectors if _needs_padding(p) else 0.0  # a load and a store
    weights = _tile.streamed_cycles(4 * p.oc * p.reduction, passes, target)
    x = _tile.streamed_cycles(chunk, groups / p.g, target) * passes
    # Row-major x: each channel of a pixel lies on a cache line of its own, at stride 2 on twice as many of them.
    scattered = 1.0 if c["xb"] > 1 or p.ic <= 4 else 1.15 if max(p.s) == 1 else 1.6
    parts = p.icg // c["kb"] // c["kc"]
    exposed = _tile.exposed_cycles(weights + x, parts, passes * groups * _held(p, c))
    return (max(rows * groups * row * scattered, weights + x) + exposed + rolled + copied) / target.rates.clock


def _pieces(p: Problem, c: Config) -> int:
    """Chunks of rows: pieces of work that share nothing."""
    return p.mb if p.rank == 1 else p.mb * math.prod(p.o[:-1]) // c["hc"]


def _shares(p: Problem, target: Target, c: Config) -> int:
    return _tile.shares(_pieces(p, c), p.g * -(-p.ocg // target.lanes) // c["v"], target)


def tasks(p: Problem, target: Target, c: Config) -> int:
    return _pieces(p, c) * _shares(p, target, c)


def _chunk_bytes(p: Problem, c: Config) -> int:
    """The input rows of one chunk, all channels, padding included."""
    rows = 1 if p.rank < 2 else (c["hc"] - 1) * p.s[-2] + (p.k[-2] - 1) * p.d[-2] + 1
    return 4 * -(-p.ic // c["xb"]) * c["xb"] * math.prod((*p.k[:-2], rows) if p.rank > 1 else ()) * _padded(p)[-1]


def _padded(p: Problem) -> tuple[int, ...]:
    """Extents of x that the windows touch, padding included."""
    return tuple((o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(p.o, p.s, p.k, p.d, strict=True))


def _needs_padding(p: Problem) -> bool:
    return any(p.p) or any(a > 0 for a in p.after)


def pack(w: Any, p: Problem, c: Config) -> Any:
    """[oc, icg, *k] -> [oc tiles, icg/kb, *k, kb, v * lanes], missing output channels 0."""
    from tvm import te, tirx

    width, kb = c["v"] * c["yb"], c["kb"]
    tiles = p.g * -(-p.ocg // c["yb"]) // c["v"]

    def value(t: Any, co: Any, *rest: Any) -> Any:
        *taps, ci, lane = rest
        o = t * width + lane
        found = w(tirx.min(o, p.oc - 1), co * kb + ci, *taps)
        return found if p.oc == tiles * width else tirx.if_then_else(o < p.oc, found, tirx.const(0, w.dtype))

    return te.compute((tiles, p.icg // kb, *p.k, kb, width), value, name="packed")


def define(x: Any, w: Any, p: Problem, c: Config) -> Any:
    """y[n, ob, *o, lane] = sum over co, *k, ci of x[n, channel, o*s + k*d - p] * w[tile, co, *k, ci, lane]."""
    from tvm import te

    source = _pad(x, p, c) if _needs_padding(p) else x
    lanes, v, kb, xb = c["yb"], c["v"], c["kb"], c["xb"]
    co, ci = te.reduce_axis((0, p.icg // kb), "co"), te.reduce_axis((0, kb), "ci")
    taps = [te.reduce_axis((0, k), f"k{axis}") for axis, k in enumerate(p.k)]

    def value(n: Any, ob: Any, *rest: Any) -> Any:
        *o, lane = rest
        at = [i * s + u * d for i, s, u, d in zip(o, p.s, taps, p.d, strict=True)]
        channel = co * kb + ci if p.g == 1 else ob * lanes // p.ocg * p.icg + co * kb + ci
        where = (n, channel, *at) if xb == 1 else (n, channel // xb, *at, channel % xb)
        return te.sum(source(*where) * w(ob // v, co, *taps, ci, ob % v * lanes + lane), axis=[co, *taps, ci])

    return te.compute((p.mb, -(-p.oc // lanes), *p.o, lanes), value, name="y")


def _pad(x: Any, p: Problem, c: Config) -> Any:
    from tvm import te, tirx

    pixels = slice(2, 2 + p.rank)
    shape = [*x.shape[:2], *_padded(p), *x.shape[pixels.stop :]]

    def value(*index: Any) -> Any:
        at = [i - before for i, before in zip(index[pixels], p.p, strict=True)]
        inside = [tirx.all(a >= 0, a < extent) for a, extent in zip(at, p.i, strict=True)]
        found = x(*index[:2], *at, *index[pixels.stop :])
        return tirx.if_then_else(tirx.all(*inside), found, tirx.const(0, x.dtype))

    return te.compute(shape, value, name="xp")


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """n, row chunk | padded rows | oc tile, row, column tile | taps and channels | pixels x vectors in registers."""
    y, z = sch.get_sblock("y"), sch.get_sblock("z")
    n, ob, *rest = sch.get_loops(y)
    o, (lane, co, *k, ci) = rest[: p.rank], rest[p.rank :]
    tile, v = sch.split(ob, [None, c["v"]])
    wo, wi = sch.split(o[-1], [None, c["rw"]])
    _tile.split_tail(sch, wo, p.o[-1] % c["rw"], target)
    c0, c1 = sch.split(ci, [None, c["ku"]])
    parts = []
    if c["kc"] < p.icg // c["kb"]:
        part, co = sch.split(co, [None, c["kc"]])
        parts = [part]
    if p.rank == 1:
        sch.reorder(n, tile, *parts, wo, co, *k, c0, c1, wi, v, lane)
        outer, passes, inner = [n], [wo], [wi, v, lane]
    else:
        chunk, row, hi = sch.split(o[-2], [None, c["hc"] // c["rh"], c["rh"]])
        sch.reorder(n, *o[:-2], chunk, tile, *parts, row, wo, co, *k, c0, c1, hi, wi, v, lane)
        outer, passes, inner = [n, *o[:-2], chunk], [row, wo], [hi, wi, v, lane]
    if (shares := _shares(p, target, c)) > 1:
        share, tile = sch.split(tile, [shares, None])  # a share pads its rows once for all of its tiles
        sch.reorder(share, tile)
        sch.reorder(*outer, share)
        outer.append(share)
    task = sch.fuse(*outer) if len(outer) > 1 else outer[0]
    if target.threads > 1:
        sch.parallel(task)
    if _needs_padding(p):
        xp = sch.get_sblock("xp")
        sch.compute_at(xp, task)
        sch.vectorize(sch.get_loops(xp)[-1])
    if parts:
        _tile.accumulate_in_parts(sch, y, z, tile, reductions=parts, inner=inner, unrolled=[c1])
        return
    if 4 * p.oc * p.reduction > target.l2 // 2:
        _tile.ask_ahead(sch, [*passes, co, *k, c0], p.reduction * c["v"] * target.lanes)
    _tile.accumulate(sch, y, z, wo, reductions=[co], inner=inner, unrolled=[c1])


def memory(p: Problem, c: Config) -> int:
    held = 4 * c["yb"] * _held(p, c) if c["kc"] < p.icg // c["kb"] else 0
    return held + (_chunk_bytes(p, c) if _needs_padding(p) else 0)


ALGORITHM = Algorithm(
    name="direct",
    source="arXiv:1808.05567",
    refuses=refuses,
    space=space,
    seconds=seconds,
    pack=pack,
    define=define,
    schedule=schedule,
    error=_tile.recursive_error,
    memory=memory,
    tasks=tasks,
)


def refuses_on_cuda(p: Problem, target: Target) -> str | None:
    if p.kind == "transposed":
        return "the problem is transposed"
    if p.dtype not in ("float32", *HALVES):
        return f"{p.dtype} is not float32, float16 or bfloat16"
    if p.ocg < 8:
        return f"{p.ocg} output channels a group fill less than a tile"
    if p.reduction < 8:
        return f"{p.reduction} products an element do not pay for shared memory"
    if not space_on_cuda(p, target):
        return f"no tile divides the {p.ocg} output channels of a group"
    return None


@lru_cache(maxsize=4096)
def space_on_cuda(p: Problem, target: Target) -> Sequence[Config]:
    assert isinstance(target, GpuTarget)
    return _matrix.ranked(p, target, _gemm.configs, _gemm.seconds)


ON_CUDA = Algorithm(
    name="direct",
    source="arXiv:1410.0759",
    refuses=refuses_on_cuda,
    space=space_on_cuda,
    seconds=_gemm.seconds,
    pack=_gemm.pack,
    define=_gemm.define,
    schedule=_gemm.schedule,
    error=_gpu.error,
    memory=_gemm.memory,
    limit=_gemm.limit,
    kind="cuda",
)
