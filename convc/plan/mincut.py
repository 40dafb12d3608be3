"""Two labels for every variable at the least total cost: a minimum s-t cut.

Costs are integers, so that sums are exact and equal models give equal labels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import networkx as nx
from networkx.algorithms.flow import boykov_kolmogorov

Labels = Mapping[Hashable, int]
Cost = Callable[[Labels], int]
Term = tuple[tuple[Hashable, ...], Cost]
Table = tuple[tuple[int, int], tuple[int, int]]
"""Cost by the labels of two variables: table[a][b]."""

REFUSED = 10**18
"""The cost of what cannot be done, above any sum of real costs."""


@dataclass
class Energy:
    """Terms over variables with labels 0 and 1; `minimum` finds the labels with the least sum.

    Exact where every table has t00 + t11 <= t01 + t10. Other tables are made so in two ways, each solved and then
    improved greedily under the true costs, and the better of the two is taken.
    """

    variables: dict[Hashable, None] = field(default_factory=dict)
    unary: list[tuple[Hashable, int, int]] = field(default_factory=list)
    pairs: list[tuple[Hashable, Hashable, Table]] = field(default_factory=list)
    shared: list[tuple[Hashable, tuple[Hashable, ...], int]] = field(default_factory=list)

    def add_unary(self, variable: Hashable, zero: int, one: int) -> None:
        self._declare(variable)
        self.unary.append((variable, zero, one))

    def add_pair(self, a: Hashable, b: Hashable, table: Table) -> None:
        """A cost by the labels of a and b; with a = b only the diagonal counts."""
        if a == b:
            self.add_unary(a, table[0][0], table[1][1])
            return
        self._declare(a, b)
        self.pairs.append((a, b, table))

    def add_shared(self, source: Hashable, wants: Sequence[Hashable], cost: int) -> None:
        """`cost` once where any of `wants` has another label than `source`: all of them read the same copy."""
        self._declare(source, *wants)
        self.shared.append((source, tuple(wants), cost))

    def _declare(self, *variables: Hashable) -> None:
        self.variables.update(dict.fromkeys(variables))

    def value(self, labels: Labels) -> int:
        return sum(cost(labels) for _, cost in self._terms())

    def _terms(self) -> list[Term]:
        """Every term with the variables it looks at."""
        found: list[Term] = [((v,), partial(_one, v, (zero, one))) for v, zero, one in self.unary]
        found += [((a, b), partial(_two, a, b, table)) for a, b, table in self.pairs]
        for source, wants, price in self.shared:
            found.append(((source, *wants), partial(_copied, source, wants, price)))
        return found

    def minimum(self) -> dict[Hashable, int]:
        """The label of every variable."""
        if all(_is_submodular(table) for _, _, table in self.pairs):
            return self._cut(lambda table: table)
        found = [self._walk(self._cut(truncate)) for truncate in (_raise_mixed, _lower_equal)]
        return min(found, key=self.value)

    def _cut(self, truncate: Callable[[Table], Table]) -> dict[Hashable, int]:
        """Label 1 is the source's side of the cut."""
        cost = {v: [0, 0] for v in self.variables}
        edges: dict[tuple[Hashable, Hashable], int] = {}

        def pay(one: Hashable, zero: Hashable, capacity: int) -> None:
            """`capacity` where `one` has label 1 and `zero` has 0."""
            edges[one, zero] = edges.get((one, zero), 0) + capacity

        for v, zero, one in self.unary:
            cost[v][0] += zero
            cost[v][1] += one
        for a, b, given in self.pairs:
            (t00, t01), (t10, t11) = given if _is_submodular(given) else truncate(given)
            cost[a][1] += t10 - t00
            cost[b][1] += t11 - t10
            pay(b, a, t01 + t10 - t00 - t11)
        for index, (source, wants, price) in enumerate(self.shared):
            any_one, all_one = ("any", index), ("all", index)
            pay(any_one, source, price)
            pay(source, all_one, price)
            for want in wants:
                pay(want, any_one, REFUSED)
                pay(all_one, want, REFUSED)
        return self._sides(cost, edges)

    def _sides(
        self, cost: Mapping[Hashable, Sequence[int]], edges: Mapping[tuple[Hashable, Hashable], int]
    ) -> dict[Hashable, int]:
        flow = nx.DiGraph()
        flow.add_nodes_from(["source", "sink"])
        for v, (zero, one) in cost.items():
            least = min(zero, one)
            flow.add_edge("source", ("v", v), capacity=zero - least)
            flow.add_edge(("v", v), "sink", capacity=one - least)
        flow.add_edges_from((("v", a), ("v", b), {"capacity": capacity}) for (a, b), capacity in edges.items())
        _, (ones, _) = nx.minimum_cut(flow, "source", "sink", flow_func=boykov_kolmogorov)
        return {v: int(("v", v) in ones) for v in self.variables}

    def _walk(self, labels: dict[Hashable, int]) -> dict[Hashable, int]:
        """Change one label, or that of a value together with all its readers, while the true cost falls."""
        touching: dict[Hashable, list[Cost]] = {v: [] for v in self.variables}
        for variables, cost in self._terms():
            for v in dict.fromkeys(variables):
                touching[v].append(cost)
        moves = [(v,) for v in self.variables] + [(source, *wants) for source, wants, _ in self.shared]
        improved = True
        while improved:
            improved = False
            for move in moves:
                terms = list(dict.fromkeys(cost for v in move for cost in touching[v]))
                for label in (0, 1):
                    trial = {**labels, **dict.fromkeys(move, label)}
                    if sum(cost(trial) for cost in terms) < sum(cost(labels) for cost in terms):
                        labels, improved = trial, True
        return labels


def _one(v: Hashable, costs: tuple[int, int], labels: Labels) -> int:
    return costs[labels[v]]


def _two(a: Hashable, b: Hashable, table: Table, labels: Labels) -> int:
    return table[labels[a]][labels[b]]


def _copied(source: Hashable, wants: tuple[Hashable, ...], price: int, labels: Labels) -> int:
    return price if any(labels[w] != labels[source] for w in wants) else 0


def _is_submodular(table: Table) -> bool:
    return table[0][0] + table[1][1] <= table[0][1] + table[1][0]


def _raise_mixed(table: Table) -> Table:
    """Mixed labels made dearer until the table is submodular."""
    (t00, t01), (t10, t11) = table
    short = t00 + t11 - t01 - t10
    return (t00, t01 + short - short // 2), (t10 + short // 2, t11)


def _lower_equal(table: Table) -> Table:
    """The dearer pair of equal labels made cheaper until the table is submodular."""
    (t00, t01), (t10, t11) = table
    short = t00 + t11 - t01 - t10
    return ((t00 - short, t01), (t10, t11)) if t00 > t11 else ((t00, t01), (t10, t11 - short))
