"""Measuring so that it can be compared: in turns, in random order, medians and spread."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

SECONDS = 10.0  # that all rounds together may take where their number is not given
ROUNDS = (9, 99)  # the least and the most of them; odd, so that the median is a measured one


@dataclass(frozen=True)
class Timing:
    """Of one thing over all rounds, in us: median, median absolute deviation, fastest."""

    median: float
    spread: float
    least: float
    rounds: int


def timing_of(us: Sequence[float]) -> Timing:
    median = statistics.median(us)
    return Timing(median, statistics.median(abs(value - median) for value in us), min(us), len(us))


def timed(run: Callable[[], object]) -> float:
    """us of one run, after one that is not measured: whoever follows another program finds its caches gone."""
    run()
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1000


def rounds_within(seconds_per_round: float) -> int:
    """How many rounds to make by default."""
    fitting = int(SECONDS / max(seconds_per_round, 1e-9))
    return max(ROUNDS[0], min(ROUNDS[1], fitting)) | 1


def race(
    measures: Mapping[str, Callable[[], float]],
    *,
    rounds: int | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
) -> dict[str, Timing]:
    """Each of `measures` (returns us) once in each round, in random order. A first round only warms up."""
    order = random.Random(seed)
    start = time.perf_counter()
    for measure in measures.values():
        measure()
    count = rounds or rounds_within(time.perf_counter() - start)
    found: dict[str, list[float]] = {name: [] for name in measures}
    for done in range(count):
        for name in order.sample(list(measures), len(measures)):
            found[name].append(measures[name]())
        told(done + 1, count)
    return {name: timing_of(us) for name, us in found.items()}
