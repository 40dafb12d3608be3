"""Products of dequantized tensors as products of the integers that these hold: sums are exact, and scaled once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convc.ir import Array, Binary, Cast, Const, Conv, Graph, MatMul, Node, Reshape, Transpose
from convc.passes.constants import along, finite
from convc.passes.eight_bits import multiply_bytes
from convc.passes.rewrite import Uses, rewrite

LEAST = 8  # channels of a group from which tensor cores multiply: with fewer, floats have algorithms and integers none
LARGEST = 255  # of 8 bits, in magnitude
INT32 = 2**31 - 1


def sum_integers(graph: Graph) -> Graph:
    """conv(q * s, w * t, b)  ->  cast(conv(q, w), float32) * (s * t) + b, and matrix products alike: q and w in int32,
    less their zero points, where `multiply_bytes` takes them; s one number, t one for each output channel.

    `graph` is as the front end makes it: simplified, w * t is one constant. Rounded are s * t and what each of the
    three nodes makes, which is less than the products of floats and their sums are.
    """
    return rewrite(graph, {Conv: (_conv,), MatMul: (_matmul,)})


def _conv(node: Node, uses: Uses) -> Node | None:
    if not isinstance(node, Conv) or node.w.shape[0] // node.group < LEAST:
        return None
    found = _integers(node.x, node.w, 0)
    if found is None:
        return None
    x, w, factor = found
    total, shape = replace(node, x=x, w=w, b=None), (1, node.w.shape[0], *(1,) * (node.type.rank - 2))
    if multiply_bytes(total, uses) is None:
        return None
    y = _scaled(total, factor, shape)
    return y if node.b is None else Binary("add", y, Reshape(node.b, shape), origin=node.origin)


def _matmul(node: Node, uses: Uses) -> Node | None:
    if not isinstance(node, MatMul) or node.b.type.rank != 2 or node.b.shape[1] < LEAST:
        return None
    found = _integers(node.a, node.b, 1)
    if found is None:
        return None
    a, b, factor = found
    total = replace(node, a=a, b=b)
    return None if multiply_bytes(total, uses) is None else _scaled(total, factor, (node.b.shape[1],))


def _scaled(total: Node, factor: Const, shape: tuple[int, ...]) -> Node:
    wide = Cast(total, "float32", origin=total.origin)
    return Binary("mul", wide, Const(factor.value.reshape(shape)), origin=total.origin)


def _integers(x: Node, w: Node, axis: int) -> tuple[Node, Const, Const] | None:
    """x and w in int32 and the factor for each index of `axis` of w, the output channels; None where x and w are not
    dequantized or their sums could leave int32."""
    left, right = _dequantized(x), _weights(w)
    if left is None or right is None or left[1].size != 1:
        return None
    (values, scale), (weights, scales) = left, right
    by_channel = along(scales, w.shape, axis)
    sums = np.abs(weights.astype(np.int64)).sum(axis=tuple(a for a in range(weights.ndim) if a != axis))
    if by_channel is None or LARGEST * int(sums.max(initial=0)) > INT32:
        return None
    factor = finite((scale.reshape(()).astype(np.float64) * by_channel).astype(np.float32))
    return None if factor is None else (values, Const(weights, origin=w.origin), factor)


def _dequantized(x: Node) -> tuple[Node, Array] | None:
    """The integers that x is, in int32, and the scale that multiplies them and broadcasts to them."""
    match x:
        case Binary("mul", Cast(q, "float32"), Const(scale)):
            return (q if q.dtype == "int32" else Cast(q, "int32", origin=x.origin)), scale
    return None


def _weights(w: Node) -> tuple[Array, Array] | None:
    """The same of constants, which may be transposed after that."""
    if isinstance(w, Transpose) and (inner := _weights(w.x)) is not None:
        values, scale = inner
        led = scale.reshape((1,) * (values.ndim - scale.ndim) + scale.shape)
        return values.transpose(w.perm), led.transpose(w.perm)
    match _dequantized(w):
        case Cast(Const(q), _), scale:
            return q.astype(np.int32), scale
        case Binary("sub", Cast(Const(q), _), Const(zero)), scale:
            return q.astype(np.int32) - zero, scale
    return None
