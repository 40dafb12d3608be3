"""Trials: candidates built, checked, timed and written down, those that fail with the reason.

A candidate is right where it computes normal numbers within its algorithm's bound and whole ones exactly, if the
algorithm can, in memory whose ends are guarded, with the same bits twice and on one thread, and with tasks that do not
see each other's writes (trial.c). Only a right one is timed, with nothing else of the session running; the whole
numbers, which show a wrong index where rounding could hide it, come after that, so that a time of something remembered
is not believed. One that is to replace another is timed in turns with it.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from convc.errors import ConvcError
from convc.target import Target
from convc.tune.build import Builders, Candidate, Compiled, Refused
from convc.tune.child import Ended, Failed
from convc.tune.device import NO_MEMORY, VERDICTS, Device, Timed
from convc.tune.library import trial_library
from convc.tune.record import MAX_US, Record, schedule_hash
from convc.tune.workload import Data

SECONDS = 0.03  # of timing, a candidate
RACE_SECONDS = 0.12  # of timing in turns, a candidate
ATTEMPTS = 3
NOISY = 0.25  # of its time, the spread above which a measurement says nothing
LEAST_US = 0.005  # that a kernel can take: a call of a function
TIMES_PEAK = 16  # the machine's peak, above which a time cannot be true: no algorithm saves so many multiplications


@dataclass
class Trials:
    """`builders` and `device` are the session's; `peak` in GFLOP/s is of the target's threads, None where unknown;
    `noisy` is the spread, relative to the time, above which a measurement says nothing."""

    target: Target
    builders: Builders
    device: Device
    peak: float | None = None
    noisy: float = NOISY
    compiled: dict[str, Compiled] = field(default_factory=dict)

    def run(
        self, candidates: Sequence[Candidate], *, told: Callable[[Record], None] = lambda record: None
    ) -> list[Record]:
        """A record of each, in their order; `told` each as soon as it is known."""
        built = self.build(candidates)
        right = [(c, b) for c, b in zip(candidates, built, strict=True) if isinstance(b, Compiled)]
        numbers = {str(c): i for i, (c, _) in enumerate(right)}
        loaded = self._load([b for _, b in right]) if right else None

        def one(candidate: Candidate, result: Compiled | Refused) -> Record:
            if isinstance(result, Refused):
                return self._refused(candidate, result.status, result.reason)
            if loaded:
                return self._alone(candidate, result)
            return self._tried(candidate, numbers[str(candidate)], result)

        found = []
        for record in self._each(one, candidates, built, apart=loaded is not None):
            told(record)
            found.append(record)
        return found

    def _each(
        self, one: Callable[[Candidate, Compiled | Refused], Record], candidates: Sequence[Candidate],
        built: Sequence[Compiled | Refused], *, apart: bool,
    ) -> Iterator[Record]:  # fmt: skip
        """In their order, as many at once as the device takes; one by one where each loads a library of its own."""
        if self.device.width == 1 or apart:
            yield from map(one, candidates, built)
            return
        with ThreadPoolExecutor(self.device.width) as pool:
            yield from pool.map(one, candidates, built)

    def build(self, candidates: Sequence[Candidate]) -> list[Compiled | Refused]:
        """The code of each, which races find in `compiled`."""
        found = list(self.builders.build(candidates))
        self.compiled.update((str(c), b) for c, b in zip(candidates, found, strict=True) if isinstance(b, Compiled))
        return found

    def race(self, candidates: Sequence[Candidate]) -> list[Timed]:
        """Candidates that are right, between the same layouts, timed in turns. Raises Ended or Failed."""
        if self._load([self.compiled[str(c)] for c in candidates]):
            raise Failed("the library of the race cannot be loaded")
        bounds = [c.choice.entry.error(c.workload.problem, c.choice.config) for c in candidates]
        loosest = candidates[bounds.index(max(bounds))]
        data = loosest.workload.data(loosest.choice, exact=False)
        seconds = RACE_SECONDS * len(candidates)
        return self.device.time(range(len(candidates)), data, threads=self.target.threads, seconds=seconds)

    def _load(self, compiled: Sequence[Compiled]) -> str | None:
        """None, or why the candidates' library is not to be had."""
        try:
            self.device.load(trial_library(compiled, self.target))
        except (ConvcError, Ended, Failed) as error:
            return str(error)
        return None

    def _alone(self, candidate: Candidate, compiled: Compiled) -> Record:
        """With a library of its own, as that of all cannot be linked or loaded: one candidate is to blame for that."""
        reason = self._load([compiled])
        return self._refused(candidate, "build", reason) if reason else self._tried(candidate, 0, compiled)

    def _tried(self, candidate: Candidate, number: int, compiled: Compiled) -> Record:
        normal = candidate.workload.data(candidate.choice, exact=False)
        try:
            worst = self._check(number, normal)
            timed = self._timed(number, normal)
            if candidate.choice.entry.grain(candidate.workload.problem, candidate.choice.config):
                self._check(number, candidate.workload.data(candidate.choice, exact=True))
        except Ended as error:
            return self._refused(candidate, error.status, error.reason)
        except Failed as error:
            return self._refused(candidate, "wrong", str(error))
        return self._judged(candidate, timed, worst, compiled)

    def _check(self, number: int, data: Data) -> float:
        """The largest difference, relative to the largest result. Raises Failed or Ended where a candidate is wrong."""
        verdict, off = self.device.check(number, data, threads=self.target.threads)
        if verdict == NO_MEMORY:
            raise Ended("memory", VERDICTS[verdict])
        if verdict:
            raise Failed(f"{VERDICTS[verdict]} (largest difference {off:.3g})" if off > 0 else VERDICTS[verdict])
        return off / max(1e-30, float(abs(data.expected).max()))

    def _timed(self, number: int, data: Data) -> Timed:
        """Again where others disturbed it."""
        found: Timed | None = None
        for _ in range(ATTEMPTS):
            (timed,) = self.device.time([number], data, threads=self.target.threads, seconds=SECONDS)
            if found is None or timed.spread * found.us < found.spread * timed.us:
                found = timed
            if found.spread <= self.noisy / 5 * found.us:
                break
        assert found is not None
        return found

    def _judged(self, candidate: Candidate, timed: Timed, worst: float, compiled: Compiled) -> Record:
        gflops = candidate.workload.problem.flops / max(timed.us, 1e-9) / 1e3
        if not all(LEAST_US <= us < MAX_US for us in (timed.us, timed.warm or timed.us)):
            return self._refused(candidate, "noisy", f"{timed.us:.3g} us is no time that a kernel can take")
        if self.peak and gflops > TIMES_PEAK * self.peak:
            return self._refused(candidate, "noisy", f"{timed.us:.3g} us is faster than the machine can be")
        if not timed.spread <= self.noisy * timed.us:
            return self._refused(candidate, "noisy", f"{timed.us:.3g} us with a spread of {timed.spread:.3g}")
        return self.record(candidate, timed, worst, compiled.workspace_bytes)

    def record(self, candidate: Candidate, timed: Timed, error: float, workspace: int) -> Record:
        gflops = candidate.workload.problem.flops / timed.us / 1e3
        peak = min(100.0, gflops / self.peak) if self.peak else None
        return replace(
            self._refused(candidate, "noisy", "not timed yet"), status="ok", reason="", us=timed.us, us_warm=timed.warm,
            spread=timed.spread / timed.us, peak=peak, error=min(1.0, error), workspace=workspace,
        )  # fmt: skip

    def _refused(self, candidate: Candidate, status: str, reason: str) -> Record:
        from convc.report.machine import package_version

        choice = candidate.choice
        return Record(
            problem=str(candidate.workload.problem), epilogue=candidate.workload.epilogue, target=self.target.label,
            threads=self.target.threads, algorithm=choice.algorithm, config=choice.config,
            schedule=schedule_hash(choice.entry), status=status, us=None, us_warm=None, spread=None,
            peak=None, error=None, workspace=0, reason=reason, tvm=package_version("apache-tvm") or "unknown",
            device=self.device.name, date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
