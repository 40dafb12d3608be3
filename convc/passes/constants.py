"""Nodes whose arguments are all known are computed while compiling; and what constants look like to other rules."""

from __future__ import annotations

import numpy as np

from convc.ir import Array, Const, Node
from convc.ir.check import FLOATS, INTEGERS
from convc.passes.rewrite import Uses

FOLDED_ELEMENTS = 2**24
FOLDED_FLOPS = 2**32


def fold_constants(node: Node, uses: Uses) -> Node | None:
    """f(c0, c1, ...) -> c, unless c is both large and larger than what it is made of, or takes long to compute."""
    consts = [a for a in node.args if isinstance(a, Const)]
    if not consts or len(consts) < len(node.args):
        return None
    given = sum(c.type.elements for c in consts)
    if node.type.elements > max(FOLDED_ELEMENTS, given) or node.flops > FOLDED_FLOPS:
        return None
    try:
        value = node.reference(*(c.value for c in consts))
    except (IndexError, ZeroDivisionError):
        return None
    return Const(np.asarray(value, np.dtype(node.dtype)).reshape(node.shape), origin=node.origin)


def scalar(node: Node) -> float | None:
    """The number that a constant of one element holds."""
    if isinstance(node, Const) and node.value.size == 1 and node.dtype in FLOATS + INTEGERS:
        return float(node.value.reshape(-1)[0])
    return None


def every(node: Node, number: float) -> bool:
    """A constant whose elements are all `number`."""
    return isinstance(node, Const) and node.value.size > 0 and bool(np.all(node.value == number))


def is_float(node: Node) -> bool:
    return node.dtype in FLOATS


def along(value: Array, shape: tuple[int, ...], axis: int) -> Array | None:
    """`value`, which broadcasts into `shape`, as one number per index of `axis`; None where another axis matters."""
    padded = (1,) * (len(shape) - value.ndim) + value.shape
    if len(padded) != len(shape) or any(e != 1 for a, e in enumerate(padded) if a != axis):
        return None
    return np.broadcast_to(value.reshape(-1), (shape[axis],))


def rounded(value: Array, dtype: str) -> Const | None:
    """float64 numbers as a constant of `dtype`; None where one of them does not fit or is not finite."""
    with np.errstate(all="ignore"):
        stored = value.astype(np.dtype(dtype))
    return finite(stored)


def rounded_product(value: Array, factor: Array, dtype: str) -> Const | None:
    """`rounded` of value * factor, `factor` broadcasting into `value`; float64 exists a few thousand numbers at a time.

    Weights are large: twice their size in float64, for each of the two operands, costs more than the product.
    """
    stored = np.empty(value.shape, np.dtype(dtype))
    with np.errstate(all="ignore"):
        np.multiply(value, factor, out=stored, dtype=np.float64, casting="unsafe")
    return finite(stored)


def finite(stored: Array) -> Const | None:
    return Const(stored) if np.all(np.isfinite(stored)) else None
