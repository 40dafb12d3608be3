"""The energy of a labelling: two labels for every variable, options for pairs of them, and copies that readers share.

The model that `program` solves and `walk` improves. Costs are integers, so that sums are exact and equal models give
equal labels.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from convc.algorithm import Choice

Labels = Mapping[Hashable, int]

REFUSED = 10**18
"""The cost of a label that cannot be had, above any sum of real costs."""


@dataclass(frozen=True)
class Option:
    """One way to give two variables their `labels`: what it costs and the `bytes` it keeps in memory.

    Options with the same `form` keep their bytes once between them; None shares with nobody. `choice` is what select
    makes of it.
    """

    labels: tuple[int, int]
    cost: int
    bytes: int = 0
    form: Hashable = None
    choice: Choice | None = None


@dataclass(frozen=True)
class Pair:
    """Two different variables and the options for them, of which exactly one is taken."""

    a: Hashable
    b: Hashable
    options: tuple[Option, ...]

    def best(self, labels: Labels, *, price: int = 0) -> Option | None:
        """The cheapest option under `labels`, at `price` a byte; the first of several; None where there is none."""
        found = (labels[self.a], labels[self.b])
        fitting = (o for o in self.options if o.labels == found)
        return min(fitting, key=lambda o: o.cost + price * o.bytes, default=None)


@dataclass(frozen=True)
class Solution:
    """A label for every variable and, in the order of `Energy.pairs`, the option taken by each pair."""

    labels: Labels
    options: tuple[Option, ...]

    @property
    def bytes(self) -> int:
        """What the options keep in memory."""
        alone = sum(o.bytes for o in self.options if o.form is None)
        return alone + sum({o.form: o.bytes for o in self.options if o.form is not None}.values())


@dataclass
class Energy:
    """The terms. Every label of a variable costs something, every pair takes an option, and every `shared` value is
    copied where a reader wants another label than it has."""

    unary: dict[Hashable, tuple[int, int]] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    shared: list[tuple[Hashable, tuple[Hashable, ...], int]] = field(default_factory=list)

    def add_unary(self, variable: Hashable, zero: int, one: int) -> None:
        before = self.unary.get(variable, (0, 0))
        self.unary[variable] = (before[0] + zero, before[1] + one)

    def add_pair(self, a: Hashable, b: Hashable, options: Iterable[Option]) -> None:
        """Exactly one of `options`, whose labels are those of a and b."""
        self._declare(a, b)
        self.pairs.append(Pair(a, b, tuple(options)))

    def add_table(self, a: Hashable, b: Hashable, table: Sequence[Sequence[int]]) -> None:
        """A cost by the labels of a and b: table[a][b]."""
        self.add_pair(a, b, (Option((i, j), table[i][j]) for i in (0, 1) for j in (0, 1)))

    def add_shared(self, source: Hashable, wants: Sequence[Hashable], cost: int) -> None:
        """`cost` once where any of `wants` has another label than `source`: all of them read the same copy."""
        self._declare(source, *wants)
        self.shared.append((source, tuple(wants), cost))

    def _declare(self, *variables: Hashable) -> None:
        for variable in variables:
            self.unary.setdefault(variable, (0, 0))

    def value(self, solution: Solution) -> int:
        labels = solution.labels
        total = sum(costs[labels[v]] for v, costs in self.unary.items()) + sum(o.cost for o in solution.options)
        return total + sum(copied(labels, *shared) for shared in self.shared)

    def solution(self, labels: Labels, *, price: int = 0) -> Solution | None:
        """`labels` with the cheapest option of every pair at `price` a byte; None where they are not to be had."""
        options = [pair.best(labels, price=price) for pair in self.pairs]
        refused = any(costs[labels[v]] >= REFUSED for v, costs in self.unary.items())
        return None if refused or None in options else Solution(labels, tuple(o for o in options if o))


def copied(labels: Labels, source: Hashable, wants: Sequence[Hashable], cost: int) -> int:
    return cost if any(labels[w] != labels[source] for w in wants) else 0
