"""Where the time of a run goes, call by call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convc.report.names import is_generic, is_relayout
from convc.report.timing import Timing, rounds_within, timing_of
from convc.runtime.artifact import Layer
from convc.runtime.loader import Bound

SECONDS = 3.0


@dataclass(frozen=True)
class Row:
    """One call: median us, share of the sum over all calls, GFLOP/s, fraction of the peak (None unknown), GB/s."""

    layer: Layer
    us: float
    spread: float
    share: float
    gflops: float
    of_peak: float | None
    gbytes: float


@dataclass(frozen=True)
class Profile:
    """`total` is the sum of the calls in us, `whole` a run at once; `relayout` and `generic` are shares of the sum.

    `stepping` is what each call took longer than within a whole run, in us: coming from Python, and on a GPU a
    mark in the stream, costs a microsecond or two. It is taken off every call.
    """

    rows: tuple[Row, ...]
    total: float
    whole: Timing
    stepping: float
    relayout: float
    generic: float

    @property
    def overhead(self) -> float:
        """What the walk over the plan adds to the calls, as a fraction of a whole run."""
        return 1 - self.total / self.whole.median


def profile(
    bound: Bound, *, gflops_peak: float | None, rounds: int | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Profile:  # fmt: skip
    """Steps through all calls and runs the whole, in turns, as often as fits some seconds or `rounds` says."""
    layers = bound.layers
    start = time.perf_counter()
    bound.steps_us()
    bound.run_us()
    count = rounds or rounds_within((time.perf_counter() - start) * 10 / SECONDS)
    steps, wholes = [], []
    for done in range(count):
        steps.append(bound.steps_us())
        wholes.append(bound.run_us())
        told(done + 1, count)
    timings, whole = [timing_of(us) for us in zip(*steps, strict=True)], timing_of(wholes)
    stepping = _stepping(timings, whole)
    total = sum(timing.median - stepping for timing in timings)
    rows = tuple(
        _row(layer, timing, stepping, total, gflops_peak) for layer, timing in zip(layers, timings, strict=True)
    )
    return Profile(
        rows,
        total,
        whole,
        stepping,
        relayout=sum(row.share for row in rows if is_relayout(row.layer)),
        generic=sum(row.share for row in rows if is_generic(row.layer)),
    )


def _stepping(calls: Sequence[Timing], whole: Timing) -> float:
    """us a call, at most what the shortest took."""
    if not calls:
        return 0.0
    more = (sum(timing.median for timing in calls) - whole.median) / len(calls)
    return max(0.0, min(more, *(timing.least for timing in calls)))


def _row(layer: Layer, timing: Timing, stepping: float, total: float, peak: float | None) -> Row:
    us = max(timing.median - stepping, 1e-3)
    gflops = layer.flops / us / 1e3
    of_peak = gflops / peak if peak and layer.flops else None
    share = (timing.median - stepping) / max(total, 1e-3)
    return Row(layer, us, timing.spread, share, gflops, of_peak, layer.bytes / us / 1e3)
