"""Select: for every kernel the algorithm and config, for every value the layout. One optimum over the whole graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from convc.algorithm import Choice
from convc.errors import BudgetError
from convc.ir import Node
from convc.layout import PLAIN, Layout, blocked
from convc.plan.arena import packed_bytes, place
from convc.plan.layouts import activations, layout_energy, layout_of, table_of
from convc.plan.mincut import Labels
from convc.plan.offers import Offer, Records, offers
from convc.plan.plan import Copy, Group, Packing, Plan
from convc.problem import Problem
from convc.target import Target

PRICES = (1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-5)
"""Seconds that a byte of packed weights may cost, tried in turn until the memory budget is met."""

WIDEST = 4  # vectors in a channel block, at most

Offers = Mapping[Problem, Sequence[Offer]]
Best = Mapping[Group, Mapping[tuple[int, int], Choice]]
"""The best choice of each anchored group by the labels of x and of its result."""


def select(
    plan: Plan,
    target: Target,
    *,
    max_rel_err: float,
    memory_budget: int | None = None,
    records: Records | None = None,
) -> Plan:
    """The plan with `choices` and `layouts`, and a Copy wherever a layout changes.

    `max_rel_err` bounds each convolution's error relative to its largest sum(|x * w|); direct algorithms always stay.
    `memory_budget` bounds packed weights and arena together, in bytes; BudgetError where nothing meets it. An anchored
    group without a choice is one that no algorithm takes: it is lowered as a generic one.
    """
    problems = dict.fromkeys(g.problem for g in plan.groups if g.problem)
    found = {p: offers(p, target, max_rel_err=max_rel_err, records=records) for p in problems}
    if memory_budget is None:
        return _cheapest(plan, found, target, price=0.0)
    least = None
    for price in (0.0, *PRICES):
        chosen = _cheapest(plan, found, target, price=price)
        placed = place(chosen)
        need = (placed.packed_bytes + placed.arena_bytes, placed.packed_bytes, placed.arena_bytes)
        if need[0] <= memory_budget:
            return chosen
        least = min(least or need, need)
    assert least is not None
    raise BudgetError(
        f"the memory budget of {memory_budget} bytes cannot be met: packed weights take {least[1]} and activations "
        f"{least[2]} bytes, together {least[0] - memory_budget} bytes too many; raise the budget, or make the input "
        "smaller"
    )


def _cheapest(plan: Plan, found: Offers, target: Target, *, price: float) -> Plan:
    """The plan under the channel block that makes it cheapest, `price` seconds a byte of packed weights included."""
    solved = []
    for block in _blocks(found, target):
        best, tables = {}, {}
        for group in plan.groups:
            costs = dict(_by_labels(group, found, block, price))
            if costs:
                best[group] = {labels: choice for labels, (_, choice) in costs.items()}
                tables[group] = table_of({labels: cost for labels, (cost, _) in costs.items()})
        energy = layout_energy(plan, tables, block=block)
        labels = energy.minimum()
        solved.append((energy.value(labels), block, best, labels))
    _, block, best, labels = min(solved, key=lambda s: s[:2])
    return _Chosen(plan, best, labels, block).plan()


def _blocks(found: Offers, target: Target) -> list[int]:
    """The channel blocks that some algorithm has, in whole vectors; the target's vector where there is none."""
    named = {b for p, all_ in found.items() if p.kind != "matmul" for o in all_ for b in o.blocks}
    whole = [b for b in sorted(named) if b % target.lanes == 0 and b <= WIDEST * target.lanes]
    return whole or [target.lanes]


def _by_labels(
    group: Group, found: Offers, block: int, price: float
) -> Iterator[tuple[tuple[int, int], tuple[float, Choice]]]:
    problem, weights = group.problem, group.weights
    if problem is None or weights is None:
        return
    best: dict[tuple[int, int], tuple[float, Choice]] = {}
    for offer in found[problem]:
        labels = _labels(group, problem, offer, block)
        if labels is None:
            continue
        packed = packed_bytes(Packing(weights, problem, offer.choice)) if price else 0
        cost = offer.seconds + price * packed
        if labels not in best or cost < best[labels][0]:
            best[labels] = (cost, offer.choice)
    yield from best.items()


def _labels(group: Group, problem: Problem, offer: Offer, block: int) -> tuple[int, int] | None:
    """The labels that a config's blocks mean for x and result, or None where they are neither row-major nor `block`.

    For a matrix product channels-last is the row-major matrix.
    """
    if problem.kind == "matmul":
        return (0, 0) if offer.blocks == (problem.ic, problem.oc) else None
    found = []
    for channels, node in zip(offer.blocks, (group.nodes[0].args[0], group.nodes[0]), strict=True):
        if channels not in (1, blocked(node.shape, block=block).block):
            return None
        found.append(int(channels != 1))
    return found[0], found[1]


class _Chosen:
    """The plan's nodes and groups made anew, with a Copy for every group that wants a value in its other layout."""

    def __init__(self, plan: Plan, best: Best, labels: Labels, block: int) -> None:
        self.given, self.best, self.labels, self.block = plan, best, labels, block
        self.new: dict[Node, Node] = {}
        self.copies: dict[Node, Node] = {}
        self.groups: list[Group] = []
        self.choices: dict[Group, Choice] = {}
        self.layouts: dict[Node, Layout] = dict.fromkeys(plan.inputs, PLAIN)

    def plan(self) -> Plan:
        for group in self.given.groups:
            self._add(group)
        outputs = tuple((name, self._wanted(node, 0)) for name, node in self.given.outputs)
        return dataclasses.replace(
            self.given, outputs=outputs, groups=tuple(self.groups), choices=self.choices, layouts=self.layouts
        )

    def _add(self, group: Group) -> None:
        local = {r: self._wanted(r, self.labels[group, r]) for r in activations(group)}
        for node in group.nodes:
            local[node] = node.with_args(tuple(local.get(a, a) for a in node.args))
        result, label = group.result, self.labels[group.result]
        self.new[result] = local[result]
        self.layouts[local[result]] = layout_of(result, label, block=self.block)
        fresh = Group.of([local[n] for n in group.nodes])
        self.groups.append(fresh)
        if group in self.best:
            x = group.nodes[0].args[0]
            self.choices[fresh] = self.best[group][self.labels[group, x], label]

    def _wanted(self, node: Node, label: int) -> Node:
        """`node` in the layout of `label`: itself, or its one copy."""
        if self.labels[node] == label:
            return self.new.get(node, node)
        if node not in self.copies:
            copy = Copy(self.new.get(node, node), origin=node.origin)
            self.copies[node] = copy
            self.groups.append(Group.of([copy]))
            self.layouts[copy] = layout_of(node, label, block=self.block)
        return self.copies[node]
