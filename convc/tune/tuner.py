"""Tuning a network or a list of problems: what to tune, a session within a budget, and what it found into the logs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from convc.algorithm import algorithms
from convc.errors import TuneError
from convc.plan.offers import Measured, Records, refusal
from convc.plan.plan import Plan
from convc.problem import Problem
from convc.target import Target
from convc.tune.audit import losers
from convc.tune.device import LocalDevice
from convc.tune.journal import Journal, journals, read
from convc.tune.log import default_folder, load, merge
from convc.tune.lookup import lookup_for
from convc.tune.record import Record, stale
from convc.tune.search import Task
from convc.tune.session import Entry, Progress, Session
from convc.tune.tracker import NoDeviceError
from convc.tune.trials import Trials
from convc.tune.workload import Workload

AUDIT, AUDIT_SECONDS = 0.2, 12.0  # of the budget, and of each network, that is kept for the audit

Source = Callable[[Records], Mapping[Task, int]]
"""What to tune, under what records say: the tasks of a network's plan as it would be then, or the same ones always."""


@dataclass(frozen=True)
class Row:
    """A task and what became of it: us of the default (what compile would have taken) and of the best, how many
    trials, and the record that stands."""

    task: str
    weight: int
    default_us: float | None
    us: float | None
    trials: int
    record: Record | None


@dataclass(frozen=True)
class Outcome:
    """Of a session. `default_us` and `us` are all convolutions of the network together;"""

    rows: tuple[Row, ...]
    trials: int
    refused: int
    default_us: float
    us: float
    seconds: float
    log: Path
    interrupted: bool = False


@dataclass
class Tuner:
    """`folder` holds logs and journals; `trials` measures; `deadline` is on time.monotonic's clock."""

    trials: Trials
    deadline: float
    folder: Path = field(default_factory=default_folder)
    most: int | None = None
    told: Callable[[Progress], None] = lambda progress: None

    def __post_init__(self) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.journal = Journal(self.folder, stamp)
        self.lookup = lookup_for(self.trials.target, self.folder)
        self.session = Session(self.trials, self.journal.append, self.deadline, self.most, self.told)
        self.begun = time.monotonic()

    @property
    def target(self) -> Target:
        return self.trials.target

    def run(self, sources: Sequence[Source]) -> Outcome:
        """Tune what the sources ask for, and after each round what they would ask for then. Raises TuneError where no
        candidate was right."""
        interrupted = False
        networks = [source for source in sources if isinstance(source, Network)] if self._is_local else []
        if networks:
            self.session.deadline -= min(AUDIT * (self.deadline - self.begun), len(networks) * AUDIT_SECONDS)
        try:
            while self._add(asked(sources, self._records())) and time.monotonic() < self.session.deadline:
                self.session.run()
            for source in networks:
                self._audit(source)
        except KeyboardInterrupt:
            interrupted = True
        except NoDeviceError as error:
            self._keep()
            raise NoDeviceError(f"{error}; what was measured is in {self.folder}") from error
        self._keep()
        if self.session.count and not interrupted and not any(e.standing for e in self._entries()):
            last = [r for r in read(self.journal.path).records if r.status != "ok"][-1]
            raise TuneError(f"no candidate was right; the last one: {last.choice}: {last.reason}")
        return self._outcome(interrupted)

    @property
    def _is_local(self) -> bool:
        return isinstance(self.trials.device, LocalDevice)

    def _audit(self, source: Network) -> None:
        """What stands and is slower in the network than what compile would have taken gives way to that."""
        if time.monotonic() > self.deadline:
            return
        before, after = source.chosen(self.lookup), source.chosen(self.known)
        if before.choices == after.choices:
            return
        for task, audited in losers(before, after, self.target).items():
            entry = self.session.entries.get(task)
            record = entry.records.get(str(audited.before)) if entry else None
            if entry and record:
                entry.standing = replace(record, reason=f"x{audited.ratio:.3f} of {audited.after} in the network")
                self.journal.append([entry.standing])

    def _records(self) -> Records:
        return self.known if self.session.entries else self.lookup

    def known(self, problem: Problem, epilogue: str) -> Sequence[Measured]:
        """What this session has measured of a problem, for the plan; else what records say."""
        entries = [e for e in self.session.entries.values() if e.task.workload == Workload(problem, epilogue)]
        found = [
            Measured(r.chosen, (r.us or 0.0) * 1e-6 * self.target.threads, error=r.error)
            for e in entries
            if (r := e.standing)
        ]
        pairs = {(m.choice.config["xb"], m.choice.config["yb"]) for m in found}
        others = self.lookup(problem, epilogue)
        return found + [m for m in others if (m.choice.config["xb"], m.choice.config["yb"]) not in pairs]

    def _keep(self) -> None:
        """What stands, into the logs: beside what stood there and was measured again, whatever its time said then."""
        standing = [replace(r, reason=r.reason or _reason(e)) for e in self._entries() if (r := e.standing)]
        measured = {(r.key, r.choice) for e in self._entries() for r in e.records.values()}
        earlier = load(self.folder, self.target.label).records
        merge(self.folder, standing, against=[r for r in earlier if (r.key, r.choice) in measured])

    def _add(self, tasks: Mapping[Task, int]) -> bool:
        """Whether there was a new one."""
        fresh = {t: n for t, n in tasks.items() if t not in self.session.entries}
        hints = {}
        for task in fresh:
            found = self.lookup(task.workload.problem, task.workload.epilogue)
            pairs = {(m.choice.config["xb"], m.choice.config["yb"]): m.choice for m in found}
            hints[task] = pairs.get(task.blocks)
        self.session.add(tasks, self._earlier_trials() if fresh else (), hints=hints)
        return bool(fresh)

    def _earlier_trials(self) -> list[Record]:
        """Those of earlier sessions with this target on this processor, of algorithms as they are."""
        found: list[Record] = []
        for path in journals(self.folder):
            found += read(path).records
        mine = (self.target.label, self.target.threads, self.trials.device.name)
        return [r for r in found if (r.target, r.threads, r.device) == mine and not stale(r)]

    def _entries(self) -> list[Entry]:
        return list(self.session.entries.values())

    def _outcome(self, interrupted: bool) -> Outcome:
        rows = [
            Row(
                str(e.task),
                e.weight,
                e.default_us,
                e.standing.us if e.standing else None,
                len(e.search.tried),
                e.standing,
            )
            for e in self._entries()
        ]
        last = self.session.progress()
        return Outcome(
            tuple(rows), self.session.count, self.session.refused, last.default_us, last.us,
            time.monotonic() - self.begun, self.folder, interrupted,
        )  # fmt: skip


def tasks_of_plan(plan: Plan) -> Mapping[Task, int]:
    """The tasks of a plan with choices, and how many of its kernels have each."""
    return Counter(task for group, choice in plan.choices.items() if (task := Task.of(group, choice)))


def asked(sources: Sequence[Source], records: Records) -> Mapping[Task, int]:
    """What they ask for together."""
    found: Counter[Task] = Counter()
    for source in sources:
        found.update(source(records))
    return found


@dataclass(frozen=True)
class Network:
    """The tasks of `plan`, with the choices that `select` makes of it under some records."""

    plan: Plan
    select: Callable[[Plan, Records], Plan]

    def __call__(self, records: Records) -> Mapping[Task, int]:
        return tasks_of_plan(self.chosen(records))

    def chosen(self, records: Records) -> Plan:
        return self.select(self.plan, records)


def problems(workloads: Sequence[Workload], target: Target) -> Source:
    """Every pair of layouts of these, once."""
    tasks = {task: 1 for workload in workloads for task in tasks_of_problem(workload, target)}
    return lambda records: tasks


def tasks_of_problem(workload: Workload, target: Target) -> list[Task]:
    """Every pair of layouts that an algorithm other than the last resort has for it."""
    pairs: dict[tuple[int, int], None] = {}
    for algorithm in algorithms(target.kind).values():
        if algorithm.name != "fallback" and refusal(algorithm, workload.problem, target) is None:
            pairs.update(dict.fromkeys((c["xb"], c["yb"]) for c in algorithm.space(workload.problem, target)))
    return [Task(workload, pair) for pair in pairs]


def _reason(entry: Entry) -> str:
    return f"fastest of {len(entry.records)} right candidates"
