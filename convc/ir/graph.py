"""The graph: named inputs, named outputs, and every node that the outputs need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from convc.ir.node import Array, Const, Input, Node


@dataclass(frozen=True, eq=False)
class Graph:
    """Outputs are (name, node); inputs keep the caller's order even where an output does not need them."""

    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, Node], ...]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that an output needs, arguments before users; the same order for the same graph.

        Each is typed in this order, so that no later question for a type recurses through a deep graph.
        ValueError where a node does not accept its arguments.
        """
        order: list[Node] = []
        seen: set[Node] = set()
        stack: list[tuple[Node, bool]] = [(node, False) for _, node in reversed(self.outputs)]
        while stack:
            node, ready = stack.pop()
            if ready:
                order.append(node)
                _ = node.type
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(node.args) if a not in seen)
        return tuple(order)

    @cached_property
    def users(self) -> Mapping[Node, tuple[Node, ...]]:
        """Who reads each node. Outputs of the graph are not users."""
        found: dict[Node, list[Node]] = {n: [] for n in self.nodes}
        for node in self.nodes:
            for arg in dict.fromkeys(node.args):
                found[arg].append(node)
        return {n: tuple(u) for n, u in found.items()}

    def map(self, rule: Callable[[Node], Node]) -> Graph:
        """Apply `rule` to every node, arguments first; each node already has its new arguments."""
        new: dict[Node, Node] = {}
        for node in self.nodes:
            new[node] = rule(node.with_args(tuple(new[a] for a in node.args)))
            _ = new[node].type
        return Graph(self.inputs, tuple((name, new[node]) for name, node in self.outputs))

    def evaluate(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the numpy references. Inputs by label, outputs by name. A value is dropped after its last reader."""
        values: dict[Node, Array] = {}
        readers = {node: len(users) for node, users in self.users.items()}
        for _, node in self.outputs:
            readers[node] += 1
        for node in self.nodes:
            match node:
                case Input(label):
                    values[node] = inputs[label]
                case Const(value):
                    values[node] = value
                case _:
                    values[node] = node.reference(*(values[a] for a in node.args))
            for arg in dict.fromkeys(node.args):
                readers[arg] -= 1
                if not readers[arg]:
                    del values[arg]
        return {name: values[node] for name, node in self.outputs}
