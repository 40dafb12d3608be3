"""Operations that change nothing or say in two steps what one can say: movement, casts, pools of one cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convc.ir import (
    Binary,
    Broadcast,
    Cast,
    Concat,
    Const,
    Gather,
    Node,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Transpose,
)
from convc.ir.check import FLOATS
from convc.passes.rewrite import Uses, origins

# Elements of one group fold to the element itself.
OF_ONE_ELEMENT = ("sum", "mean", "max", "min", "prod")


def drop_reshape(node: Node, uses: Uses) -> Node | None:
    """reshape(x, x.shape) -> x; reshape(reshape(x, s), t) -> reshape(x, t)"""
    match node:
        case Reshape(x, to) if x.shape == to:
            return x
        case Reshape(Reshape(x) as inner, to):
            return Reshape(x, to, origin=origins(inner, node))
    return None


def drop_transpose(node: Node, uses: Uses) -> Node | None:
    """Two in a row become one, and one that moves no axis of more than one element becomes a reshape."""
    match node:
        case Transpose(Transpose(x, first) as inner, second):
            return Transpose(x, tuple(first[a] for a in second), origin=origins(inner, node))
        case Transpose(x, perm):
            moved = [a for a in perm if x.shape[a] != 1]
            if moved == sorted(moved):
                return Reshape(x, node.shape, origin=node.origin)
    return None


def drop_slice(node: Node, uses: Uses) -> Node | None:
    """A slice of everything is its argument; a slice of a slice is one slice."""
    match node:
        case Slice(x, step=step) if node.shape == x.shape and all(s == 1 for s in step):
            return x
        case Slice(Slice(x, begin, _, step) as inner):
            return Slice(
                x,
                tuple(b + i * s for b, i, s in zip(begin, node.begin, step, strict=True)),
                node.size,
                tuple(a * b for a, b in zip(step, node.step, strict=True)),
                origin=origins(inner, node),
            )
    return None


def drop_concat(node: Node, uses: Uses) -> Node | None:
    """One argument is the result; arguments without elements go; a concat read only here is taken apart."""
    if not isinstance(node, Concat):
        return None
    if len(node.xs) == 1:
        return node.xs[0]
    full = tuple(x for x in node.xs if x.shape[node.axis])
    if full and len(full) < len(node.xs):
        return replace(node, xs=full)
    inner = [x for x in node.xs if isinstance(x, Concat) and x.axis == node.axis and uses.sole(x)]
    if not inner:
        return None
    flat = tuple(y for x in node.xs for y in (x.xs if isinstance(x, Concat) and x in inner else (x,)))
    return Concat(flat, node.axis, origin=origins(*inner, node))


def drop_pad(node: Node, uses: Uses) -> Node | None:
    """pad(x, 0) -> x; two pads with the same constant become one."""
    match node:
        case Pad(x, pad) if all(p == (0, 0) for p in pad):
            return x
        case Pad(Pad(x, first, "constant", low) as inner, second, "constant", high) if low == high:
            if any(v < 0 for p in (*first, *second) for v in p):
                return None
            both = tuple((p[0] + q[0], p[1] + q[1]) for p, q in zip(first, second, strict=True))
            return Pad(x, both, "constant", low, origin=origins(inner, node))
    return None


def drop_cast(node: Node, uses: Uses) -> Node | None:
    """cast(x, its own dtype) -> x; a cast to something wider on the way to somewhere else is left out."""
    match node:
        case Cast(x, to) if x.dtype == to:
            return x
        case Cast(Cast(x, wide) as inner, to) if holds_all(x.dtype, wide):
            return Cast(x, to, origin=origins(inner, node))
    return None


def holds_all(dtype: str, wide: str) -> bool:
    """Whether `wide` holds every number of `dtype` exactly. numpy calls int64 to float64 safe, which rounds."""
    rounds = dtype in ("int64", "uint64") and wide in FLOATS
    return not rounds and np.can_cast(np.dtype(dtype), np.dtype(wide), "safe")


def drop_broadcast(node: Node, uses: Uses) -> Node | None:
    match node:
        case Broadcast(x, to) if x.shape == to:
            return x
        case Broadcast(Broadcast(x) as inner, to):
            return Broadcast(x, to, origin=origins(inner, node))
    return None


def drop_broadcast_argument(node: Node, uses: Uses) -> Node | None:
    """fn(broadcast(a), b) -> fn(a, b) where b alone gives the shape"""
    if not isinstance(node, Binary):
        return None
    narrow = [a.x if isinstance(a, Broadcast) else a for a in node.args]
    for a, b in ((narrow[0], node.b), (node.a, narrow[1])):
        if (a is not node.a or b is not node.b) and np.broadcast_shapes(a.shape, b.shape) == node.shape:
            return replace(node, a=a, b=b)
    return None


def drop_resize(node: Node, uses: Uses) -> Node | None:
    return node.x if isinstance(node, Resize) and not node.resized_axes else None


def drop_pool(node: Node, uses: Uses) -> Node | None:
    """A pool of one cell is its argument; a pool of all cells is a reduction."""
    if not isinstance(node, Pool) or node.kind == "lp" or any(v for p in node.pad for v in p) or any(node.overhang):
        return None
    spatial = node.x.shape[2:]
    if all(k == 1 for k in node.kernel) and node.shape == node.x.shape:
        return node.x
    if node.kernel == spatial and all(d == 1 for d in node.dilation):
        fn = "mean" if node.kind == "average" else "max"
        return Reduce(fn, node.x, tuple(range(2, 2 + len(spatial))), origin=node.origin)
    return None


def drop_reduce(node: Node, uses: Uses) -> Node | None:
    """Over axes of one element it only reshapes."""
    match node:
        case Reduce(fn, x, axes) if fn in OF_ONE_ELEMENT and all(x.shape[a] == 1 for a in axes):
            return Reshape(x, node.shape, origin=node.origin)
    return None


def gather_as_slice(node: Node, uses: Uses) -> Node | None:
    """Known indices at even distances are a slice."""
    if not (isinstance(node, Gather) and isinstance(node.indices, Const) and node.indices.value.ndim <= 1):
        return None
    extent = node.x.shape[node.axis]
    raw = node.indices.value.astype(np.int64).reshape(-1)
    at = np.where(raw < 0, raw + extent, raw)
    steps = set(np.diff(at).tolist()) or {1}
    if not at.size or len(steps) > 1 or steps == {0} or at.min() < 0 or at.max() >= extent:
        return None
    begin, size, step = [0] * node.x.type.rank, list(node.x.shape), [1] * node.x.type.rank
    begin[node.axis], size[node.axis], step[node.axis] = int(at[0]), len(at), steps.pop()
    part = Slice(node.x, tuple(begin), tuple(size), tuple(step), origin=node.origin)
    return Reshape(part, node.shape, origin=node.origin)
