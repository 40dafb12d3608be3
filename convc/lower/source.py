"""What a kernel computes from, as a function of an index, with the means to ask it what it would read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.tirx import Expr

from convc.ir import Node, TensorType
from convc.lower.access import Access, Simplify
from convc.lower.elementwise import express, is_elementwise
from convc.lower.nest import Memory, Nest, leaves_of

Make = Callable[[Mapping[Node, Access], Simplify], Access]


@dataclass(frozen=True, eq=False)
class Source:
    """An element at i is make(leaves)(i), the leaves read from `memories`. `elementwise`: each leaf at i itself.
    `copies`: nothing is computed."""

    nest: Nest
    type: TensorType
    memories: Mapping[Node, Memory]
    make: Make
    elementwise: bool
    copies: bool = False

    def value(self, index: Sequence[Any], *, instead: Mapping[Node, Expr] | None = None) -> Expr:
        """The element at `index`, with the values of some leaves given."""
        leaves = leaves_of(self.nest, self.memories)
        for node, value in (instead or {}).items():
            leaves[node] = _constant(value)
        return self.make(leaves, self.nest.simplify)(index)


def _constant(value: Expr) -> Access:
    return lambda _index: value


@dataclass(eq=False)
class Trace:
    """What one evaluation reads, in order, and the conditions it could not decide."""

    nodes: list[Node] = field(default_factory=list)
    offsets: list[Any] = field(default_factory=list)
    indices: list[list[Any]] = field(default_factory=list)
    conditions: list[Expr] = field(default_factory=list)


def free_variables(x: Any) -> list[Expr]:
    return [] if isinstance(x, int) else list(tirx.analysis.undefined_vars(x, []))


def trace(source: Source, index: Sequence[Any]) -> Trace:
    found, nest = Trace(), source.nest

    def recorder(node: Node, memory: Memory) -> Access:
        def read(at: Sequence[Any]) -> Expr:
            found.nodes.append(node)
            found.indices.append(nest.inside(memory, at))
            found.offsets.append(nest.offset(memory, at))
            return tirx.Var("r", memory.type.dtype)

        return read

    def simplify(x: Any) -> Any:
        known = nest.simplify(x)
        if not isinstance(known, int | bool) and str(known.ty) == "bool":
            found.conditions.append(known)
        return known

    source.make({n: recorder(n, m) for n, m in source.memories.items()}, simplify)(index)
    return found


def source_of(nest: Nest, node: Node, nodes: Sequence[Node], memories: Mapping[Node, Memory]) -> Source:
    """`node` from `memories` by way of `nodes` of its group, arguments first."""
    if node in memories:
        return Source(nest, node.type, {node: memories[node]}, lambda leaves, _simplify: leaves[node], True, True)
    chain = needed(node, nodes)
    used = {arg for n in chain for arg in n.args}

    def make(leaves: Mapping[Node, Access], simplify: Simplify) -> Access:
        return express(chain, leaves, simplify=simplify)

    leaves = {n: m for n, m in memories.items() if n in used}
    computing = [is_elementwise(n) for n in chain]
    return Source(nest, node.type, leaves, make, all(computing), not any(computing))


def needed(node: Node, nodes: Sequence[Node]) -> list[Node]:
    """Those of `nodes` (arguments first) that `node` is computed from, with it."""
    wanted, found = {node}, []
    for n in reversed(nodes):
        if n in wanted:
            found.append(n)
            wanted |= set(n.args)
    return found[::-1] or [node]
