"""Relayout: the plan in which every value has its layout, with a Copy where a group wants another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping

from convc.algorithm import Choice
from convc.ir import Node
from convc.layout import PLAIN, Layout
from convc.plan.energy import Energy, Labels, Solution
from convc.plan.layouts import activations, layout_of
from convc.plan.plan import Copy, Group, Plan


def relayout(plan: Plan, energy: Energy, solution: Solution, *, block: int) -> Plan:
    """`plan` with the layouts and choices of a solution of its energy under this channel block."""
    taken = zip(energy.pairs, solution.options, strict=True)
    found = {pair.b: option.choice for pair, option in taken if option.choice is not None}
    return _Relayout(plan, found, solution.labels, block).plan()


class _Relayout:
    """The nodes and groups made anew."""

    def __init__(self, plan: Plan, found: Mapping[Hashable, Choice], labels: Labels, block: int) -> None:
        self.given, self.found, self.labels, self.block = plan, found, labels, block
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
        if result in self.found:
            self.choices[fresh] = self.found[result]

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
