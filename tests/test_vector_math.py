"""How exact are the vectorised float32 functions? Over the whole range of float32, in units of the last place."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from kernels import placeholder, run

from convc.ir import Binary, Unary
from convc.lower.interpolate import floor_form

TINY = 2.0**-126


def reference(fn: str, x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.longdouble)
    forms: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "exp": np.exp,
        "log": np.log,
        "tanh": np.tanh,
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
        "softplus": lambda v: np.logaddexp(np.longdouble(0), v),
        "erf": lambda v: np.vectorize(math.erf)(v.astype(np.float64)).astype(np.longdouble),
        "sin": np.sin,
        "cos": np.cos,
        "elu": lambda v: np.where(v < 0, np.expm1(v), v),
    }
    with np.errstate(all="ignore"):
        return forms[fn](wide)


def errors(y: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """In units of the last place of the exact value; where one is not finite the other must be the same."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(rounded))
    np.testing.assert_array_equal(y[np.isinf(rounded)], rounded[np.isinf(rounded)])
    ok = np.isfinite(rounded) & np.isfinite(y)
    return np.abs(y[ok].astype(np.longdouble) - exact[ok]) / np.spacing(np.abs(rounded[ok])).astype(np.longdouble)


def samples() -> np.ndarray:
    """Every pattern of bits is as likely as another; then what networks see; then the corners."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    usual = np.concatenate([rng.uniform(-110, 110, 20_000), rng.normal(size=20_000)]).astype(np.float32)
    corners = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1,
        -1,
        1e-45,
        -1e-45,
        TINY,
        88.72,
        88.73,
        -87.34,
        -103.97,
        -104.5,
        3.95,
    ]
    return np.concatenate([patterns, usual, np.array(corners, np.float32)])


@pytest.mark.parametrize(
    ("fn", "ulp"),
    [
        ("exp", 1.5),
        ("log", 1.5),
        ("tanh", 3),
        ("sigmoid", 3),
        ("softplus", 3),
        ("erf", 2),
        ("sin", 2),
        ("cos", 2),
        ("elu", 3),
    ],
)
def test_error_in_units_of_the_last_place(fn: str, ulp: float) -> None:
    x = samples()
    if fn in ("sin", "cos"):
        x = x[~(np.abs(x) >= 2**29) | ~np.isfinite(x)]
    if fn == "sigmoid":
        x = x[~(x < -87.3)]  # what is denormal is 0
    node = placeholder(len(x))
    found = errors(run([Unary(fn, node, (1.0,) if fn == "elu" else ())], {node: x}), reference(fn, x))
    assert 0.4 < found.max() <= ulp


def test_sigmoid_is_0_where_it_would_be_denormal_and_sine_stays_in_its_range() -> None:
    x = placeholder(4)
    y = run([Unary("sigmoid", x)], {x: np.array([-88, -100, -1e30, -np.inf], np.float32)})
    assert (y < TINY).all() and (y >= 0).all()
    y = run([Unary("sin", x)], {x: np.array([1e10, -1e20, 1e30, 3e38], np.float32)})
    assert (np.abs(y) <= 1).all()


def test_power() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, (2, 20_000), dtype=np.uint32).view(np.float32)
    usual = np.stack([np.exp(rng.uniform(-30, 30, 20_000)), rng.uniform(-4, 4, 20_000)]).astype(np.float32)
    signed = np.stack([rng.normal(size=1000), rng.integers(-9, 9, 1000)]).astype(np.float32)
    corners = np.array(
        np.meshgrid(
            [0, -0.0, 1, -1, 2, -2, np.inf, -np.inf, np.nan, 0.5], [0, 1, -1, 2, 3, -3, 0.5, np.inf, -np.inf, np.nan]
        )
    )
    a, b = np.concatenate([bits, usual, signed, corners.reshape(2, -1).astype(np.float32)], axis=1)
    x, y = placeholder(len(a)), placeholder(len(a))
    with np.errstate(all="ignore"):
        exact = np.power(a.astype(np.longdouble), b.astype(np.longdouble))
    found = errors(run([Binary("pow", x, y)], {x: a, y: b}), exact)
    assert 0.4 < found.max() <= 1.5


def test_a_table_of_floors_is_found_in_closed_form() -> None:
    from fractions import Fraction

    for extent, to in ((7, 14), (5, 13), (13, 5), (512, 513), (1, 8)):
        table = np.clip(np.floor((np.arange(to) + 0.5) * extent / to), 0, extent - 1).astype(np.int64)
        p, q, r = floor_form(table, Fraction(extent, to)) or (0, 0, 1)
        np.testing.assert_array_equal(np.clip((p * np.arange(to) + q) // r, table.min(), table.max()), table)
    assert floor_form(np.array([0, 5, 1, 7]), Fraction(1, 2)) is None
