"""Rules applied to a graph until none of them has anything to say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from convc.ir import Const, Graph, Input, Node

# A rule's result must be no further from the end than the node it replaces, so these bounds are never met by rules that
# are right; they keep a wrong one from running for ever.
STEPS_PER_NODE = 64
SWEEPS = 64

SHARED_CONSTANT_BYTES = 256


class Uses:
    """How often each value of the graph under construction is read: never less than the truth."""

    def __init__(self) -> None:
        self._count: Counter[Node] = Counter()

    def sole(self, node: Node) -> bool:
        """Nobody but the one who asks reads `node`."""
        return self._count[node] <= 1

    def register(self, node: Node, count: int) -> None:
        """`node` has, or takes over, `count` readers."""
        self._count[node] += count

    def register_new(self, node: Node) -> None:
        """A rule made `node`, and maybe nodes that it reads: what these read has one more reader each."""
        stack = [] if node in self._count else [node]
        while stack:
            for arg in dict.fromkeys(stack.pop().args):
                if arg not in self._count:
                    stack.append(arg)
                self._count[arg] += 1


Rule = Callable[[Node, Uses], Node | None]
Rules = Mapping[type[Node], Sequence[Rule]]


def rewrite(graph: Graph, rules: Rules) -> Graph:
    """`graph` after sweeps of `rules`, arguments before users, until a sweep changes nothing.

    A rule gets a node whose arguments are done and returns what to put in its place, or None. Equal operations on the
    same arguments become one.
    """
    for _ in range(SWEEPS):
        swept = sweep(graph, rules)
        if swept is graph:
            break
        graph = swept
    return graph


def sweep(graph: Graph, rules: Rules) -> Graph:
    """One pass over the graph; the same object where nothing changed."""
    readers = Counter(arg for node in graph.nodes for arg in dict.fromkeys(node.args))
    readers.update(node for _, node in graph.outputs)
    uses, new, known = Uses(), dict[Node, Node](), dict[object, Node]()
    for node in graph.nodes:
        given = node.with_args(tuple(new[a] for a in node.args))
        made = settle(given, uses, rules)
        if made is not given:
            uses.register_new(made)
        made = known.setdefault(identity(made), made)
        uses.register(made, readers[node])
        new[node] = made
    if all(old is now for old, now in new.items()):
        return graph
    return Graph(graph.inputs, tuple((name, new[node]) for name, node in graph.outputs))


def settle(node: Node, uses: Uses, rules: Rules) -> Node:
    """`node` after every rule that its type has, again from the first whenever one of them fires."""
    for _ in range(STEPS_PER_NODE):
        fired = next((new for rule in rules.get(type(node), ()) if (new := rule(node, uses)) is not None), None)
        if fired is None:
            break
        if (fired.shape, fired.dtype) != (node.shape, node.dtype):
            raise AssertionError(f"a rule turned {node.type} into {fired.type}: {type(node).__name__}")
        node = fired
    return node


def identity(node: Node) -> object:
    """Equal for two nodes that are bound to hold the same value."""
    if isinstance(node, Const):
        if node.value.nbytes > SHARED_CONSTANT_BYTES:
            return node
        return node.value.dtype.name, node.value.shape, np.ascontiguousarray(node.value).tobytes()
    if isinstance(node, Input):
        return node
    return type(node), *(_key(getattr(node, f.name)) for f in dataclasses.fields(node) if f.name != "origin")


def _key(value: Any) -> object:
    """Numbers with their type, because 0.0 == -0.0 == False."""
    if isinstance(value, float):
        return value.hex()
    return tuple(map(_key, value)) if isinstance(value, tuple) else value


def origins(*nodes: Node) -> tuple[str, ...]:
    """The names of all of them, each once."""
    return tuple(dict.fromkeys(name for node in nodes for name in node.origin))
