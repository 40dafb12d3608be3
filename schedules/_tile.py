"""Register tiles: what fits, what it costs, and how a schedule forms one. Shared by the algorithms that keep
`pixels` x `vectors` accumulators in registers: a step of the reduction takes a broadcast a pixel, a load a vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from convc.algorithm import Config, unevenness
from convc.problem import Problem
from convc.target import Target

SPILL = "t"  # the sblock that copies y's tile for a long epilogue
UNROLL = 64  # multiply-adds in an unrolled body: more gains nothing and leaves the micro-op cache


def ranked(
    p: Problem, target: Target, found: Iterable[Config],
    seconds: Callable[[Problem, Target, Config], float], tasks: Callable[[Problem, Target, Config], int],
) -> list[Config]:  # fmt: skip
    """`found` by modelled time on the target's threads."""
    return sorted(found, key=lambda c: seconds(p, target, c) * unevenness(tasks(p, target, c), target.threads))


def shares(pieces: int, tiles: int, target: Target) -> int:
    """In how many parts to cut `tiles` of output channels so that pieces x parts busy the threads most evenly; as few
    as come within a twentieth of that, as each part prepares x for itself."""
    if target.threads == 1:
        return 1
    found = [n for n in divisors(tiles) if n <= 4 * target.threads]
    best = min(unevenness(pieces * n, target.threads) for n in found)
    return next(n for n in found if unevenness(pieces * n, target.threads) <= 1.05 * best)


def recursive_error(p: Problem, c: Config) -> float:
    """Recursive summation of n products: n roundings a term at worst (Higham 2002, section 3.1)."""
    return float(p.reduction)


@cache
def divisors(n: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, n + 1) if n % d == 0)


def even(extent: int) -> list[int]:
    """Sizes that cut `extent` in pieces as even as can be, largest first."""
    return sorted({-(-extent // count) for count in range(1, extent + 1)}, reverse=True)


def step_cycles(pixels: int, vectors: int, reduction: int, target: Target) -> float:
    """Cycles of one reduction step of a tile: the tightest of FMA ports, FMA latency, load ports and L2 bandwidth;
    more where the tile, its weights and a broadcast fill more registers than the compiler handles without spills."""
    rates = target.rates
    fma = pixels * vectors / rates.fma
    loads = (pixels + vectors) / rates.load
    weights = vectors * target.lanes * 4
    streamed = weights / rates.l2 if reduction * weights > 0.75 * target.l1 else 0.0
    crowded = max(0, pixels * vectors + vectors + 1 - rates.room) * rates.crowd
    return max(fma, loads, streamed, rates.latency) * (1 + crowded) + rates.step


def tile_cycles(pixels: int, vectors: int, reduction: int, target: Target) -> float:
    """Cycles of one tile: all steps, and clearing, epilogue and stores (about two operations an accumulator)."""
    return reduction * step_cycles(pixels, vectors, reduction, target) + 2 * pixels * vectors + 20


def row_cycles(extent: int, pixels: int, vectors: int, reduction: int, target: Target) -> float:
    """Cycles of `extent` pixels in tiles of `pixels`, the last one narrower."""
    whole, rest = divmod(extent, pixels)
    tail = tile_cycles(rest, vectors, reduction, target) if rest else 0.0
    return whole * tile_cycles(pixels, vectors, reduction, target) + tail


def fits(pixels: int, vectors: int, target: Target, *, depth: int = 16) -> bool:
    """Accumulators, the weights of one step, and one broadcast must stay in registers.

    With AVX-512 a multiply-add can broadcast from memory; LLVM uses that where four or more vectors share the pixel
    and two or more steps of `depth` are unrolled (7 x 4 then keeps all 32 registers busy without a spill in the loop;
    7 x 4 without unrolling and 15 x 2 spill and drop to 30-40 GFLOP/s).
    """
    spare = 0 if target.lanes == 16 and vectors >= 4 and depth > 1 else 1
    return pixels * vectors + vectors + spare <= target.registers


def parts(depth: int, step_bytes: int, held: int, tile: tuple[int, int], target: Target) -> list[int]:
    """Blocks of channels per part of the reduction that are worth trying.

    All `depth` of them; and, where the weights of all (`step_bytes` a block) outgrow what L2 hides while the `held`
    vectors of y fit L1, as many as L1 holds the weights of. Only for a `tile` (pixels, vectors) of few accumulators
    in one or two vectors: LLVM spills the others (7 x 2: 169 GFLOP/s, 7 x 4 and 4 x 4: 30-60).
    """
    pixels, vectors = tile
    whole = depth * step_bytes
    if whole <= target.l2 // 4 or 4 * target.lanes * held > 0.7 * target.l1 or vectors > 2:
        return [depth]
    if pixels * vectors > target.registers // 2:
        return [depth]
    return [depth, max(d for d in divisors(depth) if d * step_bytes <= max(step_bytes, 1.5 * target.l1))]


def exposed_cycles(streamed: float, parts: int, held: int) -> float:
    """What streaming from beyond L2 adds to the compute it overlaps with, weights being asked for ahead: a seventh, a
    tenth where parts spread it evenly; those load and store the `held` vectors of y each time."""
    return 0.15 * streamed if parts == 1 else 0.1 * streamed + 2.0 * parts * held


def streamed_cycles(size: float, passes: float, target: Target) -> float:
    """Cycles to bring `size` bytes from beyond L2 `passes` times, where one pass already leaves nothing in L2."""
    again = passes if size > 0.8 * target.l2 else 1
    return size * again / target.rates.far


def tiles(extent: int, blocks: int, target: Target, *, depth: int = 16) -> Iterator[tuple[int, int]]:
    """(pixels, vectors) that fit: vectors divide `blocks`; pixels cut `extent` in tiles as even as can be."""
    for vectors in (v for v in divisors(blocks) if v <= 8):
        most = max(p for p in range(1, target.registers) if p == 1 or fits(p, vectors, target, depth=depth))
        least = max(1, most // 2)
        for count in range(-(-extent // most), -(-extent // least) + 1):
            yield -(-extent // count), vectors


def unroll_factor(pixels: int, vectors: int, depth: int) -> int:
    """How many of `depth` steps to unroll: a divisor of it that keeps the body near UNROLL multiply-adds."""
    return max(d for d in divisors(depth) if d <= max(1, UNROLL // (pixels * vectors)))


def unrolls(pixels: int, vectors: int, depth: int, target: Target) -> list[int]:
    """Unroll factors worth trying: none, the most that `unroll_factor` admits, and half of it."""
    most = unroll_factor(pixels, vectors, depth)
    if fits(pixels, vectors, target, depth=1):
        return sorted({1, max(d for d in divisors(depth) if d <= max(1, most // 2)), most})
    return [max(most, next((d for d in divisors(depth) if d > 1), 1))]


def split_tail(sch: Any, loop: Any, tail: int, target: Target) -> None:
    """Give the last, narrower tile of `loop` code of its own, so that the others carry no predicate.

    With 32 registers: 139 -> 210 GFLOP/s on 55 pixels in tiles of 14. With 16 the second body costs more than the
    predicates (117 -> 94 on the same problem).
    """
    if tail and target.registers >= 32:
        sch.annotate(loop, "pragma_loop_partition_hint", 1)


def accumulate(
    sch: Any, y: Any, z: Any, at: Any, *, reductions: Sequence[Any], inner: Sequence[Any], unrolled: Sequence[Any] = ()
) -> None:
    """Hold y's tile in registers over `reductions`, and apply the epilogue z when it is complete.

    rewrite, below loop `at`:
        for tile: for k: y += x * w            for tile: y' = 0
        for all: z = epilogue(y)          ->   for k: for tile (unrolled): y' += x * w (vectorised)
                                               for tile: z = epilogue(y')
    """
    lanes = int(sch.get(inner[-1]).extent)
    in_registers(sch, [*unrolled, *inner])
    place_epilogue(sch, z, at, lanes)
    in_registers(sch, own_loops(sch, sch.decompose_reduction(y, reductions[0]), at))


def accumulate_in_parts(
    sch: Any, y: Any, z: Any, at: Any, *, reductions: Sequence[Any], inner: Sequence[Any], unrolled: Sequence[Any] = ()
) -> None:
    """As `accumulate`, where loop `at` holds many register tiles and `reductions[0]` is outside of them.

    Weights of one part of the reduction then serve every tile while they are in L1; y waits in L1 between the parts.
    """
    in_registers(sch, [*unrolled, *inner])
    place_epilogue_over_tiles(sch, z, at)
    sch.vectorize(sch.get_loops(sch.decompose_reduction(y, reductions[0]))[-1])


def ask_ahead(sch: Any, loops: Sequence[Any], block: int) -> None:
    """Every pass of `loops`, which are directly within each other, reads a block of `block` contiguous elements of the
    weights, in order and possibly more than once: ask for the next block, in equal parts in all of its iterations.

    Where weights come from memory: on Zen 5 a product of 49 rows of 2048 channels takes 405 us instead of 455 in a
    network, Winograd with 256 channels at 14 x 14 410 instead of 500.
    """
    from convc.lower.prefetch import BLOCK, DEPTH

    for depth, loop in enumerate(loops):
        sch.annotate(loop, DEPTH, depth)
    sch.annotate(loops[-1], BLOCK, block)


def place_epilogue(sch: Any, z: Any, at: Any, lanes: int) -> None:
    """Unrolled, straight from the registers; or, where it is long, as a loop over a copy of the tile on the stack.

    Unrolled over 28 accumulators a gelu keeps so much alive that LLVM spills through it and through the reduction
    before it: 44 instead of 160 GFLOP/s.
    """
    for producer in sch.get_producers(z):
        if sch.get(producer).name_hint == SPILL:
            sch.reverse_compute_at(producer, at)
            sch.reverse_compute_at(z, at)
            in_registers(sch, _in_vectors(sch, own_loops(sch, producer, at), lanes))
            if own := _in_vectors(sch, own_loops(sch, z, at), lanes):
                sch.vectorize(own[-1])
            return
    sch.reverse_compute_at(z, at)
    in_registers(sch, _in_vectors(sch, own_loops(sch, z, at), lanes))


def place_epilogue_over_tiles(sch: Any, z: Any, at: Any) -> None:
    """Below `at`, which holds several register tiles: a loop over them all, in vectors, that needs no copy."""
    for producer in sch.get_producers(z):
        if sch.get(producer).name_hint == SPILL:
            sch.compute_inline(producer)
    sch.reverse_compute_at(z, at)
    sch.vectorize(sch.get_loops(z)[-1])


def _in_vectors(sch: Any, loops: Sequence[Any], lanes: int) -> list[Any]:
    """The loops, the last one split where it is several vectors of `lanes`."""
    if not loops or int(sch.get(loops[-1]).extent) <= lanes:
        return list(loops)
    return [*loops[:-1], *sch.split(loops[-1], [None, lanes])]


def accumulate_apart(
    sch: Any, y: Any, z: Any, at: Any, *, reductions: Sequence[Any], inner: Sequence[Any], unrolled: Sequence[Any] = ()
) -> None:
    """As `accumulate`, with the epilogue as a pass of its own: for rows of the result that no vector divides."""
    in_registers(sch, [*unrolled, *inner])
    in_registers(sch, own_loops(sch, sch.decompose_reduction(y, reductions[0]), at))


def in_registers(sch: Any, loops: Sequence[Any]) -> None:
    sch.vectorize(loops[-1])
    for loop in loops[:-1]:
        sch.unroll(loop)


def own_loops(sch: Any, sblock: Any, at: Any) -> list[Any]:
    """Loops of `sblock` below `at`."""
    loops = list(sch.get_loops(sblock))
    refs = [sch.get(loop) for loop in loops]
    parent = sch.get(at)
    depth = next(i for i, ref in enumerate(refs) if ref.same_as(parent))
    return loops[depth + 1 :]
