"""Lookup: what records say of a problem that is compiled. Never measures, so the same records give the same bytes.

In this order: a record of the very problem; of the problem with another class of epilogue, or for another number of
threads; of the nearest problem that the same algorithm and register tile suit, rescaled; each first of the target
itself, then of one that its code could run on. Where there is none the analytic model decides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from convc.algorithm import Choice, Config
from convc.errors import UntunedError
from convc.plan.epilogue import epilogue_of
from convc.plan.offers import Measured, refusal
from convc.plan.plan import Kernel, Plan
from convc.problem import Problem
from convc.rates import rates_of
from convc.target import Target, parse_target
from convc.tune.log import default_folder, load, log_name, shipped_folder, usable
from convc.tune.record import Record

FARTHEST = 5.0  # sum of |log2| of the ratios of extents: beyond it a record says less than the model
TILE = ("rw", "rh", "r", "v", "ku", "width", "lanes")  # what a register tile is made of; the rest follows the extents
COSTLY = 4.0  # what twice the least modelled time counts as: as much as a register tile of twice the size
SHOWN = 12  # problems that a message names
OTHER_EPILOGUE, OTHER_THREADS = 0.25, 0.5  # what these count as distance


@dataclass(frozen=True)
class Lookup:
    """The records that may speak for `target`: the best of each key, of installed algorithms."""

    target: Target
    records: tuple[Record, ...] = ()
    _found: dict[tuple[Problem, str], tuple[Measured, ...]] = field(default_factory=dict, compare=False)

    def __call__(self, problem: Problem, epilogue: str) -> Sequence[Measured]:
        """For every pair of layouts that records know something of, one choice."""
        key = (problem, epilogue)
        if key not in self._found:
            self._found[key] = tuple(self._search(problem, epilogue))
        return self._found[key]

    def behind(self, problem: Problem, epilogue: str, choice: Choice) -> Measured | None:
        """What records say of a choice for a problem; None where it came from the model."""
        return next((m for m in self(problem, epilogue) if m.choice == choice), None)

    def behind_kernel(self, kernel: Kernel) -> Measured | None:
        """The same of a kernel with a choice."""
        problem, choice = kernel.group.problem, kernel.choice
        assert problem is not None and choice is not None
        return self.behind(problem, epilogue_of(kernel.group), choice)

    def check_tuned(self, plan: Plan) -> None:
        """Raises UntunedError where a choice of the plan is not from a record of its very problem."""
        missing: dict[str, None] = {}
        for group, choice in plan.choices.items():
            if group.problem is None:
                continue
            found = self.behind(group.problem, epilogue_of(group), choice)
            if found is None or found.origin != "tuned":
                missing[f"{group.problem} {epilogue_of(group)}"] = None
        if missing:
            shown = "\n".join(f"  {text}" for text in list(missing)[:SHOWN])
            more = f"\n  and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            if self.target.kind == "cuda":
                where, advice = "", "this version tunes no GPUs: leave "
            else:
                where, advice = f" on {self.target.threads} threads", "run `convc tune` on the model, or leave "
            raise UntunedError(
                f"{len(missing)} problems have no record for {self.target.label}{where}; {advice}"
                f"--require-tuned out:\n{shown}{more}"
            )

    @cached_property
    def _families(self) -> Mapping[tuple[object, ...], Sequence[tuple[Problem, Record]]]:
        found: dict[tuple[object, ...], list[tuple[Problem, Record]]] = {}
        for record in self.records:
            problem = Problem.parse(record.problem)
            found.setdefault(_family(problem), []).append((problem, record))
        return found

    def _search(self, problem: Problem, epilogue: str) -> Iterable[Measured]:
        near = [
            (self._distance(problem, epilogue, other, record), i, other, record)
            for i, (other, record) in enumerate(self._families.get(_family(problem), ()))
        ]
        seen: set[tuple[int, int]] = set()
        for distance, _, other, record in sorted(near, key=lambda n: n[:2]):
            if distance > FARTHEST:
                return
            if (pair := _blocks(problem, record)) in seen:
                continue
            if found := self._adapted(problem, other, record, exact=distance == 0):
                seen.add(pair)
                yield found

    def _distance(self, problem: Problem, epilogue: str, other: Problem, record: Record) -> float:
        far = sum(abs(math.log2(a / b)) for a, b in zip(_extents(problem), _extents(other), strict=True))
        far += OTHER_EPILOGUE * (epilogue != record.epilogue) + OTHER_THREADS * (self.target.threads != record.threads)
        return far + (0.0 if record.target == self.target.label else 1.0)

    def _adapted(self, problem: Problem, other: Problem, record: Record, *, exact: bool) -> Measured | None:
        """The record's config, or the nearest one of the problem's space, with its time by the model's scale."""
        algorithm = record.chosen.entry
        if refusal(algorithm, problem, self.target):
            return None
        blocks = _blocks(problem, record)
        space = [c for c in algorithm.space(problem, self.target) if (c["xb"], c["yb"]) == blocks]
        if not space or record.us is None:
            return None
        wanted, seconds = dict(record.config) | {"xb": blocks[0], "yb": blocks[1]}, record.us * 1e-6 * record.threads
        if exact:
            known = any(dict(c) == wanted for c in space)  # else the space has changed since
            return Measured(algorithm.choice(wanted), seconds, "tuned", record.error) if known else None
        costs = [algorithm.cost(problem, self.target, c) for c in space]
        least = min(costs)
        far = [_unlike(c, wanted) + COSTLY * math.log2(cost / least) for c, cost in zip(space, costs, strict=True)]
        best = far.index(min(far))
        was = algorithm.cost(other, replace(self.target, threads=record.threads), record.config)
        return Measured(algorithm.choice(space[best]), seconds * costs[best] / was, "transferred")


def lookup_for(target: Target, folder: Path | None = None) -> Lookup:
    """The records shipped with convc, and those in `folder` (default: the user's), of `target` and of targets whose
    code it runs as well as its own. The lookup's target has the rates that the folder holds."""
    places = (shipped_folder(), folder or default_folder())
    rates = rates_of(target.label, default=target.rates, folder=folder or default_folder())
    names = {p.name for place in places if place.is_dir() for p in place.iterdir()}
    records: list[Record] = []
    for label in (target.label, *_relatives(target, names)):
        for place in places:
            records += load(place, label).records
    return Lookup(replace(target, rates=rates), tuple(usable(records).values()))


def _relatives(target: Target, names: Collection[str]) -> list[str]:
    """Labels of targets with logs of these names whose code has the same vectors and runs on `target`."""
    found = []
    for name in sorted(names):
        kind, _, arch = name.removesuffix(".jsonl").partition("-")
        if kind != target.kind or not name.endswith(".jsonl") or name == log_name(target.label):
            continue
        other = parse_target(f"{kind}/{arch}")
        same = (other.lanes, other.registers) == (target.lanes, target.registers)
        if same and set(other.features) <= set(target.features):
            found.append(other.label)
    return found


def _family(p: Problem) -> tuple[object, ...]:
    """Problems whose configs mean the same: only extents differ."""
    kind = "depthwise" if p.is_depthwise else "grouped" if p.g > 1 else "dense"
    return (p.kind, kind, p.rank, p.k, p.s, p.d, p.dtype, p.ic > 4)


def _extents(p: Problem) -> tuple[float, ...]:
    return (p.mb, p.icg, p.ocg, p.g, math.prod(p.o), p.o[-1])


def _blocks(problem: Problem, record: Record) -> tuple[int, int]:
    """The record's pair of layouts, which for a matrix product are its extents."""
    return (problem.ic, problem.oc) if problem.kind == "matmul" else (record.config["xb"], record.config["yb"])


def _unlike(config: Config, wanted: Config) -> float:
    """How far a config is from a wanted one; the register tile counts for more than what follows the extents."""
    far = 0.0
    for name in wanted.keys() | config.keys():
        apart = abs(math.log2((1 + config.get(name, 0)) / (1 + wanted.get(name, 0))))
        far += apart * (4.0 if name in TILE else 1.0)
    return far
