"""Is every elementwise function what ONNX and Python say it is?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from onnx_reference import const, integers, onnx_value, value

from convc.ir import (
    Binary,
    Const,
    Unary,
)
from convc.ir.functions import BINARY, COMPARISONS, LOGICAL, UNARY

ONNX_UNARY: dict[str, tuple[str, dict[str, float]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.3}),
    "sigmoid": ("Sigmoid", {}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 0.25, "beta": 0.4}),
    "hard_swish": ("HardSwish", {}),
    "tanh": ("Tanh", {}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "mish": ("Mish", {}),
    "elu": ("Elu", {"alpha": 0.7}),
    "selu": ("Selu", {"alpha": 1.5, "gamma": 1.1}),
    "celu": ("Celu", {"alpha": 0.7}),
    "thresholded_relu": ("ThresholdedRelu", {"alpha": 0.7}),
    **{
        name: (name.capitalize(), {})
        for name in [
            "exp",
            "log",
            "sqrt",
            "reciprocal",
            "neg",
            "abs",
            "floor",
            "ceil",
            "round",
            "sign",
            "erf",
            "sin",
            "cos",
            "tan",
            "asin",
            "acos",
            "atan",
        ]
        + ["sinh", "cosh", "asinh", "acosh", "atanh"]
    },
}


@pytest.mark.parametrize("name", sorted(ONNX_UNARY))
def test_unary_is_onnx(name: str) -> None:
    op, attributes = ONNX_UNARY[name]
    x = Const(np.concatenate([np.linspace(-0.95, 0.95, 41), [0.5, 1.5, -2.5, 3.0, -7.0]]))
    if name in ("acosh", "log", "sqrt"):
        x = Const(np.linspace(1.1, 5, 20))
    if name in ("asin", "acos", "atanh"):
        x = Const(np.linspace(-0.9, 0.9, 20))
    with np.errstate(all="ignore"):
        expected = onnx_value(op, x.value, opset=20, **attributes)
    np.testing.assert_allclose(value(Unary(name, x, tuple(attributes.values()))), expected, rtol=1e-6, atol=1e-7)


def test_every_unary_is_compared() -> None:
    elsewhere = {"clip", "swish", "gelu", "gelu_tanh", "not", "isnan"}
    assert set(UNARY) == set(ONNX_UNARY) | elsewhere


def test_unary_beyond_onnx() -> None:
    x = const(50)
    tanh, none = onnx_value("Gelu", x.value, opset=20, approximate="tanh"), onnx_value("Gelu", x.value, opset=20)
    np.testing.assert_allclose(value(Unary("gelu_tanh", x)), tanh, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(value(Unary("gelu", x)), none, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(value(Unary("swish", x, (1.5,))), x.value / (1 + np.exp(-1.5 * x.value)))
    np.testing.assert_array_equal(value(Unary("clip", x, (-0.5, math.inf))), np.maximum(x.value, -0.5))
    np.testing.assert_array_equal(value(Unary("isnan", Const(np.array([1, math.nan])))), [False, True])
    np.testing.assert_array_equal(value(Unary("not", Const(np.array([True, False])))), [False, True])


def test_clip_of_integers_stays_exact() -> None:
    x = Const(np.array([-(2**31), -7, 3, 2**31 - 1], np.int32))
    np.testing.assert_array_equal(value(Unary("clip", x, (-math.inf, math.inf))), x.value)
    np.testing.assert_array_equal(value(Unary("clip", x, (-1.5, 2.5))), [-1, -1, 2, 2])
    np.testing.assert_array_equal(value(Unary("relu", x)), [0, 0, 3, 2**31 - 1])


@pytest.mark.parametrize("fn", sorted(set(BINARY) - LOGICAL - {"prelu"}))
@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_binary_is_python(fn: str, dtype: str) -> None:
    a, b = integers(2, 3, 5, dtype=dtype, low=-9, high=10), integers(3, 1, dtype=dtype, low=1, high=4)
    if fn in ("mod", "fmod", "div"):
        b = Const(b.value * np.array([[1], [-1], [1]], dtype))
    table: dict[str, Any] = {
        "add": lambda p, q: p + q,
        "sub": lambda p, q: p - q,
        "mul": lambda p, q: p * q,
        "div": lambda p, q: math.trunc(p / q) if dtype == "int32" else p / q,
        "pow": lambda p, q: p**q,
        "min": min,
        "max": max,
        "mod": lambda p, q: p % q,
        "fmod": math.fmod,
        "equal": lambda p, q: p == q,
        "less": lambda p, q: p < q,
        "less_equal": lambda p, q: p <= q,
        "greater": lambda p, q: p > q,
        "greater_equal": lambda p, q: p >= q,
    }
    got = value(Binary(fn, a, b))
    assert (got.dtype == bool) == (fn in COMPARISONS)
    for at in np.ndindex(*got.shape):
        assert got[at] == table[fn](a.value[at].item(), b.value[at[1], 0].item())


def test_binary_on_bool_and_prelu() -> None:
    a, b = Const(np.array([True, True, False, False])), Const(np.array([True, False, True, False]))
    assert value(Binary("and", a, b)).tolist() == [True, False, False, False]
    assert value(Binary("or", a, b)).tolist() == [True, True, True, False]
    assert value(Binary("xor", a, b)).tolist() == [False, True, True, False]
    x, slope = const(2, 3, 4), const(3, 1)
    np.testing.assert_allclose(value(Binary("prelu", x, slope)), onnx_value("PRelu", x.value, slope.value))


def test_integer_power_with_negative_exponents() -> None:
    a, b = Const(np.array([1, -1, -1, 2, 3], np.int64)), Const(np.array([-5, -3, -2, -1, 2], np.int64))
    assert value(Binary("pow", a, b)).tolist() == [1, -1, 1, 0, 9]
