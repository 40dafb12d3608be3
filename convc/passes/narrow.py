"""A network of float32 in a 2-byte type, its inputs and outputs left as they are."""

from __future__ import annotations

import numpy as np

from convc.ir import Cast, Const, Graph, Input, Node
from convc.ir.check import FLOATS

WIDE = "float32"


def narrow(graph: Graph, dtype: str) -> Graph:
    """Every value between inputs and outputs in `dtype` (float16 or bfloat16), with a Cast at both ends.

    Constants are rounded to nearest even. A node with one that lies beyond the type stays in float32, between casts.
    What an integer is made of stays as exact as it comes in.
    """
    return _Narrowing(dtype).graph(graph)


class _Narrowing:
    """The nodes made anew. Each float32 value of the graph has one of the narrow type here."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.new: dict[Node, Node] = {}
        self.rounded: dict[Const, Const | None] = {}

    def graph(self, graph: Graph) -> Graph:
        for node in graph.nodes:
            self.new[node] = self._made(node)
            _ = self.new[node].type
        return Graph(graph.inputs, tuple((name, self._output(node)) for name, node in graph.outputs))

    def _made(self, node: Node) -> Node:
        match node:
            case Const():
                return node  # its readers round it, each as it can
            case Input():
                return self._cast(node, self.dtype) if node.dtype == WIDE else node
            case Cast(x, to) if to not in FLOATS and isinstance(x, Input | Const):
                return node
            case Cast(x, to) if to == WIDE:
                return self._cast(self._narrow(x) or x, self.dtype)
        args = [self._narrow(a) for a in node.args]
        if all(a is not None for a in args):
            return node.with_args(tuple(a for a in args if a is not None))
        wide = node.with_args(tuple(self._wide(a) for a in node.args))
        return self._cast(wide, self.dtype) if wide.dtype == WIDE else wide

    def _narrow(self, node: Node) -> Node | None:
        """None where it is a constant that the type does not hold."""
        if not isinstance(node, Const) or node.dtype != WIDE:
            return self.new[node]
        if node not in self.rounded:
            self.rounded[node] = rounded(node, self.dtype)
        return self.rounded[node]

    def _wide(self, node: Node) -> Node:
        made = self.new[node]
        return self._cast(made, WIDE) if node.dtype == WIDE else made

    def _output(self, node: Node) -> Node:
        if isinstance(node, Input | Const):
            return node
        return self._cast(self.new[node], WIDE) if node.dtype == WIDE else self.new[node]

    def _cast(self, node: Node, to: str) -> Node:
        return node if node.dtype == to else Cast(node, to, origin=node.origin)


def rounded(const: Const, dtype: str) -> Const | None:
    """`const` in `dtype`; None where a finite number becomes infinite."""
    with np.errstate(over="ignore"):
        value = const.value.astype(np.dtype(dtype))
    if np.array_equal(np.isfinite(value), np.isfinite(const.value)):
        return Const(value, origin=const.origin)
    return None
