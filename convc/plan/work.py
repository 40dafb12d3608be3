"""What fusing costs: how often a fused value is computed, and how long the expression becomes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from convc.ir import Binary, Broadcast, Cast, Gather, Node, Pad, Reshape, Resize, Slice, Transpose, Unary, Where

EXPRESSION_LIMIT = 64
"""Operations in one element's expression, shared values counted once a use: what inlining a group may grow to."""

TRIVIAL = frozenset({
    "relu", "leaky_relu", "clip", "neg", "abs", "not", "add", "sub", "mul", "min", "max", "prelu", "equal", "less",
    "less_equal", "greater", "greater_equal", "and", "or", "xor",
})
"""Functions of one or two instructions: computing them again is cheaper than a pass over memory."""


def is_elementwise(node: Node) -> bool:
    return isinstance(node, Unary | Binary | Where | Cast)


def is_movement(node: Node) -> bool:
    """Elements are picked by index and nothing is computed."""
    nearest = isinstance(node, Resize) and node.mode == "nearest"
    return nearest or isinstance(node, Transpose | Slice | Pad | Broadcast | Gather | Reshape)


def is_map(node: Node) -> bool:
    """Each element is a short expression of few elements: what chains of nodes fuse from."""
    linear = isinstance(node, Resize) and node.mode == "linear" and not node.antialias
    return linear or is_elementwise(node) or is_movement(node)


def is_trivial(node: Node) -> bool:
    return isinstance(node, Cast | Where) or (isinstance(node, Unary | Binary) and node.fn in TRIVIAL)


def reads_each(node: Node) -> int:
    """Elements of an argument that one element of a map node is made of."""
    if isinstance(node, Resize) and node.mode == "linear":
        return int(2 ** sum(a != b for a, b in zip(node.x.shape, node.to, strict=True)))
    return 1


def expression_size(nodes: Sequence[Node]) -> int:
    """Operations in one element of the last of `nodes` (arguments before users) when everything is inlined."""
    size: dict[Node, int] = {}
    for node in nodes:
        size[node] = 1 + reads_each(node) * sum(size.get(a, 0) for a in node.args)
    return size[nodes[-1]]


def evaluations(node: Node, users: Iterable[Node], counts: Mapping[Node, float]) -> float:
    """How many elements of `node` its users inside a group compute; `counts` has the users' own.

    Users that read at one's own index share what they read.
    """
    shared, moved = 0.0, 0.0
    for user in users:
        if is_elementwise(user):
            shared = max(shared, counts[user])
        else:
            whole = counts[user] / max(1, user.type.elements)
            moved += whole * _read(node, user)
    return shared + moved


def _read(node: Node, user: Node) -> int:
    """Elements of `node` read for every element of `user` once; a pad by a constant reads none of its border."""
    if isinstance(user, Pad) and user.mode == "constant":
        return min(node.type.elements, user.type.elements)
    return user.type.elements * reads_each(user)


def fits_epilogue(shape: Sequence[int], anchor: Sequence[int]) -> bool:
    """Whether an activation of `shape` can be read beside the anchor's result: as large, or one number a channel."""
    if tuple(shape) == tuple(anchor):
        return True
    rank = len(anchor)
    if len(shape) != rank or rank < 3:
        return False
    per_channel = all(s in (1, a) for s, a in zip(shape[:2], anchor[:2], strict=True))
    return per_channel and math.prod(shape[2:]) == 1
