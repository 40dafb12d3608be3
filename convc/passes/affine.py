"""Chains of multiplications and additions by constants: x * scale + shift, and how to write it in the fewest nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convc.ir import Array, Binary, Cast, Const, Node, Unary
from convc.ir.check import INTEGERS
from convc.passes.constants import is_float, rounded, scalar
from convc.passes.rewrite import Uses, origins

CHAIN_LIMIT = 8


@dataclass(frozen=True)
class Affine:
    """x * scale + shift, both float64 and broadcasting into x's shape; `nodes` compute it now, the last one first."""

    x: Node
    scale: Array
    shift: Array
    nodes: tuple[Node, ...]

    @property
    def scales(self) -> bool:
        return bool(np.any(self.scale != 1))

    @property
    def shifts(self) -> bool:
        return bool(np.any(self.shift != 0))

    def after(self, inner: Affine) -> Affine | None:
        """This applied to `inner`; None where the constants would grow."""
        shift = inner.shift * self.scale + self.shift
        parts = (self.scale, self.shift, inner.scale, inner.shift)
        if shift.size > max(p.size for p in parts):
            return None
        return Affine(inner.x, self.scale * inner.scale, shift, self.nodes + inner.nodes)


ONE, ZERO = np.ones(()), np.zeros(())
# Function of x and a constant v: scale and shift. The second table has the constant first.
WITH_CONSTANT: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "mul": lambda v: (v, ZERO),
    "add": lambda v: (ONE, v),
    "sub": lambda v: (ONE, -v),
    "div": lambda v: (1 / v, ZERO),
}
CONSTANT_FIRST: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "mul": WITH_CONSTANT["mul"],
    "add": WITH_CONSTANT["add"],
    "sub": lambda v: (-ONE, v),
}


def affine_step(node: Node) -> Affine | None:
    """One node as an affine map of its argument; not where the argument is broadcast or a number is not finite."""
    if not is_float(node):
        return None
    match node:
        case Binary(fn, x, Const(v)) if fn in WITH_CONSTANT and x.shape == node.shape:
            found = _step(node, x, v, WITH_CONSTANT[fn])
        case Binary(fn, Const(v), x) if fn in CONSTANT_FIRST and x.shape == node.shape:
            found = _step(node, x, v, CONSTANT_FIRST[fn])
        case Unary("neg", x):
            found = Affine(x, -ONE, ZERO, (node,))
        case _:
            return None
    return None if found is None or is_dequantized(found) else found


def _step(node: Node, x: Node, v: Array, split: Callable[[Array], tuple[Array, Array]]) -> Affine | None:
    with np.errstate(all="ignore"):
        scale, shift = split(v.astype(np.float64))
    finite = all(part is ONE or part is ZERO or np.isfinite(part).all() for part in (scale, shift))
    return Affine(x, scale, shift, (node,)) if finite else None


def is_dequantized(step: Affine) -> bool:
    """A number times integers on their way to floats: passes on integers look for it as it stands."""
    return isinstance(step.x, Cast) and step.x.x.dtype in INTEGERS and step.scale.size == step.shift.size == 1


def is_quotient(node: Node) -> bool:
    """x / c, which quantization rounds to an integer, so that x * (1/c) would not do."""
    match node:
        case Binary("div", _, Const() as c) if number := scalar(c):
            return math.frexp(number)[0] != 0.5
    return False


def affine_chain(node: Node, uses: Uses) -> Affine | None:
    """`node` and what feeds it, as far as it is affine and read by nobody else."""
    chain = affine_step(node)
    while chain and len(chain.nodes) < CHAIN_LIMIT and uses.sole(chain.x) and (inner := affine_step(chain.x)):
        longer = chain.after(inner)
        if longer is None:
            break
        chain = longer
    return chain


def merge_affine(node: Node, uses: Uses) -> Node | None:
    """((x * a) + b) * c ...  ->  x * (a*c) + b*c: at most one multiplication, then at most one addition."""
    chain = affine_chain(node, uses)
    if chain is None or len(chain.nodes) < 2 or is_quotient(node):
        return None
    wanted = chain.scales + chain.shifts
    in_order = isinstance(node, Binary) and node.fn == "add"
    if len(chain.nodes) == wanted == 2 and in_order and is_mul(chain.nodes[1]):
        return None
    return written(chain)


def is_mul(node: Node) -> bool:
    return isinstance(node, Binary) and node.fn == "mul"


def written(chain: Affine) -> Node | None:
    """The chain as a multiplication and an addition, each only where it does something."""
    y, origin, dtype = chain.x, origins(*reversed(chain.nodes)), chain.nodes[0].dtype
    for fn, value, needed in (("mul", chain.scale, chain.scales), ("add", chain.shift, chain.shifts)):
        if needed:
            constant = rounded(value, dtype)
            if constant is None:
                return None
            y = Binary(fn, y, constant, origin=origin)
    return y
