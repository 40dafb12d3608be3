"""Integer products of what 8 bits hold as products of 8-bit numbers, which tensor cores multiply."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convc.ir import Array, Binary, Cast, Const, Conv, Graph, MatMul, Node
from convc.ir.check import SUMS
from convc.passes.rewrite import Uses, rewrite
from convc.passes.zero_points import move_zero_point

Span = tuple[int, int]


def in_eight_bits(graph: Graph) -> Graph:
    """Every Conv and MatMul in int32 by constants that int8 holds, of what int8 or uint8 is sure to hold, if need be
    without its zero point, on 8-bit operands; its result, in int32, is the same."""
    return rewrite(graph, {Conv: (multiply_bytes,), MatMul: (multiply_bytes,)})


def multiply_bytes(node: Node, uses: Uses) -> Node | None:
    """conv(cast(q, int32), w)         ->  conv(q, w), q int8 or uint8
    conv(cast(q, int32) - zero, w)  ->  conv(cast(cast(q, int32) - zero, int8), w), q uint8 and zero 128

    With other zero points as `move_zero_point` leaves them.
    """
    match node:
        case Conv(x, Const(w)) | MatMul(x, Const(w)) if x.dtype == "int32" and w.size and _holds("int8", _ends(w)):
            if isinstance(node, MatMul) and w.ndim > 2:
                return None
            given = _given(x)
            return move_zero_point(node, uses) if given is None else _by_bytes(node, given, Const(w.astype(np.int8)))
    return None


def _by_bytes(node: Conv | MatMul, x: Node, w: Const) -> Node:
    return replace(node, x=x, w=w) if isinstance(node, Conv) else replace(node, a=x, b=w)


def _given(x: Node) -> Node | None:
    """x in 8 bits; None where it may not fit."""
    span = _span(x)
    fitting = [dtype for dtype in SUMS if span is not None and _holds(dtype, span)]
    if not fitting:
        return None
    return x.x if isinstance(x, Cast) and x.x.dtype in fitting else Cast(x, fitting[0], origin=x.origin)


def _span(x: Node) -> Span | None:
    """Between what numbers the elements of x lie, None where that is not known."""
    match x:
        case Cast(q, "int32") if q.dtype in SUMS:
            info = np.iinfo(q.dtype)
            return int(info.min), int(info.max)
        case Binary("sub", q, Const(zero)) if zero.size and (span := _span(q)) is not None:
            low, high = _ends(zero)
            return span[0] - high, span[1] - low
    return None


def _ends(values: Array) -> Span:
    return int(values.min()), int(values.max())


def _holds(dtype: str, span: Span) -> bool:
    info = np.iinfo(dtype)
    return info.min <= span[0] and span[1] <= info.max
