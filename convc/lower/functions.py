"""The functions of Unary and Binary as expressions, by name: the counterpart of convc/ir/functions.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx
from tvm.tirx import Expr

from convc.lower import vector_math as vm
from convc.lower.vector_math import at_least, at_most, dtype_of, let, literal, unless_nan


@dataclass(frozen=True)
class Library:
    """The transcendental functions of one dtype."""

    exp: Callable[[Expr], Expr]
    expm1: Callable[[Expr], Expr]
    log: Callable[[Expr], Expr]
    softplus: Callable[[Expr], Expr]
    sigmoid: Callable[[Expr], Expr]
    tanh: Callable[[Expr], Expr]
    erf: Callable[[Expr], Expr]
    sin: Callable[[Expr], Expr]
    cos: Callable[[Expr], Expr]
    tan: Callable[[Expr], Expr]
    pow: Callable[[Expr, Expr], Expr]


def _wide_softplus(x: Expr) -> Expr:
    return let(x, lambda x: at_least(x, 0.0) + tirx.log1p(tirx.exp(literal(0, "float64") - tirx.abs(x))))


def _wide_sigmoid(x: Expr) -> Expr:
    return literal(1, "float64") / (literal(1, "float64") + tirx.exp(literal(0, "float64") - x))


def _wide_tanh(x: Expr) -> Expr:
    """TVM's own is inf/inf beyond 355; tanh is 1 to the last bit from 20 on."""
    return tirx.tanh(at_most(at_least(x, -20.0), 20.0))


LIBRARIES = {
    "float32": Library(
        vm.exp, vm.expm1, vm.log, vm.log1p_exp, vm.sigmoid, vm.tanh, vm.erf, vm.sin, vm.cos, vm.tan, vm.pow
    ),
    "float64": Library(
        tirx.exp, lambda x: tirx.exp(x) - literal(1, "float64"), tirx.log, _wide_softplus, _wide_sigmoid, _wide_tanh,
        tirx.erf, tirx.sin, tirx.cos, tirx.tan, tirx.pow,
    ),
}  # fmt: skip


def _library(x: Expr) -> Library:
    return LIBRARIES[dtype_of(x)]


def _like(value: float, x: Expr) -> Expr:
    return literal(value, dtype_of(x))


def is_integer(dtype: str) -> bool:
    return dtype.startswith(("int", "uint"))


def relu(x: Expr) -> Expr:
    return at_least(x, 0) if not dtype_of(x).startswith("uint") else x


def clip(x: Expr, low: float, high: float) -> Expr:
    if is_integer(dtype_of(x)):
        span = np.iinfo(dtype_of(x))
        low = int(span.min) if low < span.min else int(span.max) if low > span.max else math.ceil(low)
        high = int(span.max) if high > span.max else int(span.min) if high < span.min else math.floor(high)
        # A bound that binds nothing goes: TVM's simplifier fails on an unsigned number below 0.
        low, high = -math.inf if low == span.min else low, math.inf if high == span.max else high
    above = x if low == -math.inf else at_least(x, low)
    return above if high == math.inf else at_most(above, high)


def hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    return clip(x * _like(alpha, x) + _like(beta, x), 0, 1)


def gelu(x: Expr) -> Expr:
    return let(x, lambda x: _like(0.5, x) * x * (_library(x).erf(x * _like(math.sqrt(0.5), x)) + _like(1, x)))


def gelu_tanh(x: Expr) -> Expr:
    def formula(x: Expr) -> Expr:
        inner = (x + _like(0.044715, x) * x * x * x) * _like(math.sqrt(2 / math.pi), x)
        return _like(0.5, x) * x * (_library(x).tanh(inner) + _like(1, x))

    return let(x, formula)


def swish(x: Expr, alpha: float) -> Expr:
    return let(x, lambda x: x * _library(x).sigmoid(x * _like(alpha, x)))


def mish(x: Expr) -> Expr:
    """x * tanh(log(1 + e)) = x * (e^2 + 2e) / (e^2 + 2e + 2) with e = exp(x); from 40 on the quotient is 1."""

    def quotient(e: Expr) -> Expr:
        return let(e * (e + _like(2, e)), lambda p: p / (p + _like(2, e)))

    return let(x, lambda x: x * let(_library(x).exp(at_most(x, 40.0)), quotient))


def elu(x: Expr, alpha: float, *, gamma: float = 1.0, slope: float = 1.0) -> Expr:
    """gamma * (x, or below 0 alpha * (exp(slope * x) - 1))."""

    def formula(x: Expr) -> Expr:
        below = _library(x).expm1(at_most(x * _like(slope, x), 0.0)) * _like(alpha * gamma, x)
        return tirx.Select(x < _like(0, x), below, x * _like(gamma, x))

    return let(x, formula)


def softsign(x: Expr) -> Expr:
    return let(x, lambda x: tirx.Div(x, tirx.abs(x) + _like(1, x)))


def sign(x: Expr) -> Expr:
    zero, one = _literals(x)
    below = x if dtype_of(x).startswith("uint") else tirx.Select(x < zero, zero - one, x)
    return tirx.Select(x > zero, one, below)


def _literals(x: Expr) -> tuple[Expr, Expr]:
    return _like(0, x), _like(1, x)


def _libm(name: str) -> Callable[[Expr], Expr]:
    """A call of libm in float64, for what no network's hot path holds."""
    return lambda x: tirx.Cast(dtype_of(x), tirx.call_pure_extern("float64", name, tirx.Cast("float64", x)))


UNARY: dict[str, Callable[..., Expr]] = {
    "relu": relu,
    "leaky_relu": lambda x, alpha: let(x, lambda x: tirx.Select(x < _like(0, x), x * _like(alpha, x), x)),
    "clip": clip,
    "sigmoid": lambda x: _library(x).sigmoid(x),
    "hard_sigmoid": hard_sigmoid,
    "hard_swish": lambda x: let(x, lambda x: x * hard_sigmoid(x, 1 / 6, 0.5)),
    "swish": swish,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "tanh": lambda x: _library(x).tanh(x),
    "softplus": lambda x: _library(x).softplus(x),
    "softsign": softsign,
    "mish": mish,
    "elu": elu,
    "selu": lambda x, alpha, gamma: elu(x, alpha, gamma=gamma),
    "celu": lambda x, alpha: elu(x, alpha, slope=1 / alpha),
    "thresholded_relu": lambda x, alpha: let(x, lambda x: tirx.Select(x > _like(alpha, x), x, _like(0, x))),
    "exp": lambda x: _library(x).exp(x),
    "log": lambda x: _library(x).log(x),
    "sqrt": tirx.sqrt,
    "reciprocal": lambda x: tirx.Div(_like(1, x), x),
    "neg": lambda x: _like(0, x) - x if is_integer(dtype_of(x)) else x * _like(-1, x),
    "abs": lambda x: x if dtype_of(x).startswith("uint") else tirx.abs(x),
    "floor": tirx.floor,
    "ceil": tirx.ceil,
    "round": vm.nearest,
    "sign": lambda x: let(x, sign),
    "erf": lambda x: _library(x).erf(x),
    "sin": lambda x: _library(x).sin(x),
    "cos": lambda x: _library(x).cos(x),
    "tan": lambda x: _library(x).tan(x),
    "asin": _libm("asin"),
    "acos": _libm("acos"),
    "atan": _libm("atan"),
    "sinh": _libm("sinh"),
    "cosh": _libm("cosh"),
    "asinh": _libm("asinh"),
    "acosh": _libm("acosh"),
    "atanh": _libm("atanh"),
    "not": tirx.Not,
    "isnan": vm.is_nan,
}


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger; NaN where either is NaN."""
    return _extremum(a, b, tirx.GT)


def minimum(a: Expr, b: Expr) -> Expr:
    return _extremum(a, b, tirx.LT)


def _extremum(a: Expr, b: Expr, wins: Callable[[Expr, Expr], Expr]) -> Expr:
    """select(a wins, a, b) is one instruction and passes on a NaN in b; only one in a takes two more."""
    if isinstance(a, tirx.FloatImm) and not math.isnan(a.value):
        return let(b, lambda b: tirx.Select(wins(a, b), a, b))
    if isinstance(b, tirx.FloatImm) and not math.isnan(b.value):
        return let(a, lambda a: tirx.Select(wins(b, a), b, a))

    def choose(a: Expr, b: Expr) -> Expr:
        picked = tirx.Select(wins(a, b), a, b)
        return picked if is_integer(dtype_of(a)) else unless_nan(a, picked)

    return let(a, lambda a: let(b, lambda b: choose(a, b)))


def divide(a: Expr, b: Expr) -> Expr:
    """Integers: toward zero, and 0 where b is 0. The processor traps on x / 0 and on the least integer / -1."""
    if not is_integer(dtype_of(a)):
        return tirx.Div(a, b)
    return let(a, lambda a: let(b, lambda b: _guarded(a, b, tirx.truncdiv, by_minus_one=lambda a: _like(0, a) - a)))


def _guarded(a: Expr, b: Expr, divide: Callable[[Expr, Expr], Expr], *, by_minus_one: Callable[[Expr], Expr]) -> Expr:
    zero, one = _literals(b)
    unsigned = dtype_of(b).startswith("uint")
    bad = tirx.EQ(b, zero) if unsigned else tirx.any(tirx.EQ(b, zero), tirx.EQ(b, zero - one))
    safe = let(tirx.Select(bad, one, b), lambda s: divide(a, s))
    value = safe if unsigned else tirx.Select(tirx.EQ(b, zero - one), by_minus_one(a), safe)
    return tirx.Select(tirx.EQ(b, zero), zero, value)


def exclusive_or(a: Expr, b: Expr) -> Expr:
    """Without a comparison of truth values, for which TVM's LLVM back end emits one of floats."""
    return tirx.Or(tirx.And(a, tirx.Not(b)), tirx.And(tirx.Not(a), b))


def modulo(a: Expr, b: Expr) -> Expr:
    """The remainder with the sign of b; integers: 0 where b is 0."""

    def adjust(r: Expr, b: Expr) -> Expr:
        zero = _like(0, b)
        differ = exclusive_or(r < zero, b < zero)
        return tirx.Select(tirx.all(tirx.NE(r, zero), differ), r + b, r)

    if dtype_of(b).startswith("uint"):
        return remainder(a, b)
    return let(b, lambda b: let(remainder(a, b), lambda r: adjust(r, b)))


def remainder(a: Expr, b: Expr) -> Expr:
    """The remainder with the sign of a; integers: 0 where b is 0."""
    if not is_integer(dtype_of(a)):
        wide = tirx.call_pure_extern("float64", "fmod", tirx.Cast("float64", a), tirx.Cast("float64", b))
        return tirx.Cast(dtype_of(a), wide)
    return let(a, lambda a: let(b, lambda b: _guarded(a, b, tirx.truncmod, by_minus_one=lambda a: _like(0, a))))


def power(a: Expr, b: Expr) -> Expr:
    if isinstance(b, tirx.FloatImm | tirx.IntImm) and b.value in (1, 2, 3, 4):
        return let(a, lambda a: math.prod([a] * (int(b.value) - 1), start=a))
    if isinstance(b, tirx.FloatImm) and b.value == 0.5:
        # sqrt keeps the sign of -0 and makes NaN of -inf, pow does neither.
        return let(a, lambda a: tirx.Select(tirx.EQ(a, _like(-math.inf, a)), _like(math.inf, a), tirx.sqrt(a)))
    if not is_integer(dtype_of(a)):
        return _library(a).pow(a, b)
    return let(a, lambda a: let(b, lambda b: _integer_power(a, b)))


def _integer_power(a: Expr, b: Expr) -> Expr:
    """By squaring over the bits of the exponent, modulo 2^bits. A negative exponent leaves 1 of 1, +-1 of -1, else 0.

    Six bits are enough: from 64 on only 0, 1 and -1 have a power that an integer holds, and there parity decides.
    """
    zero, one = _literals(a)
    count = 6

    def bit(square: Expr, total: Expr, place: int) -> Expr:
        odd = tirx.bitwise_and(tirx.shift_right(small, _like(place, b)), _like(1, b))
        product = tirx.Select(tirx.EQ(odd, one), total * square, total)
        if place + 1 == count:
            return product
        return let(product, lambda total: let(square * square, lambda s: bit(s, total, place + 1)))

    parity = tirx.bitwise_or(tirx.bitwise_and(b, _like(1, b)), _like(2, b))
    small = tirx.Select(tirx.LT(b, _like(64, b)), b, parity)
    positive = bit(a, one, 0)
    if dtype_of(a).startswith("uint"):
        return positive
    odd = tirx.EQ(tirx.bitwise_and(b, one), one)
    of_minus_one = tirx.Select(tirx.EQ(a, zero - one), tirx.Select(odd, zero - one, one), zero)
    return tirx.Select(b < zero, tirx.Select(tirx.EQ(a, one), one, of_minus_one), positive)


def _known(x: Expr) -> bool | None:
    return bool(x.value) if isinstance(x, tirx.IntImm) else None


def both(a: Expr, b: Expr) -> Expr:
    """And, decided here where one is known: TVM fails on constant truth values in vectors."""
    if _known(a) is None and _known(b) is None:
        return tirx.And(a, b)
    known, other = (a, b) if _known(a) is not None else (b, a)
    return other if _known(known) else known


def either(a: Expr, b: Expr) -> Expr:
    if _known(a) is None and _known(b) is None:
        return tirx.Or(a, b)
    known, other = (a, b) if _known(a) is not None else (b, a)
    return known if _known(known) else other


def negated(a: Expr) -> Expr:
    return tirx.Not(a) if _known(a) is None else tirx.const(not _known(a), "bool")


def select(condition: Expr, a: Expr, b: Expr) -> Expr:
    """a where the condition holds, else b; truth values by their own algebra."""
    if dtype_of(a) != "bool":
        return tirx.Select(condition, a, b)
    return let(condition, lambda c: either(both(c, a), both(negated(c), b)))


def equal(a: Expr, b: Expr) -> Expr:
    return tirx.EQ(a, b) if dtype_of(a) != "bool" else let(b, lambda b: select(a, b, negated(b)))


def prelu(a: Expr, b: Expr) -> Expr:
    return a if dtype_of(a).startswith("uint") else let(a, lambda a: tirx.Select(a < _like(0, a), a * b, a))


BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": divide,
    "pow": power,
    "min": minimum,
    "max": maximum,
    "prelu": prelu,
    "mod": modulo,
    "fmod": remainder,
    "equal": lambda a, b: equal(a, b),
    "less": tirx.LT,
    "less_equal": tirx.LE,
    "greater": tirx.GT,
    "greater_equal": tirx.GE,
    "and": lambda a, b: both(a, b),
    "or": lambda a, b: either(a, b),
    "xor": exclusive_or,
}
