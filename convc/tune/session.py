"""The session: a budget of time over the tasks of a network, each trial written down before the next batch begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from convc.algorithm import Choice
from convc.tune.build import Candidate
from convc.tune.child import Ended, Failed
from convc.tune.device import Timed
from convc.tune.record import Record
from convc.tune.search import FIRST, Search, Task
from convc.tune.surrogate import Surrogate
from convc.tune.trials import Trials

BATCH = 16  # candidates built together: the compilers are then idle for a twentieth of the time
ENOUGH = 0.01  # of the network's time: the expected gain below which the search ends
RACERS = 3  # of a task's fastest candidates that are timed in turns with the one that stands
BETTER = 0.99  # of its time: what a candidate must take in that race to replace it


@dataclass
class Entry:
    """A task with its weight (how often the network computes it), and what stands: the record of the fastest so far,
    which began as the default's. `earlier` is what stood in the logs when the session began."""

    search: Search
    weight: int = 1
    standing: Record | None = None
    default_us: float | None = None
    records: dict[str, Record] = field(default_factory=dict)
    raced: set[frozenset[str]] = field(default_factory=set)

    @property
    def task(self) -> Task:
        return self.search.task

    @property
    def us(self) -> float:
        """Wall time of all its calls: measured, else modelled."""
        best = self.standing.us if self.standing and self.standing.us else self.search.best
        return self.weight * (best or self.search.modelled(self.search.default))


@dataclass(frozen=True)
class Progress:
    """What a person sees while a session runs. `us` is the network's convolutions together, `default_us` what they
    take untuned, `gain` what is still expected to be saved of it; `left` in seconds."""

    trials: int
    refused: int
    tasks: int
    settled: int
    us: float
    default_us: float
    gain: float
    left: float
    best: Record | None


@dataclass
class Session:
    """`deadline` on time.monotonic's clock; `most` trials, None for no limit; `write` makes records durable."""

    trials: Trials
    write: Callable[[Sequence[Record]], None]
    deadline: float
    most: int | None = None
    told: Callable[[Progress], None] = lambda progress: None
    entries: dict[Task, Entry] = field(default_factory=dict)
    count: int = 0
    refused: int = 0
    started: float = field(default_factory=time.monotonic)
    _seconds: float = 2.0  # that a batch takes

    def __post_init__(self) -> None:
        self.surrogate = Surrogate(self.trials.target)

    def add(
        self,
        tasks: Mapping[Task, int],
        known: Iterable[Record] = (),
        *,
        hints: Mapping[Task, Choice | None] | None = None,
    ) -> None:
        """All tasks from now on, with how often each is computed; earlier ones keep what they know. `known` records of
        this target and device count as trials; `hints` are what compile would take now, where it has records."""
        fresh = {
            task: Entry(Search(task, self.surrogate, (hints or {}).get(task)), weight)
            for task, weight in tasks.items()
            if task not in self.entries
        }
        self.entries |= fresh
        for task, known_entry in self.entries.items():
            known_entry.weight = tasks.get(task, 0)
        by_key = {_key(entry): entry for entry in fresh.values()}
        for record in known:
            entry = by_key.get((record.problem, record.epilogue, record.config["xb"], record.config["yb"]))
            if entry and record.status != "noisy":
                self._take(entry, record)

    def run(self) -> None:
        """Until the time, the trials, or what is to be gained come to an end."""
        while self.is_open():
            batch = self._batch()
            if not batch:
                break
            begun = time.monotonic()
            self._measure(batch)
            self._settle({entry.task for entry, _ in batch})
            self._seconds = 0.5 * self._seconds + 0.5 * (time.monotonic() - begun)
            self.told(self.progress())

    def is_open(self) -> bool:
        now = time.monotonic()
        if now + 0.7 * self._seconds > self.deadline or (self.most is not None and self.count >= self.most):
            return False
        return bool(self._without_right()) or self._gain() > ENOUGH

    def progress(self) -> Progress:
        entries = list(self.entries.values())
        gain, now = self._gain(), time.monotonic()
        standing = [e for e in entries if e.standing and e.standing.us and e.default_us]
        top = max(standing, key=lambda e: (e.default_us or 0) * e.weight - e.us, default=None)
        settled = sum(e.search.is_exhausted or e.search.gain() < ENOUGH for e in entries)
        return Progress(
            self.count, self.refused, len(entries), settled,
            sum(e.us for e in entries), sum(e.weight * e.default_us if e.default_us else e.us for e in entries), gain,
            max(0.0, min(self.deadline - now, self._until_enough(now))), top.standing if top else None,
        )  # fmt: skip

    def _gain(self) -> float:
        """Of the time of all tasks together, what the next candidates are expected to save."""
        whole = sum(e.us for e in self.entries.values())
        return sum(e.us * e.search.gain() for e in self.entries.values()) / whole if whole else 0.0

    def _until_enough(self, now: float) -> float:
        """Seconds until the expected gain falls below ENOUGH, or the trials are at their end."""
        trials = BATCH * math.ceil(self._trials_left() / BATCH)
        if self.most is not None:
            trials = min(trials, self.most - self.count)
        # The processes start within the first batch, and the heaviest tasks are in it: it takes longer than its share.
        return trials * (now - self.started) / (self.count + BATCH / 4)

    def _trials_left(self) -> int:
        """Trials that it takes until the expected gain is below ENOUGH.

        How the gain has fallen does not tell: it hardly moves while tasks are measured for the first time, and drops
        when the last heavy one has SURE candidates. How many each has to go until then is known, and what is expected
        after it is alike in all networks. So the trials to come are dealt out where most is expected, two by two as the
        smallest share of a batch; a task of which none was right gets all it has.
        """
        trials, gain, steps = 0, 0.0, []
        for e in self.entries.values():
            if e.weight and e.search.tried and not e.search.us:
                trials += len(e.search.choices) - len(e.search.tried)
                continue
            first = FIRST if e.weight and not e.search.us else 0
            gains = [e.us * share for share in e.search.outlook(2)]
            gain += gains[0]
            steps += [(2 * n < first, *pair) for n, pair in enumerate(pairwise(gains))]
        enough = ENOUGH * sum(e.us for e in self.entries.values())
        for is_first, before, after in sorted(steps, reverse=True):
            if gain <= enough and not is_first:
                break
            gain, trials = gain - (before - after), trials + 2
        return trials

    def _batch(self) -> list[tuple[Entry, Choice]]:
        """The next candidates: of tasks without a trial first, then where most is to be gained."""
        room = BATCH if self.most is None else min(BATCH, self.most - self.count)
        found: list[tuple[Entry, Choice]] = []
        if fresh := [e for e in self._without_right() if not e.search.tried]:
            for entry in fresh[: max(1, room // 4)]:
                found += [(entry, choice) for choice in entry.search.propose(4)]
            return found[:room]
        whole = sum(e.us for e in self.entries.values())
        promise = sorted(((e.us * e.search.gain(), i, e) for i, e in enumerate(self.entries.values())), reverse=True)
        for worth, _, entry in promise:
            if len(found) >= room or worth <= ENOUGH / 10 * whole / len(promise):
                break
            share = max(2, round(room * worth / max(1e-9, sum(p[0] for p in promise[:4]))))
            found += [(entry, choice) for choice in entry.search.propose(min(share, room - len(found)))]
        hopeful = self._without_right() if not found else []
        return found or [(entry, choice) for entry in hopeful[:1] for choice in entry.search.propose(room)]

    def _without_right(self) -> list[Entry]:
        """Tasks of which no candidate was right so far, the heaviest first."""
        found = [e for e in self.entries.values() if e.weight and not e.search.us and not e.search.is_exhausted]
        return sorted(found, key=lambda e: -e.us)

    def _measure(self, batch: Sequence[tuple[Entry, Choice]]) -> None:
        candidates = [Candidate(entry.task.workload, choice) for entry, choice in batch]
        records: list[Record] = []
        try:
            self.trials.run(candidates, told=records.append)
        finally:  # what was measured before the device was gone, or the user had enough
            self.write(records)
        for (entry, _), record in zip(batch, records, strict=True):
            self._take(entry, record)
            self.count += 1
            self.refused += record.status != "ok"

    def _take(self, entry: Entry, record: Record) -> None:
        choice = record.chosen
        if str(choice) not in entry.search.choices:
            return  # of a space that was another
        if record.status == "ok" and record.reason:
            entry.standing = record  # written down when it had won a race
        if str(choice) in entry.search.tried:
            return
        entry.search.tell(choice, record.us if record.status == "ok" else None)
        if record.status == "ok":
            entry.records[str(choice)] = record
            if str(choice) == str(entry.search.default):
                entry.default_us = record.us
                entry.standing = entry.standing or record

    def _settle(self, tasks: Iterable[Task]) -> None:
        """Where a candidate looks faster than what stands, let them race."""
        for task in tasks:
            entry = self.entries[task]
            fastest = sorted(entry.records.values(), key=lambda r: r.us or 0.0)
            if not fastest:
                continue
            if entry.standing is None:
                entry.standing = fastest[0]  # the default was refused
            standing = entry.standing
            assert standing.us is not None
            rivals = [
                r for r in fastest[:RACERS] if r.choice != standing.choice and r.us and r.us < BETTER * standing.us
            ]
            names = frozenset(r.choice for r in (standing, *rivals))
            if rivals and names not in entry.raced:
                entry.raced.add(names)
                self._race(entry, standing, rivals)

    def _race(self, entry: Entry, standing: Record, rivals: Sequence[Record]) -> None:
        racers = [standing, *rivals]
        candidates = [Candidate(entry.task.workload, r.chosen) for r in racers]
        if missing := [c for c in candidates if str(c) not in self.trials.compiled]:
            self.trials.build(missing)  # measured in an earlier session
        try:
            times = self.trials.race(candidates)
        except (Ended, Failed, KeyError):
            return
        won = min(range(len(racers)), key=lambda i: times[i].us)
        if won and times[won].us < BETTER * times[0].us:
            entry.standing = _judged(racers[won], times[won], standing, times[0])
            self.write([entry.standing])


def _judged(winner: Record, time_: Timed, loser: Record, other: Timed) -> Record:
    reason = f"x{other.us / time_.us:.3f} of {loser.choice} in turns, {time_.rounds} rounds"
    return replace(winner, us=time_.us, spread=time_.spread / time_.us, reason=reason)


def _key(entry: Entry) -> tuple[str, str, int, int]:
    workload = entry.task.workload
    return (str(workload.problem), workload.epilogue, *entry.task.blocks)


def standing_records(session: Session) -> list[Record]:
    """What the session found best, for the logs."""
    return [e.standing for e in session.entries.values() if e.standing]
