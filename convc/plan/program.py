"""The labels and options of least total cost as one integer program: the optimum, within a limit of bytes.

Binaries: one a variable (is its label 1?), one an option (is it taken?), two a shared value: the largest and the
smallest label among the value and its readers; a copy is made where either is not the value's own. Without a limit
every row is a difference of two binaries or ties options to the labels of their pair, which is the relaxation of roof
duality (Hammer, Hansen and Simeone 1984): exact where equal labels go together in all pairs, and nearly so elsewhere,
so that a search rarely branches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convc.plan.energy import REFUSED, Energy, Option, Pair, Solution

NODES = 5_000
"""Branchings after which the search gives up, the same on every machine. Networks need 1, memory budgets
up to some thousands, at a millisecond each."""

SECONDS = 60.0  # the last resort, where so many branchings take longer than anyone waits

LARGEST = 2.0**22
"""The largest scaled cost. HiGHS tells costs apart that differ by 1e-6: here a picosecond in a few seconds."""

UNIT = 64  # bytes: sizes are multiples of it, and small numbers keep the rows within HiGHS's tolerances


class LimitReached(Exception):  # noqa: N818  no error: whoever asked has another way
    """The search was given up before its end."""


def cheapest(energy: Energy, *, limit: int | None = None) -> Solution | None:
    """The solution of least value that keeps at most `limit` bytes; None where there is none. Raises LimitReached."""
    model = Model(energy)
    if limit is not None:
        model.keep_within(limit)
    return model.solution()


def smallest(energy: Energy) -> Solution | None:
    """A solution that keeps the least bytes. Raises LimitReached."""
    model = Model(energy)
    model.minimise_bytes()
    return model.solution()


class Model:
    """The columns and rows of an energy."""

    def __init__(self, energy: Energy) -> None:
        self.energy = energy
        self.program = Program()
        self.label = {v: self._label(*costs) for v, costs in energy.unary.items()}
        self.taken = [self._options(pair) for pair in energy.pairs]
        for source, wants, cost in energy.shared:
            if cost:
                self._share(source, wants, cost)

    def _label(self, zero: int, one: int) -> int:
        lower, upper = int(zero >= REFUSED), int(one < REFUSED)
        return self.program.binary(one - zero if lower == 0 and upper == 1 else 0, lower=lower, upper=upper)

    def _options(self, pair: Pair) -> Mapping[int, Option]:
        """One option by column; those with label 1 add up to that label."""
        had = [o for o in pair.options if o.cost < REFUSED]
        least = min((o.cost for o in had), default=0)
        columns = {self.program.binary(o.cost - least): o for o in had}
        self.program.row(columns, (), least=1, most=1)
        for side, variable in enumerate((pair.a, pair.b)):
            ones = [column for column, o in columns.items() if o.labels[side]]
            self.program.row(ones, [self.label[variable]], least=0, most=0)
        return columns

    def _share(self, source: Hashable, wants: Sequence[Hashable], cost: int) -> None:
        own, some, every = self.label[source], self.program.binary(cost), self.program.binary(-cost)
        for variable in (own, *(self.label[w] for w in wants)):
            self.program.row([some], [variable], least=0)
            self.program.row([variable], [every], least=0)

    def keep_within(self, limit: int) -> None:
        sizes = {column: size for column, size in self._sizes() if size}
        self.program.weighted(list(sizes), list(sizes.values()), most=limit // UNIT)

    def minimise_bytes(self) -> None:
        sizes = dict(self._sizes())
        self.program.cost = [sizes.get(column, 0) for column in range(len(self.program.cost))]

    def _sizes(self) -> Iterable[tuple[int, int]]:
        """The columns that cost memory, with their units; a column for each form that several pairs may share."""
        users = Counter(form for pair in self.energy.pairs for form in {o.form for o in pair.options})
        shared: dict[Hashable, int] = {}
        for columns in self.taken:
            for column, option in columns.items():
                if option.form is None or users[option.form] == 1:
                    yield column, -(-option.bytes // UNIT)
                    continue
                if option.form not in shared:
                    shared[option.form] = self.program.binary()
                    yield shared[option.form], -(-option.bytes // UNIT)
                self.program.row([shared[option.form]], [column], least=0)

    def solution(self) -> Solution | None:
        x = self.program.solve()
        if x is None:
            return None
        labels = {variable: int(x[column] > 0.5) for variable, column in self.label.items()}
        return Solution(labels, tuple(options[max(options, key=lambda c: float(x[c]))] for options in self.taken))


@dataclass
class Program:
    """minimise cost . x with lower <= x <= upper, x integer, and least <= rows . x <= most; rows one behind another."""

    cost: list[int] = field(default_factory=list)
    lower: list[int] = field(default_factory=list)
    upper: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    factors: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    least: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)

    def binary(self, cost: int = 0, *, lower: int = 0, upper: int = 1) -> int:
        """A new column."""
        self.cost.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        return len(self.cost) - 1

    def row(
        self, plus: Iterable[int], minus: Sequence[int], *, least: float = -math.inf, most: float = math.inf
    ) -> None:
        """least <= sum(plus) - sum(minus) <= most."""
        positive = list(plus)
        self.weighted([*positive, *minus], [1] * len(positive) + [-1] * len(minus), least=least, most=most)

    def weighted(
        self, columns: Sequence[int], factors: Sequence[int], *, least: float = -math.inf, most: float = math.inf
    ) -> None:
        """least <= sum(factor * column) <= most."""
        self.columns += columns
        self.factors += factors
        self.starts.append(len(self.columns))
        self.least.append(least)
        self.most.append(most)

    def solve(self) -> Any:
        """x as an array of floats near integers, or None where nothing fits. Raises LimitReached."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp  # 0.2 s to import, and only compiling needs it
        from scipy.sparse import csr_array

        cost = np.array(self.cost, float)
        scale = 2.0 ** math.floor(math.log2(LARGEST / max(1.0, float(np.abs(cost).max(initial=0.0)))))
        parts = (np.array(self.factors, float), np.array(self.columns, np.int32), np.array(self.starts, np.int32))
        rows = csr_array(parts, shape=(len(self.least), len(cost)))
        found = milp(
            cost * scale, integrality=np.ones(len(cost)), bounds=Bounds(self.lower, self.upper),
            constraints=LinearConstraint(rows, self.least, self.most),
            options={"mip_rel_gap": 0.0, "node_limit": NODES, "time_limit": SECONDS},
        )  # fmt: skip
        if found.status not in (0, 2):
            raise LimitReached(found.message.rpartition(": ")[2].rstrip(") "))
        return found.x
