"""The tiles of im2win on GPUs: how a window lies in shared memory, which tiles are worth trying, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from convc.algorithm import Config
from convc.gpu import MOST_REGISTERS, STATIC_SHARED, WARP
from convc.problem import Problem
from convc.schedules import _gpu, _tile
from convc.target import GpuTarget, Target

VECTOR = 4  # float32 numbers in an access of 16 bytes
HEIGHTS = range(3, 15)  # rows of a strip
CHANNELS = (
    (8, 4), (8, 6), (8, 8), (8, 12), (8, 16), (4, 8), (4, 12), (4, 16), (8, 3), (4, 4), (4, 2), (16, 4), (16, 2),
)  # fmt: skip  (of a thread, threads)
THREADS = (64, 384)
PRODUCTS = 64  # of a slice and output, about: enough to hide the way to memory behind
LONGEST = 1024  # multiply-adds of a column of taps, all of them unrolled
COPY = 8.0  # cycles of a multiprocessor to copy an element of x a lane: addresses, the test for padding, the access


class Axis(NamedTuple):
    """Extents of x, y and taps along an axis; stride, padding before, distance of taps."""

    i: int
    o: int
    k: int
    s: int
    p: int
    d: int

    def span(self, outputs: int) -> int:
        """Elements of x from the first to the last under neighbouring outputs."""
        return (outputs - 1) * self.s + (self.k - 1) * self.d + 1


class Form(NamedTuple):
    """How a window lies in shared memory: [ck][nb][groups][across][height], with columns `pitch` elements apart and
    images `image` columns.

    strip   rows that a thread holds of a column, in accesses of `lanes`; `rows` of the window's are under a pixel.
    """

    strip: int
    lanes: int
    rows: int
    height: int
    groups: int
    across: int
    pitch: int
    image: int


@lru_cache(maxsize=4096)
def axes(p: Problem) -> tuple[Axis, Axis]:
    """(along the strips, across them)."""
    found = [Axis(*values) for values in zip(p.i, p.o, p.k, p.s, p.p, p.d, strict=True)]
    return (found[0], found[1]) if p.rank == 2 else (found[0], Axis(1, 1, 1, 1, 0, 1))


def form(p: Problem, c: Config) -> Form:
    return _form(p, c["nb"], c["hs"], c["rh"], c["wb"])


@lru_cache(maxsize=1 << 14)
def _form(p: Problem, nb: int, hs: int, rh: int, wb: int) -> Form:
    along, across = axes(p)
    step = rh * along.s
    lanes = VECTOR if hs == 1 else math.gcd(step, VECTOR)
    strip = _gpu.rounded(along.span(rh), lanes)
    height = (hs - 1) * step + strip
    pitch = _gpu.rounded(height, lanes)
    if lanes == VECTOR and pitch % 8 == 0:
        pitch += VECTOR  # an odd number of accesses: neighbouring columns then start in different banks
    groups = min(across.s, across.k) if across.d == 1 else across.s if across.k > 1 else 1
    columns = wb + (across.k - 1) * across.d // across.s
    image = groups * columns if nb == 1 else _apart(groups * columns, wb, nb)
    return Form(strip, lanes, along.span(hs * rh), height, groups, columns, pitch, image)


@lru_cache(maxsize=4096)
def _apart(held: int, wb: int, nb: int) -> int:
    """Columns from one image to the next, at least `held`, from which few of any 8 threads (as many as an access to
    shared memory serves at once) are in the same of its 8 places: columns are an odd number of places apart."""

    def crowd(image: int) -> int:
        places = [(t // wb * image + t % wb) % 8 for t in range(nb * wb)] * 2
        groups = [places[first : first + 8] for first in range(nb * wb)]
        return max(group.count(place) for group in groups for place in group)

    return min(range(held, held + 8), key=lambda image: (max(2, crowd(image)), image))


def block_columns(c: Config) -> int:
    return c["tx"] * c["tn"]


def columns(p: Problem, c: Config) -> int:
    """Output channels with the lanes that pad the last block."""
    return _gpu.rounded(p.oc, c["yb"])


def tiles(p: Problem, c: Config) -> tuple[int, int, int, int]:
    """Blocks along images, rows, columns and output channels."""
    along, across = axes(p)
    cuts = ((p.mb, c["nb"]), (along.o, c["hs"] * c["rh"]), (across.o, c["wb"]), (columns(p, c), block_columns(c)))
    a, b, d, e = (-(-extent // size) for extent, size in cuts)
    return a, b, d, e


def quads(c: Config) -> tuple[int, int, int]:
    """A block's weights of a tap as (parts, threads, neighbours): a thread has `tn` channels of y in a row, in parts of
    one access, and each part of all threads lies together."""
    lanes = math.gcd(c["tn"], VECTOR)
    return c["tn"] // lanes, c["tx"], lanes



def pixels(c: Config) -> int:
    """Threads of a block that share its weights."""
    return c["nb"] * c["hs"] * c["wb"]


def vector(p: Problem, c: Config) -> int:
    """Channels of x that one access reads; what is copied asynchronously goes where it belongs at once."""
    return VECTOR if c["micro"] and c["prefetch"] < 2 and c["xb"] % VECTOR == 0 and c["ck"] % VECTOR == 0 else 1


def shared_bytes(p: Problem, c: Config) -> int:
    """The window and the weights of a slice, or of two."""
    f = form(p, c)
    window = c["ck"] * c["nb"] * f.image * f.pitch
    return 4 * (1 + c["double"]) * (window + c["ck"] * p.taps * block_columns(c)) if c["shared"] else 0


def scope(p: Problem, c: Config) -> str:
    return "shared" if shared_bytes(p, c) <= STATIC_SHARED else "shared.dyn"


def refuses(p: Problem, target: Target) -> str | None:
    if p.kind != "conv":
        return f"the problem is {p.kind}"
    if p.rank > 2:
        return f"{p.rank} axes"
    if p.taps == 1:
        return "the window of one tap is a copy of x"
    if p.dtype != "float32":
        return f"{p.dtype} is not float32"
    if p.ocg < 8:
        return f"{p.ocg} output channels a group fill less than a tile"
    if not space(p, target):
        return f"no tile divides the {p.ocg} output channels of a group and leaves room for its taps"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    assert isinstance(target, GpuTarget)
    found: list[Config] = []
    for xb in (target.lanes, 1) if p.ic > 1 else (1,):
        ranked = sorted(_configs(p, target, xb), key=lambda c: seconds(p, target, c))[:64]
        found += [{**c, "yb": yb} for c in ranked for yb in (target.lanes, 1)]
    return sorted(found, key=lambda c: seconds(p, target, c))


def _configs(p: Problem, target: GpuTarget, xb: int) -> Iterator[Config]:
    """Every config that fits the machine and wastes little."""
    along, _ = axes(p)
    best = math.inf
    found: list[tuple[float, Config]] = []
    for nb, hs, rh, wb in _pixel_tiles(p):
        for tn, tx in CHANNELS:
            if not THREADS[0] <= nb * hs * wb * tx <= THREADS[1] or along.k * rh * tn > LONGEST:
                continue
            base = {"xb": xb, "yb": target.lanes, "nb": nb, "hs": hs, "rh": rh, "wb": wb, "tx": tx, "tn": tn}
            if p.g > 1 and p.ocg % block_columns(base):
                continue
            wasted = work(p, base)
            if wasted > 2 * best or registers(p, base) > MOST_REGISTERS - 8:
                continue
            best = min(best, wasted)
            found += [(wasted, c) for c in _sliced(p, target, base)]
    yield from (c for wasted, c in found if wasted <= 1.5 * best)


def _sliced(p: Problem, target: GpuTarget, base: Config) -> Iterator[Config]:
    """In slices of about PRODUCTS, fewer and more; copied asynchronously where the machine can."""
    prefetch = 2 if target.capability >= (8, 0) else 1
    sizes = [ck for ck in _tile.divisors(p.icg) if ck * p.taps <= 2 * PRODUCTS or ck == 1][-3:]
    for ck in sizes:
        piped = {"double": 1, "prefetch": prefetch} if ck < p.icg else {"double": 0, "prefetch": 0}
        c = {**base, "ck": ck, "shared": 1, "micro": 1, **piped}
        if shared_bytes(p, c) <= target.l1:
            yield c


def _pixel_tiles(p: Problem) -> Iterator[tuple[int, int, int, int]]:
    """(images, strips, rows of a strip, columns) of a block."""
    along, across = axes(p)
    heights = [h for h in _tile.even(along.o) if h in HEIGHTS] or [min(along.o, HEIGHTS[-1])]
    for rh in heights:
        for wb in _widths(across.o):
            alone = across.o < 4
            step = rh * along.s // math.gcd(rh * along.s, VECTOR)
            strips = (4, 8, 16, 32, 64) if alone and step % 4 else ()  # else four threads and more wait for one bank
            for hs in (1, *(h for h in strips if (h - 1) * rh < along.o)):
                whole = hs * rh >= along.o and wb == across.o
                for nb in (n for n in range(1, 17) if n == 1 or (whole and n <= p.mb)):
                    yield nb, hs, rh, wb


def _widths(extent: int) -> list[int]:
    """Columns of a block: of the widths that differ by less than a quarter, the one that wastes least."""
    found: dict[int, int] = {}
    for width in (w for w in _tile.even(extent) if w <= 64):
        kind = round(math.log(width, 1.25))
        found[kind] = min(found.get(kind, width), width, key=lambda w: -(-extent // w) * w)
    return list(found.values())


def work(p: Problem, c: Config) -> int:
    """Output elements computed, those beyond y and idle threads included."""
    a, b, d, e = tiles(p, c)
    return a * b * d * e * _gpu.rounded(pixels(c) * c["tx"], WARP) * c["rh"] * c["tn"]


def registers(p: Problem, c: Config) -> int:
    """An estimate: accumulators, a strip, the weights of two rows of taps, addresses, and what nvcc moves ahead."""
    return c["rh"] * c["tn"] * 11 // 10 + form(p, c).strip + 2 * c["tn"] + 22


def cost(p: Problem, target: GpuTarget, c: Config) -> _gpu.Cost:
    gpu, f = target.gpu, form(p, c)
    along, across = axes(p)
    threads = _gpu.rounded(pixels(c) * c["tx"], WARP)
    warps, slices = threads // WARP, p.icg // c["ck"]
    fma = warps * along.k * c["rh"] * c["tn"] * WARP / gpu.fma
    distinct = min(WARP, pixels(c))
    loads = warps * (f.strip / f.lanes * math.ceil(distinct * f.lanes / WARP) + along.k * c["tn"] / quads(c)[2])
    window = c["ck"] * c["nb"] * f.groups * f.across * f.height
    weights = c["ck"] * p.taps * block_columns(c)
    copied = COPY * window / vector(p, c) / WARP + 4.0 * weights / VECTOR / WARP
    step = c["ck"] * across.k * (fma + loads / 2) + copied
    hidden = step if c["double"] and c["prefetch"] else 0.0
    block = _gpu.Block(
        threads, registers(p, c), shared_bytes(p, c), slices * step + 2 * c["rh"] * c["tn"] * warps,
        slices * max(0.0, _gpu.LATENCY - hidden), 4.0 * slices * (window * f.rows / f.height + weights),
    )  # fmt: skip
    compulsory = 4.0 * (p.mb * (p.ic * math.prod(p.i) + p.oc * math.prod(p.o)) + p.oc * p.reduction)
    return _gpu.cost(block, math.prod(tiles(p, c)), compulsory, gpu)


def seconds(p: Problem, target: Target, c: Config) -> float:
    assert isinstance(target, GpuTarget)
    return cost(p, target, c).seconds


def memory(p: Problem, c: Config) -> int:
    """Nothing: windows live in shared memory."""
    return 0


def ablation(p: Problem, target: Target) -> list[tuple[str, Config]]:
    """The steps of the paper, each with those before it: (what it adds, config)."""
    found = space(p, target)
    best = dict(next((c for c in found if c["ck"] < p.icg), found[0]))
    single = {"rh": 1, "tn": 1, "hs": best["hs"] * best["rh"], "tx": math.gcd(best["tx"], 8)}
    while single["hs"] * best["wb"] * best["nb"] * single["tx"] > 1024:
        single["hs"] = -(-single["hs"] // 2)
    bare = {**best, **single, "shared": 0, "micro": 0, "double": 0, "prefetch": 0}
    shared = {**bare, "shared": 1}
    tiled = {**best, "micro": 0, "double": 0, "prefetch": 0}
    steps: list[tuple[str, Config]] = [
        ("a thread an output, from global memory", bare),
        ("shared memory", shared),
        ("register tiles", tiled),
        ("vector accesses and the micro-kernel", {**tiled, "micro": 1}),
    ]
    if best["ck"] < p.icg:
        steps.append(("double buffering", {**tiled, "micro": 1, "double": 1}))
        steps.append(("prefetch", {**best, "prefetch": 1}))
    if best["prefetch"] == 2:
        steps.append(("asynchronous copies", best))
    return steps
