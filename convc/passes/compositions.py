"""Functions that exporters write out (gelu, swish, mish, ...) get their names back.

Both what is written and what a name stands for are brought to a normal form: a polynomial in one value x and in
elementary functions of such polynomials. Where the forms agree, so do the functions, however the formula was spelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convc.ir import Binary, Const, Input, Node, TensorType, Unary
from convc.passes.constants import is_float, scalar
from convc.passes.rewrite import Uses, origins

# Elementary functions of one value that a polynomial may contain.
ATOMS = frozenset({"erf", "tanh", "sigmoid", "clip", "relu", "hard_sigmoid", "exp", "log", "softplus", "reciprocal"})
MOST_NODES, MOST_TERMS, MOST_POWER = 16, 12, 4
# Exporters print the constants of a formula with 6 digits or more.
TOLERANCE = 2e-6


@dataclass(frozen=True)
class Atom:
    """fn(of, *params), where `of` is a polynomial."""

    fn: str
    params: tuple[float, ...]
    of: Polynomial


@dataclass(frozen=True)
class Polynomial:
    """The sum of coefficient * x ** power * product of atoms. Terms come in the order of their products' text."""

    terms: tuple[tuple[float, int, tuple[Atom, ...]], ...]


X = Polynomial(((1.0, 1, ()),))


def constant(number: float) -> Polynomial:
    return collect([(number, 0, ())])


def collect(terms: list[tuple[float, int, tuple[Atom, ...]]]) -> Polynomial:
    """Equal products added up, zeros left out."""
    found: list[tuple[float, int, tuple[Atom, ...]]] = []
    for coefficient, power, atoms in terms:
        ordered = tuple(sorted(atoms, key=_shape))
        for i, (other, p, a) in enumerate(found):
            if p == power and _same_atoms(a, ordered):
                found[i] = (other + coefficient, p, a)
                break
        else:
            found.append((coefficient, power, ordered))
    return Polynomial(tuple(sorted((t for t in found if t[0] != 0), key=lambda t: (t[1], [_shape(a) for a in t[2]]))))


def _shape(atom: Atom) -> tuple[object, ...]:
    """What orders atoms: everything about them but the rounding of their coefficients."""
    return atom.fn, tuple((power, tuple(map(_shape, atoms))) for _, power, atoms in atom.of.terms)


def add(a: Polynomial, b: Polynomial) -> Polynomial:
    return collect([*a.terms, *b.terms])


def mul(a: Polynomial, b: Polynomial) -> Polynomial:
    return collect([(c * d, p + q, s + t) for c, p, s in a.terms for d, q, t in b.terms])


def same(a: Polynomial, b: Polynomial) -> bool:
    """Equal but for the rounding of coefficients."""
    return len(a.terms) == len(b.terms) and all(
        _close(c, d) and p == q and _same_atoms(s, t) for (c, p, s), (d, q, t) in zip(a.terms, b.terms, strict=True)
    )


def _same_atoms(a: tuple[Atom, ...], b: tuple[Atom, ...]) -> bool:
    return len(a) == len(b) and all(
        s.fn == t.fn and len(s.params) == len(t.params) and all(map(_close, s.params, t.params)) and same(s.of, t.of)
        for s, t in zip(a, b, strict=True)
    )


def _close(a: float, b: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=TOLERANCE)


def polynomial(node: Node, x: Node) -> Polynomial | None:
    """`node` as a polynomial in x; None where it is not one, or is a long one."""
    found: dict[Node, Polynomial] = {x: X}
    stack = [node]
    while stack:
        at = stack[-1]
        missing = [a for a in at.args if a not in found and scalar(a) is None]
        if at in found:
            stack.pop()
        elif not isinstance(at, Binary | Unary) or len(found) + len(stack) > MOST_NODES:
            return None
        elif missing:
            stack.extend(missing)
        else:
            made = _combined(at, [found[a] if a in found else constant(scalar(a) or 0.0) for a in at.args])
            if made is None or len(made.terms) > MOST_TERMS or any(t[1] > MOST_POWER for t in made.terms):
                return None
            found[at] = made
    return found[node]


def _combined(node: Node, args: list[Polynomial]) -> Polynomial | None:
    match node:
        case Unary("neg"):
            return mul(args[0], constant(-1.0))
        case Unary(fn, _, params) if fn in ATOMS:
            return elementary(fn, params, args[0])
        case Binary("add"):
            return add(*args)
        case Binary("sub"):
            return add(args[0], mul(args[1], constant(-1.0)))
        case Binary("mul"):
            return mul(*args)
        case Binary("div"):
            return _quotient(*args)
        case Binary("pow", _, Const() as exponent) if scalar(exponent) in (2, 3):
            square = mul(args[0], args[0])
            return square if scalar(exponent) == 2 else mul(square, args[0])
    return None


def _quotient(a: Polynomial, b: Polynomial) -> Polynomial | None:
    number = as_number(b)
    if number is None:
        return mul(a, elementary("reciprocal", (), b))
    return mul(a, constant(1 / number)) if number else None


def as_number(p: Polynomial) -> float | None:
    """The number that a polynomial without x is."""
    if not p.terms:
        return 0.0
    coefficient, power, atoms = p.terms[0]
    return coefficient if len(p.terms) == 1 and power == 0 and not atoms else None


def elementary(fn: str, params: tuple[float, ...], of: Polynomial) -> Polynomial:
    """fn(of), with the functions that are others in disguise written as those."""
    if fn == "hard_sigmoid":
        alpha, beta = params
        return elementary("clip", (0.0, 1.0), add(mul(of, constant(alpha)), constant(beta)))
    if fn == "clip" and math.isfinite(params[1]) and params[0] == 0 and params[1] > 0:
        scaled = Atom("clip", (0.0, 1.0), mul(of, constant(1 / params[1])))
        return Polynomial(((params[1], 0, (scaled,)),))
    if fn == "reciprocal" and (logistic := _one_plus_exp(of)):
        return elementary("sigmoid", (), mul(logistic, constant(-1.0)))
    if fn == "log" and (logistic := _one_plus_exp(of)):
        return elementary("softplus", (), logistic)
    return Polynomial(((1.0, 0, (Atom(fn, params, of),)),))


def _one_plus_exp(p: Polynomial) -> Polynomial | None:
    """u of 1 + exp(u)"""
    match p.terms:
        case ((1.0, 0, ()), (1.0, 0, (Atom("exp", (), u),))) | ((1.0, 0, (Atom("exp", (), u),)), (1.0, 0, ())):
            return u
    return None


def _formulas() -> tuple[tuple[str, Polynomial], ...]:
    """What each name stands for, as polynomials."""
    x = Input("x", TensorType(()))

    def number(value: float) -> Node:
        return Const(np.array(value))

    def f(fn: str, a: Node, b: Node | float) -> Node:
        return Binary(fn, a, number(b) if isinstance(b, float) else b)

    cube = f("add", x, f("mul", f("pow", x, 3.0), 0.044715))
    written: dict[str, Node] = {
        "gelu": f("mul", f("mul", x, 0.5), f("add", Unary("erf", f("mul", x, math.sqrt(0.5))), 1.0)),
        "gelu_tanh": f("mul", f("mul", x, 0.5), f("add", Unary("tanh", f("mul", cube, math.sqrt(2 / math.pi))), 1.0)),
        "hard_swish": f("mul", x, Unary("hard_sigmoid", x, (1 / 6, 0.5))),
        "mish": f("mul", x, Unary("tanh", Unary("softplus", x))),
        "sigmoid": Unary("sigmoid", x),
        "softplus": Unary("softplus", x),
    }
    return tuple((name, p) for name, node in written.items() if (p := polynomial(node, x)) is not None)


FORMULAS = _formulas()
ROOTS: dict[type[Node], Callable[[Node], bool]] = {
    Binary: lambda node: isinstance(node, Binary) and node.fn in ("mul", "div"),
    Unary: lambda node: isinstance(node, Unary) and node.fn in ("log", "reciprocal"),
}


def name_composition(node: Node, uses: Uses) -> Node | None:
    """x * 0.5 * (1 + erf(x / sqrt(2)))  ->  gelu(x), and so on for every name, of the earliest x for which it holds"""
    if not ROOTS[type(node)](node) or not is_float(node):
        return None
    inside = cone(node)
    if not any(isinstance(n, Unary) and n.fn in ATOMS for n in inside):
        return None
    for x in reversed(inside[1:]):
        if x.shape == node.shape and not isinstance(x, Const) and (p := polynomial(node, x)):
            between = [n for n in reversed(inside) if n is not x and polynomial(n, x) is not None]
            if named := named_function(p, x, origins(*between)):
                return named
    return None


def cone(node: Node) -> list[Node]:
    """The node, then elementwise nodes that it is made of and what these read, nearest first, up to a limit."""
    found = [node]
    for at in found:
        if isinstance(at, Binary | Unary) and len(found) < MOST_NODES:
            found.extend(a for a in dict.fromkeys(at.args) if a not in found)
    return found


def named_function(p: Polynomial, x: Node, origin: tuple[str, ...]) -> Node | None:
    """The function of x that p is."""
    for name, formula in FORMULAS:
        if same(p, formula):
            return Unary(name, x, origin=origin)
    match p.terms:
        case ((one, 1, (Atom("sigmoid", (), Polynomial(((alpha, 1, ()),))),)),) if _close(one, 1):
            return Unary("swish", x, (alpha,), origin=origin)
        case ((one, 0, (Atom("sigmoid", (), Polynomial(((-1.0, 1, ()),))),)),) if _close(one, 1):
            return Unary("sigmoid", Unary("neg", x, origin=origin), origin=origin)
        case ((one, 0, (Atom("clip", (0.0, 1.0), Polynomial(((alpha, 1, ()),))),)),) if _close(one, 1):
            return Unary("hard_sigmoid", x, (alpha, 0.0), origin=origin)
        case ((one, 0, (Atom("clip", (0.0, 1.0), Polynomial(((beta, 0, ()), (alpha, 1, ())))),)),) if _close(one, 1):
            return Unary("hard_sigmoid", x, (alpha, beta), origin=origin)
    return None
