"""Rules that make a graph smaller and cheaper without changing what it computes."""

from __future__ import annotations

from convc.ir import (
    Binary,
    Broadcast,
    Cast,
    Concat,
    Const,
    Conv,
    Gather,
    Graph,
    Input,
    MatMul,
    Node,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Transpose,
    Unary,
    Where,
)
from convc.passes.affine import merge_affine
from convc.passes.arithmetic import (
    constant_second,
    drop_neutral,
    known_where,
    merge_clips,
    name_binary,
    simplify_unary,
)
from convc.passes.branches import merge_branches
from convc.passes.compositions import name_composition
from convc.passes.constants import fold_constants
from convc.passes.identities import (
    drop_broadcast,
    drop_broadcast_argument,
    drop_cast,
    drop_concat,
    drop_pad,
    drop_pool,
    drop_reduce,
    drop_reshape,
    drop_resize,
    drop_slice,
    drop_transpose,
    gather_as_slice,
)
from convc.passes.layer_norm import name_normalization
from convc.passes.pads import fold_pad
from convc.passes.rewrite import Rule, Rules, rewrite
from convc.passes.scale import fold_scale_after, fold_scale_before
from convc.passes.transposes import flip_islands

# What each kind of node is tried for, in this order. Names come before arithmetic, which would take formulas apart, and
# weights before chains of scales, so that a scale beside a convolution ends up in it.
SPECIFIC: dict[type[Node], tuple[Rule, ...]] = {
    Binary: (
        constant_second,
        drop_neutral,
        drop_broadcast_argument,
        name_binary,
        name_normalization,
        name_composition,
        fold_scale_after,
        merge_affine,
        merge_branches,
    ),
    Broadcast: (drop_broadcast,),
    Cast: (drop_cast,),
    Concat: (drop_concat,),
    Conv: (fold_pad, fold_scale_before),
    Gather: (gather_as_slice,),
    MatMul: (fold_scale_before,),
    Pad: (drop_pad,),
    Pool: (fold_pad, drop_pool),
    Reduce: (drop_reduce,),
    Reshape: (drop_reshape,),
    Resize: (drop_resize,),
    Slice: (drop_slice,),
    Transpose: (drop_transpose,),
    Unary: (simplify_unary, merge_clips, name_composition, fold_scale_after, merge_affine),
    Where: (known_where,),
}


def _with_constants(rules: dict[type[Node], tuple[Rule, ...]]) -> Rules:
    """Every kind of node is first tried for being constant."""
    kinds = [k for k in _kinds(Node) if k not in (Const, Input)]
    return {k: (fold_constants, *rules.get(k, ())) for k in kinds}


def _kinds(kind: type[Node]) -> list[type[Node]]:
    return [k for sub in kind.__subclasses__() for k in (sub, *_kinds(sub))]


RULES = _with_constants(SPECIFIC)


def simplify(graph: Graph) -> Graph:
    """The graph after every rule, and with as few transposes as the layouts allow: a fixed point of both."""
    while True:
        graph = rewrite(graph, RULES)
        flipped = flip_islands(graph)
        if flipped is graph:
            return graph
        graph = flipped


__all__ = ["RULES", "simplify"]
