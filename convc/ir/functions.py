"""The functions of Unary and Binary in numpy, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from convc.ir.node import Array

_ERF = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    found: Array = np.asarray(_ERF(x)).astype(x.dtype)
    return found


def sigmoid(x: Array) -> Array:
    found: Array = np.exp(-np.logaddexp(0, -x))
    return found


def softplus(x: Array) -> Array:
    found: Array = np.logaddexp(0, x)
    return found


def hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    return np.clip(x * alpha + beta, 0, 1)


def clip(x: Array, low: float, high: float) -> Array:
    """Where low exceeds high the result is high. Integers are held to the integers between low and high."""
    if x.dtype.kind in "iu":
        span = np.iinfo(x.dtype)
        low = int(span.min) if low < span.min else int(span.max) if low > span.max else math.ceil(low)
        high = int(span.max) if high > span.max else int(span.min) if high < span.min else math.floor(high)
    found: Array = np.minimum(np.maximum(x, low), high)
    return found


def gelu(x: Array) -> Array:
    found: Array = 0.5 * x * (1 + erf(x * math.sqrt(0.5)))
    return found


def gelu_tanh(x: Array) -> Array:
    found: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return found


def elu(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(x), x)


def selu(x: Array, alpha: float, gamma: float) -> Array:
    return gamma * elu(x, alpha)


def celu(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(x / alpha), x)


def divide(a: Array, b: Array) -> Array:
    """Integers: toward zero, and 0 where b is 0."""
    if a.dtype.kind not in "iu":
        return np.asarray(np.true_divide(a, b))
    quotient = np.floor_divide(a, b)
    inexact = (np.remainder(a, b) != 0) & ((a < 0) != (b < 0))
    return np.asarray(quotient + inexact.astype(a.dtype))


def power(a: Array, b: Array) -> Array:
    """Integers: a negative exponent leaves 1 of 1, +-1 of -1 and 0 of the rest."""
    found: Array
    if a.dtype.kind != "i" or not np.any(b < 0):
        found = np.power(a, b)
        return found
    inverse = np.where(np.abs(a) == 1, np.power(a, np.abs(b)), 0)
    found = np.where(b < 0, inverse, np.power(a, np.abs(b)))
    return found


def fmod(a: Array, b: Array) -> Array:
    found: Array = np.fmod(a, b)
    return found


# Name: (function, how many parameters it takes).
UNARY: dict[str, tuple[Callable[..., Array], int]] = {
    "relu": (lambda x: np.maximum(x, 0), 0),
    "leaky_relu": (lambda x, alpha: np.where(x < 0, x * alpha, x), 1),
    "clip": (clip, 2),
    "sigmoid": (sigmoid, 0),
    "hard_sigmoid": (hard_sigmoid, 2),
    "hard_swish": (lambda x: x * hard_sigmoid(x, 1 / 6, 0.5), 0),
    "swish": (lambda x, alpha: x * sigmoid(x * alpha), 1),
    "gelu": (gelu, 0),
    "gelu_tanh": (gelu_tanh, 0),
    "tanh": (np.tanh, 0),
    "softplus": (softplus, 0),
    "softsign": (lambda x: x / (1 + np.abs(x)), 0),
    "mish": (lambda x: x * np.tanh(softplus(x)), 0),
    "elu": (elu, 1),
    "selu": (selu, 2),
    "celu": (celu, 1),
    "thresholded_relu": (lambda x, alpha: np.where(x > alpha, x, np.zeros_like(x)), 1),
    "exp": (np.exp, 0),
    "log": (np.log, 0),
    "sqrt": (np.sqrt, 0),
    "reciprocal": (np.reciprocal, 0),
    "neg": (np.negative, 0),
    "abs": (np.abs, 0),
    "floor": (np.floor, 0),
    "ceil": (np.ceil, 0),
    "round": (np.rint, 0),
    "sign": (np.sign, 0),
    "erf": (erf, 0),
    "sin": (np.sin, 0),
    "cos": (np.cos, 0),
    "tan": (np.tan, 0),
    "asin": (np.arcsin, 0),
    "acos": (np.arccos, 0),
    "atan": (np.arctan, 0),
    "sinh": (np.sinh, 0),
    "cosh": (np.cosh, 0),
    "asinh": (np.arcsinh, 0),
    "acosh": (np.arccosh, 0),
    "atanh": (np.arctanh, 0),
    "not": (np.logical_not, 0),
    "isnan": (np.isnan, 0),
}
UNARY_ON_INTEGERS = frozenset({"relu", "clip", "neg", "abs", "sign"})

BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": divide,
    "pow": power,
    "min": np.minimum,
    "max": np.maximum,
    "prelu": lambda a, b: np.where(a < 0, a * b, a),
    "mod": np.mod,
    "fmod": fmod,
    "equal": np.equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}
COMPARISONS = frozenset({"equal", "less", "less_equal", "greater", "greater_equal"})
LOGICAL = frozenset({"and", "or", "xor"})
