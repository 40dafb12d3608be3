"""The same operation on a tensor whose axes lie in another order.

A value v is held flipped by `perm` where what is stored is s with v = transpose(s, perm): axis i of v is perm[i] of s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from convc.ir import (
    Array,
    Binary,
    Cast,
    Concat,
    Const,
    Conv,
    MatMul,
    Node,
    Normalize,
    Pad,
    Reduce,
    Resize,
    Slice,
    Softmax,
    Unary,
    Where,
)

Perm = tuple[int, ...]
T = TypeVar("T")


def inverse(perm: Perm) -> Perm:
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def flips(node: Node, perm: Perm) -> bool:
    """Whether the operation exists on flipped arguments with a flipped result."""
    rank = len(perm)
    if node.type.rank != rank:
        return False
    match node:
        case Unary() | Cast() | Normalize() | Softmax() | Pad() | Slice():
            return True
        case Binary() | Where() | Concat():
            return all(isinstance(a, Const) or a.type.rank == rank for a in node.args)
        case Reduce(keepdims=keepdims):
            return keepdims
        case Resize():
            return True
        case MatMul(a, Const(b)):
            return b.ndim == 2 and a.type.rank == rank and is_channels_last(perm) and 3 <= rank <= 5
    return False


def reads_either(node: Node, perm: Perm) -> bool:
    """A reduction whose result, without the axes it folds, is the same whether its argument is flipped or not."""
    if not isinstance(node, Reduce) or node.keepdims or node.x.type.rank != len(perm):
        return False
    kept = [perm[a] for a in range(len(perm)) if a not in node.axes]
    return kept == sorted(kept)


def is_channels_last(perm: Perm) -> bool:
    """The flipped tensor has its channels on axis 1 where the other has them last."""
    return len(perm) >= 3 and perm == (0, *range(2, len(perm)), 1)


def flipped(node: Node, args: Sequence[Node], perm: Perm) -> Node:
    """The operation of `node`, for which `flips` holds, on flipped arguments."""
    match node:
        case MatMul(_, Const(b)):
            rank = len(perm)
            w = Const(np.ascontiguousarray(b.T).reshape(*b.T.shape, *(1,) * (rank - 2)))
            ones = (1,) * (rank - 2)
            return Conv(args[0], w, None, ones, ((0, 0),) * (rank - 2), ones, 1, origin=node.origin)
        case Normalize(_, axes):
            return replace(node, x=args[0], axes=tuple(sorted(perm[a] for a in axes)))
        case Softmax(_, axis):
            return replace(node, x=args[0], axis=perm[axis])
        case Concat(_, axis):
            return replace(node, xs=tuple(args), axis=perm[axis])
        case Reduce():
            return flipped_reduce(node, args[0], perm)
        case Pad(_, pad):
            return replace(node, x=args[0], pad=stored(pad, perm))
        case Slice():
            begin, size, step = (stored(v, perm) for v in (node.begin, node.size, node.step))
            return replace(node, x=args[0], begin=begin, size=size, step=step)
        case Resize():
            half = len(perm)
            roi = stored(node.roi[:half], perm) + stored(node.roi[half:], perm) if node.roi else ()
            return replace(node, x=args[0], to=stored(node.to, perm), scale=stored(node.scale, perm), roi=roi)
        case _:
            return node.with_args(tuple(args))


def flipped_reduce(node: Reduce, x: Node, perm: Perm) -> Reduce:
    return replace(node, x=x, axes=tuple(sorted(perm[a] for a in node.axes)))


def stored(per_axis: tuple[T, ...], perm: Perm) -> tuple[T, ...]:
    """One thing per axis, in the order of the stored tensor's axes."""
    return tuple(per_axis[a] for a in inverse(perm))


def flipped_const(value: Array, perm: Perm) -> Const:
    """A constant that broadcasts against v, made to broadcast against s."""
    full = value.reshape((1,) * (len(perm) - value.ndim) + value.shape)
    return Const(value if value.size == 1 and value.ndim == 0 else np.ascontiguousarray(full.transpose(inverse(perm))))
