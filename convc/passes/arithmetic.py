"""Arithmetic with constants that does nothing, or that has a name of its own: relu, clip, sqrt."""

from __future__ import annotations

import math
from collections.abc import Callable

from convc.ir import Binary, Const, Node, Unary, Where
from convc.ir.check import FLOATS
from convc.passes.constants import every, is_float, scalar
from convc.passes.rewrite import Uses, origins

# Function: (does it work with the constant first as well, the constant that leaves the other argument as it is).
NEUTRAL: dict[str, tuple[bool, float]] = {
    "add": (True, 0.0),
    "sub": (False, 0.0),
    "mul": (True, 1.0),
    "div": (False, 1.0),
    "pow": (False, 1.0),
}
COMMUTATIVE = frozenset({"add", "mul", "min", "max", "equal", "and", "or", "xor"})
IDEMPOTENT = frozenset({"relu", "abs", "sign", "floor", "ceil", "round"})
POWERS = {0.5: "sqrt", -1.0: "reciprocal"}


def drop_neutral(node: Node, uses: Uses) -> Node | None:
    """x + 0, x * 1, x - 0, x / 1, x ** 1 -> x"""
    if not isinstance(node, Binary) or node.fn not in NEUTRAL:
        return None
    either_side, number = NEUTRAL[node.fn]
    if every(node.b, number) and node.a.shape == node.shape:
        return node.a
    if either_side and every(node.a, number) and node.b.shape == node.shape:
        return node.b
    return None


def constant_second(node: Node, uses: Uses) -> Node | None:
    """c + x -> x + c, so that other rules need one form."""
    match node:
        case Binary(fn, Const() as c, x) if fn in COMMUTATIVE and not isinstance(x, Const):
            return Binary(fn, x, c, origin=node.origin)
    return None


def name_binary(node: Node, uses: Uses) -> Node | None:
    """max(x, 0) -> relu(x), min(x, 6) -> clip(x), x ** 0.5 -> sqrt(x), prelu by one slope -> leaky_relu, ..."""
    if not isinstance(node, Binary) or not is_float(node) or node.a.shape != node.shape:
        return None
    number = scalar(node.b)
    if number is None:
        return _leaky(node)
    made = NAMED_BINARY[node.fn](node.a, number) if node.fn in NAMED_BINARY and not math.isnan(number) else None
    return made and _with_origin(made, node)


def _power(x: Node, exponent: float) -> Node | None:
    if exponent == 2:
        return Binary("mul", x, x)
    return Unary(POWERS[exponent], x) if exponent in POWERS else None


NAMED_BINARY: dict[str, Callable[[Node, float], Node | None]] = {
    "max": lambda x, low: Unary("clip", x, (low, math.inf)),
    "min": lambda x, high: Unary("clip", x, (-math.inf, high)),
    "prelu": lambda x, slope: Unary("leaky_relu", x, (slope,)),
    "pow": _power,
}


def _with_origin(made: Node, node: Node) -> Node:
    if isinstance(made, Unary):
        return Unary(made.fn, made.x, made.params, origin=node.origin)
    assert isinstance(made, Binary)
    return Binary(made.fn, made.a, made.b, origin=node.origin)


def _leaky(node: Binary) -> Node | None:
    """max(x, x * slope) -> leaky_relu(x, slope) for slopes from 0 to 1"""
    if node.fn != "max":
        return None
    for x, scaled in ((node.a, node.b), (node.b, node.a)):
        match scaled:
            case Binary("mul", inner, Const() as c) if (
                inner is x and (slope := scalar(c)) is not None and 0 <= slope <= 1
            ):
                return Unary("leaky_relu", x, (slope,), origin=origins(scaled, node))
    return None


def interval(node: Node) -> tuple[float, float] | None:
    """The bounds that a node holds its argument to."""
    match node:
        case Unary("clip", _, (low, high)):
            return low, high
        case Unary("relu"):
            return 0.0, math.inf
    return None


def merge_clips(node: Node, uses: Uses) -> Node | None:
    """clip(clip(x)) -> clip(x); clip(x, 0, inf) -> relu(x); clip(x, -inf, inf) -> x"""
    if not isinstance(node, Unary) or (bounds := interval(node)) is None:
        return None
    low, high = bounds
    if bounds == (-math.inf, math.inf):
        return node.x
    if bounds == (0.0, math.inf) and node.fn == "clip":
        return Unary("relu", node.x, origin=node.origin)
    inner = interval(node.x)
    if inner is None or inner[0] > inner[1] or low > high:
        return None
    assert isinstance(node.x, Unary)
    both = tuple(min(max(v, low), high) for v in inner)
    return Unary("clip", node.x.x, both, origin=origins(node.x, node))


def simplify_unary(node: Node, uses: Uses) -> Node | None:
    """f(f(x)) -> f(x) where that holds, and functions whose parameter makes them another."""
    match node:
        case Unary(fn, Unary(inner)) if fn == inner and fn in IDEMPOTENT:
            return node.x
        case Unary("neg", Unary("neg", x)) | Unary("not", Unary("not", x)):
            return x
        case Unary("leaky_relu", x, (1.0,)):
            return x
        case Unary("leaky_relu", x, (0.0,)) | Unary("thresholded_relu", x, (0.0,)):
            return Unary("relu", x, origin=node.origin)
        case Unary("floor" | "ceil" | "round", x) if x.dtype not in FLOATS:
            return x
    return None


def known_where(node: Node, uses: Uses) -> Node | None:
    """where(true, a, b) -> a, where(false, a, b) -> b"""
    match node:
        case Where(Const(cond), a, b) if cond.size and (cond.all() or not cond.any()):
            chosen = a if cond.all() else b
            return chosen if chosen.shape == node.shape else None
    return None
