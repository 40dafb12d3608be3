"""Trials whose times come from a formula over configs, for the logic of searching: nothing is compiled or measured."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from convc.problem import Problem
from convc.target import Target, parse_target
from convc.tune.build import Candidate, Compiled, Refused
from convc.tune.device import Timed
from convc.tune.record import Record
from convc.tune.search import Search, Task
from convc.tune.surrogate import Surrogate
from convc.tune.workload import Workload

TARGET = parse_target("cpu/znver3", threads=2)
Formula = Callable[[Candidate], float | None]
"""us of a candidate, None where it is wrong."""

TASKS = [
    ("mb1_ic64ih168_oc64oh56_kh3sh3", (8, 8)),
    ("mb1_ic256ih42_oc256oh14_kh3sh3", (8, 8)),
    ("g96mb1_ic96ih28_oc96oh28_kh3ph1", (8, 8)),
    ("mb1_ic64ih28_oc128oh28_kh1", (1, 1)),
    ("mb1_ic3ih64_oc32oh32_kh3sh2ph1", (1, 8)),
]


def task(number: int = 0) -> Task:
    text, blocks = TASKS[number]
    return Task(Workload(Problem.parse(text).canonical, "short"), blocks)


def modelled(candidate: Candidate) -> float:
    return Surrogate(TARGET).modelled(candidate.workload.problem, candidate.choice)


def skewed(candidate: Candidate) -> float:
    """As if the model knew nothing of register tiles and flattered direct convolutions."""
    c = candidate.choice.config
    tile = c.get("rw", c.get("r", 1)) * c.get("rh", 1) * c.get("v", 1)
    off = 1 + 0.25 * abs(math.log2(tile / 4))
    off *= 1.3 if candidate.choice.algorithm in ("direct", "depthwise") else 1.0
    return modelled(candidate) * off * (0.9 if c.get("ku", 1) > 1 else 1.0)


def wild(candidate: Candidate) -> float:
    """As if the model knew next to nothing, so that there is much to be gained for long."""
    return modelled(candidate) * random.Random(str(candidate)).uniform(0.2, 1.0)


def times(search: Search, formula: Formula) -> dict[str, float | None]:
    return {name: formula(Candidate(search.task.workload, choice)) for name, choice in search.choices.items()}


@dataclass
class Told:
    """In the place of Trials: a candidate takes what the formula says, in a race what `raced` says."""

    formula: Formula
    raced: Formula | None = None
    target: Target = TARGET
    ends: Exception | None = None
    compiled: dict[str, Compiled] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    races: list[list[str]] = field(default_factory=list)
    during: Callable[[], None] = lambda: None

    def run(
        self, candidates: Sequence[Candidate], *, told: Callable[[Record], None] = lambda record: None
    ) -> list[Record]:
        self.during()
        self.build(candidates)
        self.ran += map(str, candidates)
        found = [record(c, self.formula(c)) for c in candidates]
        for one in found:
            told(one)
        return found

    def build(self, candidates: Sequence[Candidate]) -> list[Compiled | Refused]:
        found = [Compiled(b"", b"", "p", "k", 2, 0, 0) for _ in candidates]
        self.compiled.update(zip(map(str, candidates), found, strict=True))
        return list(found)

    def race(self, candidates: Sequence[Candidate]) -> list[Timed]:
        self.races.append([str(c.choice) for c in candidates])
        for candidate in candidates:
            assert str(candidate) in self.compiled, "only what is built can race"
        if self.ends:
            raise self.ends
        us = [(self.raced or self.formula)(c) for c in candidates]
        return [Timed(t, 0.01 * t, None, 9) for t in us if t]


def record(candidate: Candidate, us: float | None, **changes: object) -> Record:
    values = {
        "problem": str(candidate.workload.problem), "epilogue": candidate.workload.epilogue, "target": TARGET.label,
        "threads": TARGET.threads, "algorithm": candidate.choice.algorithm, "config": candidate.choice.config,
        "schedule": "0" * 12, "status": "ok" if us else "wrong", "us": us, "us_warm": us,
        "spread": 0.01 if us else None, "peak": None, "error": 0.0 if us else None, "workspace": 0,
        "reason": "" if us else "its values are wrong", "tvm": "0", "device": "formula", "date": "2026-11-24",
    }  # fmt: skip
    return Record(**{**values, **changes})  # type: ignore[arg-type]
