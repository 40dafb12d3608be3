"""Classes of epilogues: as far as what follows a convolution in its kernel changes which config is the fastest."""

from __future__ import annotations

from convc.ir import Const, Node, Unary
from convc.plan.plan import Group

EPILOGUES = ("none", "short", "residual", "long")

# What is a few instructions an element.
SHORT = frozenset({"relu", "leaky_relu", "clip", "hard_sigmoid", "hard_swish", "neg", "abs", "thresholded_relu"})


def is_long(nodes: tuple[Node, ...]) -> bool:
    """Whether the epilogue is better a loop over a copy of the tile than unrolled over the registers."""
    return any(isinstance(node, Unary) and node.fn not in SHORT for node in nodes)


def epilogue_of(group: Group) -> str:
    """The class of an anchored group: nothing; a few instructions; those and another tensor to read; or long."""
    anchor, *after = group.nodes
    if not after:
        return "none"
    if is_long(group.nodes):
        return "long"
    others = [r for r in group.reads if r is not anchor.args[0] and not isinstance(r, Const)]
    return "residual" if any(r.shape == anchor.shape for r in others) else "short"
