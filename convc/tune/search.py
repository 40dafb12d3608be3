"""Search: which candidates of a workload to measure next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from convc.algorithm import Choice, algorithms
from convc.ir import Array
from convc.plan.epilogue import epilogue_of
from convc.plan.offers import MAX_REL_ERR, refusal, within
from convc.plan.plan import Group
from convc.target import Target
from convc.tune.surrogate import Surrogate, expected_improvement
from convc.tune.workload import Workload

FIRST = 4  # candidates measured before the surrogate is asked: the model's best, and the best of other algorithms
UNKNOWN = 0.2  # share of its time that a task without a right candidate is expected to save
UNSURE, SURE = 0.05, 8  # the least share that is expected until so many candidates were measured
LATER = 0.09  # divided by the number of measured candidates: what is expected after SURE of them in real networks
WITHIN = 1.6  # times the model's best time that another algorithm's best may take to be among them


@dataclass(frozen=True)
class Task:
    """A workload between two layouts: `blocks` are the channel blocks of x and of the result."""

    workload: Workload
    blocks: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.workload} c{self.blocks[0]}->c{self.blocks[1]}"

    @classmethod
    def of(cls, group: Group, choice: Choice | None) -> Task | None:
        """That of a plan's kernel; None where there is nothing to tune, as in every type but float32."""
        if choice is None or group.problem is None or group.problem.dtype != "float32":
            return None
        return cls(Workload(group.problem, epilogue_of(group)), (choice.config["xb"], choice.config["yb"]))

    def choices(self, target: Target) -> list[Choice]:
        """Every config of the library's algorithms between these layouts."""
        found: list[Choice] = []
        problem = self.workload.problem
        for algorithm in algorithms(target.kind).values():
            if refusal(algorithm, problem, target) is None:
                configs = [c for c in algorithm.space(problem, target) if (c["xb"], c["yb"]) == self.blocks]
                found += [algorithm.choice(c) for c in configs if within(algorithm, problem, c, MAX_REL_ERR)]
        return found


@dataclass
class Search:
    """The state of one task. `propose` candidates, `tell` what became of them; the surrogate may serve many searches.

    `hint` is a candidate that records of other problems or targets speak for; it goes first.
    """

    task: Task
    surrogate: Surrogate
    hint: Choice | None = None
    us: dict[str, float] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    _promised: tuple[object, tuple[Array, Sequence[Choice]]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        ranked = sorted(self.task.choices(self.surrogate.target), key=self.modelled)
        self.choices = {str(choice): choice for choice in ranked}
        if str(self.hint) not in self.choices:
            self.hint = None

    def modelled(self, choice: Choice) -> float:
        """us by the analytic model."""
        return self.surrogate.modelled(self.task.workload.problem, choice)

    @property
    def default(self) -> Choice:
        """What compile takes untuned: what records of other problems say, else the model's best."""
        return self.hint or next(iter(self.choices.values()))

    @property
    def best(self) -> float | None:
        """The least us so far."""
        return min(self.us.values(), default=None)

    @property
    def is_exhausted(self) -> bool:
        return len(self.tried) == len(self.choices)

    def tell(self, choice: Choice, us: float | None) -> None:
        """The time of a candidate, None where it was refused."""
        self.tried.add(str(choice))
        if us is not None:
            self.us[str(choice)] = us
            self.surrogate.add(self.task.workload.problem, choice, us)

    def propose(self, count: int) -> list[Choice]:
        """At most `count` candidates that were not tried: first guesses, then those that promise most; by the model as
        long as none was right."""
        found = [c for c in self._first() if str(c) not in self.tried][:count]
        if not found and not self.us:
            found = [c for name, c in self.choices.items() if name not in self.tried][:count]
        if len(found) < count and self.us:
            gain, left = self._promise()
            order = np.argsort(-gain, kind="stable")
            taken = {str(c) for c in found}
            found += [left[i] for i in order if str(left[i]) not in taken][: count - len(found)]
        return found

    def gain(self) -> float:
        """The share of its time that the most promising candidate is expected to save."""
        if self.is_exhausted:
            return 0.0
        if not self.us:
            return float(UNKNOWN * (FIRST / max(FIRST, len(self.tried))) ** 2)  # every refusal makes it less likely
        gain = float(self._promise()[0].max())
        return gain if len(self.us) >= SURE else max(gain, UNSURE)

    def outlook(self, step: int) -> list[float]:
        """`gain`, and what it is likely to be after every `step` more trials until none is left, if all are right."""
        now, right = self.gain(), len(self.us)
        level, left = now * right if right >= SURE else LATER, len(self.choices) - len(self.tried)
        later = [UNSURE if right + n < SURE else level / (right + n) for n in range(step, left, step)]
        return [now, *later, 0.0] if left else [now]

    def _first(self) -> list[Choice]:
        """The model's best; the best of every other algorithm that is near; then the model's next, not all alike."""
        ranked = list(self.choices.values())
        if not ranked:
            return []
        limit = WITHIN * self.modelled(ranked[0])
        leaders: dict[str, Choice] = {}
        for choice in ranked:
            if self.modelled(choice) <= limit:
                leaders.setdefault(choice.algorithm, choice)
        hinted = [self.hint] if self.hint else []
        found = [*hinted, *(c for c in leaders.values() if str(c) != str(self.hint))][:FIRST]
        for choice in ranked:
            if len(found) >= FIRST:
                break
            if all(_apart(choice, other) for other in found):
                found.append(choice)
        return found

    def _promise(self) -> tuple[Array, Sequence[Choice]]:
        """What each candidate that was not tried is expected to save; asked for often between two measurements."""
        state = len(self.tried), self.surrogate.count
        if self._promised is None or self._promised[0] != state:
            self._promised = state, self._expected()
        return self._promised[1]

    def _expected(self) -> tuple[Array, Sequence[Choice]]:
        left = [c for name, c in self.choices.items() if name not in self.tried]
        if not left or self.best is None:
            return np.zeros(0), left
        mean, deviation = self.surrogate.predict(self.task.workload.problem, left)
        return expected_improvement(mean, deviation, self.best), left


def _apart(a: Choice, b: Choice) -> bool:
    """Whether two configs have different register tiles: others differ too little to be measured first."""
    if a.algorithm != b.algorithm:
        return True
    tile = ("r", "rw", "rh", "v", "width")
    return [a.config.get(n) for n in tile] != [b.config.get(n) for n in tile]
