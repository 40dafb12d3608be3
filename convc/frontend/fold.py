"""Takes the nodes that an operator made into the graph: checks their types, and computes what is known already."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from convc.errors import UnsupportedError
from convc.frontend.limits import COMPUTED, MAX_FOLDED_BYTES, MAX_FOLDING_BYTES
from convc.frontend.tensor import count_elements
from convc.ir import (
    ArgReduce,
    Binary,
    Broadcast,
    Cast,
    Concat,
    Const,
    Gather,
    Input,
    Node,
    Pad,
    Reduce,
    Reshape,
    Slice,
    Transpose,
    Unary,
    Where,
)

# Shape arithmetic. Nothing whose work exceeds its bytes.
FOLDED = (ArgReduce, Binary, Broadcast, Cast, Concat, Gather, Pad, Reduce, Reshape, Slice, Transpose, Unary, Where)
PACKED = ("int4", "uint4")  # constants only


@dataclass
class Folder:
    """`settled` holds every node that is in the graph; `left` is how many bytes folding may still read and write."""

    settled: set[Node] = field(default_factory=set)
    left: int = MAX_FOLDING_BYTES

    def settle(self, root: Node, origin: str, *, fold: bool) -> Node:
        """`root` with its origin set and its constant parts computed. ValueError where types do not fit."""
        new: dict[Node, Node] = {}
        stack = [root]
        while stack:
            node = stack[-1]
            waiting = [a for a in node.args if a not in self.settled and a not in new]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            if node not in self.settled and node not in new:
                new[node] = self.take(node.with_args(tuple(new.get(a, a) for a in node.args)), origin, fold=fold)
        return new.get(root, root)

    def take(self, node: Node, origin: str, *, fold: bool) -> Node:
        count_elements(node.shape)
        if fold and self.affordable(node):
            values = (a.value for a in node.args if isinstance(a, Const))
            node = Const(np.asarray(node.reference(*values), order="C"))
        node = dataclasses.replace(node, origin=(origin,))
        check_dtypes(node)
        self.settled.add(node)
        return node

    def affordable(self, node: Node) -> bool:
        if not isinstance(node, FOLDED) or not all(isinstance(a, Const) for a in node.args):
            return False
        if node.type.bytes > MAX_FOLDED_BYTES or node.bytes > self.left:
            return False
        self.left -= node.bytes
        return True


def check_dtypes(node: Node) -> None:
    """What runs has a dtype that kernels have, and at least one element."""
    if isinstance(node, (Const, Input)):
        return
    for t in (node.type, *(a.type for a in node.args)):
        if t.dtype not in COMPUTED and not (t.dtype in PACKED and isinstance(node, Cast)):
            raise UnsupportedError(f"{t.dtype} is not supported ({t}); supported are {', '.join(COMPUTED)}")
    if node.type.elements == 0:
        raise UnsupportedError(f"a result with no elements ({node.type})")
