"""The tiles of im2win on GPUs: which are worth trying, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from convc.algorithm import Config
from convc.gpu import SCHEDULERS, WARP, Gpu
from convc.problem import Problem
from convc.schedules import _gpu, _tile
from convc.schedules._im2win_form import VECTOR, axes, block_columns, form, pixels, quads, shared_bytes, tiles, vector
from convc.target import GpuTarget, Target

HEIGHTS = range(3, 15)  # rows of a strip
CHANNELS = (
    (8, 4), (8, 6), (8, 8), (8, 12), (8, 16), (4, 8), (4, 12), (4, 16), (8, 3), (4, 4), (4, 2), (16, 4), (16, 2),
)  # fmt: skip  (of a thread, threads)
THREADS = (64, 384)
REGISTERS = 180  # a thread by our estimate; beyond it nvcc takes all there are
PRODUCTS = 64  # of a slice and output, about: enough to hide the way to memory behind
FEW = 4096  # outputs a multiprocessor that are too few threads: only then sums are cut into parts, which take memory
PARTED = 4  # thread blocks of all parts a multiprocessor: with more of them, nothing is left to fill
LONGEST = 1024  # multiply-adds of a column of taps, all of them unrolled
ADDRESS = 36.0  # instructions until a thread knows where an element of x comes from, and whether
COPY = 5.0  # and to copy it, in each channel
WEIGHTS = 14.0  # and for 16 bytes of weights
OVERLAPPED = 0.05  # part of what runs beside the slowest that adds to it: of tiles that are as good, the larger one
LOOP = 10.0  # instructions around those of a column of taps
BARRIER = 20.0  # and around those of a slice


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
        return f"no tile of {THREADS[0]} threads divides {p.ocg} output channels a group and has room for {p.taps} taps"
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
            if wasted > 2 * best or registers(p, base) > REGISTERS:
                continue
            best = min(best, wasted)
            found += [(wasted, c) for c in _sliced(p, target, base)]
    yield from (c for wasted, c in found if wasted <= 1.5 * best)


def _sliced(p: Problem, target: GpuTarget, base: Config) -> Iterator[Config]:
    """In slices of about PRODUCTS, fewer and more; copied asynchronously where the machine can."""
    prefetch = 2 if target.capability >= (8, 0) else 1
    sizes = [ck for ck in _tile.divisors(p.icg) if ck * p.taps <= 2 * PRODUCTS or ck == 1][-2:]
    few = p.mb * p.oc * math.prod(p.o) < FEW * target.gpu.multiprocessors
    most = PARTED * target.gpu.multiprocessors // math.prod(tiles(p, base)) if few else 1
    for ck in sizes:
        slices = p.icg // ck
        for sk in (d for d in _tile.divisors(slices) if d == 1 or d <= most):
            piped = {"double": 1, "prefetch": prefetch} if sk < slices else {"double": 0, "prefetch": 0}
            c = {**base, "ck": ck, "sk": sk, "shared": 1, "micro": 1, **piped}
            fits = shared_bytes(p, c) <= target.l1 and registers(p, c) <= REGISTERS
            if fits and memory(p, c) <= im2col_bytes(p):
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
    """An estimate: accumulators, a strip, the weights of two rows of taps, addresses, and what nvcc moves ahead; what
    is on its way to shared memory, unless it is copied asynchronously."""
    tile = c["rh"] * c["tn"] * 11 // 10 + form(p, c).strip + 2 * c["tn"] + 26
    return tile + (rounds(p, c) * c["ck"] + VECTOR * weight_rounds(p, c) if c.get("prefetch") == 1 else 0)


def rounds(p: Problem, c: Config) -> int:
    """In how many rounds the threads of a block copy a window, each an element in all channels."""
    f = form(p, c)
    return -(-c["nb"] * f.groups * f.across * f.height // (pixels(c) * c["tx"]))


def weight_rounds(p: Problem, c: Config) -> int:
    """And the weights of a slice, 16 bytes each."""
    return -(-c["ck"] * p.taps * block_columns(c) // (VECTOR * pixels(c) * c["tx"]))


def cost(p: Problem, target: GpuTarget, c: Config) -> _gpu.Cost:
    gpu, f = target.gpu, form(p, c)
    threads = _gpu.rounded(pixels(c) * c["tx"], WARP)
    warps, slices = threads // WARP, p.icg // c["ck"] // c["sk"]
    step = warps * _step(p, c, gpu)
    window, weights = c["ck"] * c["nb"] * f.groups * f.across * f.rows, c["ck"] * p.taps * block_columns(c)
    hidden = step if c["double"] and c["prefetch"] else 0.0
    block = _gpu.Block(
        threads, registers(p, c), shared_bytes(p, c), slices * step + 2 * c["rh"] * c["tn"] * warps,
        slices * max(0.0, _gpu.LATENCY - hidden), 4.0 * slices * (window + weights),
    )  # fmt: skip
    compulsory = 4.0 * (p.mb * (p.ic * math.prod(p.i) + p.oc * math.prod(p.o)) + p.oc * p.reduction)
    found = _gpu.cost(block, math.prod(tiles(p, c)) * c["sk"], compulsory, gpu)
    if c["sk"] == 1:
        return found
    moved = memory(p, c) + 4.0 * p.mb * p.oc * math.prod(p.o)
    return _gpu.Cost(found.seconds + _gpu.streamed(moved, gpu), found.limit)


def _step(p: Problem, c: Config, gpu: Gpu) -> float:
    """Cycles of a multiprocessor for a slice of one warp: multiply-adds, or all instructions at one a cycle and
    scheduler, or reads of shared memory, whichever is slowest."""
    f, (along, across), ck = form(p, c), axes(p), c["ck"]
    strip, weights = f.strip / f.lanes, along.k * c["tn"] / quads(c)[2]
    multiplied = ck * p.taps * c["rh"] * c["tn"]
    copied = rounds(p, c) * (ADDRESS + COPY * ck / vector(p, c)) + WEIGHTS * weight_rounds(p, c)
    issued = multiplied + ck * across.k * (strip + weights + LOOP) + copied + BARRIER
    places = math.ceil(min(WARP, pixels(c)) * f.lanes / WARP)  # of 128 bytes, in which the threads' accesses lie
    read = ck * across.k * (strip * places + weights)
    limits = multiplied * WARP / gpu.fma, issued / SCHEDULERS, read
    return max(limits) * (1 - OVERLAPPED) + OVERLAPPED * sum(limits)


seconds, limit = _gpu.modelled(cost)


def memory(p: Problem, c: Config) -> int:
    """The sums of parts; windows live in shared memory."""
    return 4 * c["sk"] * math.prod(tiles(p, c)) * pixels(c) * c["rh"] * block_columns(c) if c["sk"] > 1 else 0


def im2col_bytes(p: Problem) -> int:
    return 4 * p.mb * p.g * p.reduction * math.prod(p.o)


def ablation(p: Problem, target: Target) -> list[tuple[str, Config]]:
    """The steps of the paper, each with those before it: (what it adds, config). Row-major, as there: a thread of one
    output has no block of channels."""
    found = space(p, target)
    whole = [c for c in found if c["sk"] == c["xb"] == c["yb"] == 1]
    best = dict(next((c for c in whole if c["ck"] < p.icg), whole[0]))
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
