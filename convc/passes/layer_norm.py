"""A normalisation written out as means, differences and a root becomes one node."""

from __future__ import annotations

from convc.ir import Binary, Const, Node, Normalize, Reduce, Unary
from convc.passes.constants import scalar
from convc.passes.rewrite import Uses, origins


def name_normalization(node: Node, uses: Uses) -> Node | None:
    """(x - mean(x)) / sqrt(variance(x) + epsilon)  ->  normalize(x)"""
    match node:
        case Binary("div", Binary("sub") as centred, root):
            return _normalized(node, centred, squared_root(root))
        case Binary("mul", Binary("sub") as centred, root) | Binary("mul", root, Binary("sub") as centred):
            return _normalized(node, centred, squared_root(inverse(root)))
    return None


def inverse(node: Node | None) -> Node | None:
    """r of 1/r"""
    match node:
        case Unary("reciprocal", r):
            return r
        case Binary("div", Const() as one, r) if scalar(one) == 1:
            return r
        case Binary("pow", a, Const() as exponent) if scalar(exponent) == -0.5:
            return Unary("sqrt", a)
    return None


def squared_root(node: Node | None) -> Node | None:
    """a of sqrt(a)"""
    match node:
        case Unary("sqrt", a):
            return a
        case Binary("pow", a, Const() as exponent) if scalar(exponent) == 0.5:
            return a
    return None


def _normalized(node: Binary, centred: Binary, radicand: Node | None) -> Node | None:
    axes = centred_over(centred)
    match radicand:
        case Binary("add", variance, Const() as c) if axes and (epsilon := scalar(c)) is not None and epsilon >= 0:
            x = centred.a
            if is_variance(variance, x, axes):
                return Normalize(x, axes, epsilon, origin=origins(centred, variance, radicand, node))
    return None


def centred_over(node: Node) -> tuple[int, ...] | None:
    """The axes of x - mean(x)."""
    match node:
        case Binary("sub", x, Reduce("mean", y, axes, True)) if x is y and axes:
            return axes
    return None


def is_variance(node: Node, x: Node, axes: tuple[int, ...]) -> bool:
    """mean((x - mean(x)) ** 2), or mean(x ** 2) - mean(x) ** 2"""
    match node:
        case Reduce("mean", squares, over, True) if over == axes:
            centred = root_of_square(squares)
            return centred is not None and centred_over(centred) == axes and centred.args[0] is x
        case Binary("sub", Reduce("mean", squares, over, True), square) if over == axes:
            mean = root_of_square(square)
            match mean:
                case Reduce("mean", y, also_over, True):
                    return y is x and also_over == axes and root_of_square(squares) is x
    return False


def root_of_square(node: Node) -> Node | None:
    """c of c * c or c ** 2"""
    match node:
        case Binary("mul", a, b) if a is b:
            return a
        case Binary("pow", a, Const() as two) if scalar(two) == 2:
            return a
    return None
