"""Integer products of what 8 bits hold as products of 8-bit numbers, which tensor cores multiply."""

from __future__ import annotations

import dataclasses

import numpy as np

from convc.ir import Array, Binary, Cast, Const, Conv, Graph, MatMul, Node
from convc.ir.check import SUMS
from convc.passes.rewrite import Uses, rewrite

Span = tuple[int, int]


def in_eight_bits(graph: Graph) -> Graph:
    """Every Conv and MatMul in int32 by constants of int8, whose other operand int8 or uint8 is sure to hold, on 8-bit
    operands; its result, in int32, is the same.

    conv(cast(q, int32), w)           ->  conv(q, w), q int8 or uint8
    conv(cast(q, int32) - zero, w)    ->  conv(cast(cast(q, int32) - zero, int8), w), q uint8 and zero 128
    """
    return rewrite(graph, {Conv: (_multiply,), MatMul: (_multiply,)})


def _multiply(node: Node, uses: Uses) -> Node | None:
    match node:
        case Conv(x, Const(w)) if (operands := eight_bits(x, w)) is not None:
            return dataclasses.replace(node, x=operands[0], w=operands[1])
        case MatMul(x, Const(w)) if w.ndim == 2 and (operands := eight_bits(x, w)) is not None:
            return dataclasses.replace(node, a=operands[0], b=operands[1])
    return None


def eight_bits(x: Node, w: Array) -> tuple[Node, Const] | None:
    """x and w in 8 bits; None where x is not int32 or one of them does not fit."""
    span = _span(x)
    fitting = [dtype for dtype in SUMS if span is not None and _holds(dtype, span)]
    if x.dtype != "int32" or not fitting or not w.size or not _holds("int8", _ends(w)):
        return None
    given = x.x if isinstance(x, Cast) and x.x.dtype in fitting else Cast(x, fitting[0], origin=x.origin)
    return given, Const(w.astype(np.int8))


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
