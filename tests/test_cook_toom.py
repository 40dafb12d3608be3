"""Are the bilinear algorithms exact?"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convc.numerics.bilinear import (
    Bilinear,
    cook_toom,
    denominator,
    direct,
    equilibrated,
    integral,
    strided,
)
from convc.numerics.objective import spread
from convc.numerics.points import chosen, chosen_strided

FEW = settings(max_examples=40, deadline=None)
FRACTIONS = st.builds(Fraction, st.integers(-12, 12), st.integers(1, 8))


@st.composite
def algorithms(draw: st.DrawFn, *, outputs: int = 5, taps: int = 5) -> Bilinear:
    """F(m, r) at drawn points."""
    m, r = draw(st.integers(1, outputs)), draw(st.integers(1, taps))
    return cook_toom(m, r, draw(st.lists(FRACTIONS, min_size=m + r - 2, max_size=m + r - 2, unique=True)))


def objects(matrix: object) -> np.ndarray:
    return np.array(matrix, dtype=object)


def ramp(*shape: int, seed: int = 0) -> np.ndarray:
    """Whole numbers of -9 to 9, as Python's own."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(object)


def applied(b: Bilinear, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Over both axes of x [span, span] and w [r, r]."""
    at, g, bt = objects(b.at), objects(b.g), objects(b.bt)
    return at @ ((g @ w @ g.T) * (bt @ x @ bt.T)) @ at.T


def correlated(b: Bilinear, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    steps = range(0, b.m * b.stride, b.stride)
    return objects([[(x[i : i + b.r, j : j + b.r] * w).sum() for j in steps] for i in steps])


def check_exact(b: Bilinear) -> None:
    x, w = ramp(b.span, b.span), ramp(b.r, b.r, seed=1)
    assert (applied(b, x, w) == correlated(b, x, w)).all()


@FEW
@given(algorithms())
def test_cook_toom_is_exact_at_any_points(b: Bilinear) -> None:
    assert (b.n, b.span) == (b.m + b.r - 1, b.m + b.r - 1)
    check_exact(b)


@pytest.mark.parametrize("m", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("r", [1, 3, 5])
def test_chosen_algorithms_are_exact(m: int, r: int) -> None:
    b = chosen(m, r)
    assert (b.m, b.r, b.n) == (m, r, m + r - 1)
    check_exact(b)
    check_exact(integral(b))
    check_exact(equilibrated(b))


@FEW
@given(algorithms(outputs=4, taps=4), st.data())
def test_scaled_is_the_same_function_with_the_same_spread(b: Bilinear, data: st.DataObject) -> None:
    factors = st.lists(FRACTIONS.filter(bool), min_size=b.n, max_size=b.n)
    scaled = b.scaled(data.draw(factors), data.draw(factors))
    check_exact(scaled)
    assert spread(scaled) == pytest.approx(spread(b), rel=1e-9)


@FEW
@given(algorithms())
def test_integral_transforms_are_coprime_whole_numbers(b: Bilinear) -> None:
    whole = integral(b)
    for line in (*whole.bt, *zip(*whole.at, strict=True)):
        assert all(v.denominator == 1 for v in line) and math.gcd(*(v.numerator for v in line)) == 1
    check_exact(whole)


@FEW
@given(algorithms())
def test_equilibrated_rows_have_norms_near_one_by_powers_of_two(b: Bilinear) -> None:
    even = equilibrated(b)
    for before, after in ((b.g, even.g), (b.bt, even.bt)):
        for old, new in zip(before, after, strict=True):
            assert 0.7 < math.hypot(*map(float, new)) < 1.42
            (factor,) = {n / o for n, o in zip(new, old, strict=True) if o}
            assert math.log2(factor).is_integer()
    check_exact(even)


@pytest.mark.parametrize("b", [chosen(4, 3), integral(chosen(6, 3)), integral(chosen(3, 5))])
def test_multiples_of_the_denominator_have_whole_transforms(b: Bilinear) -> None:
    d = denominator(b)
    transformed = objects(b.g) @ (ramp(b.r) * d)
    assert all(Fraction(v).denominator == 1 for v in transformed)
    assert any(v.denominator > 1 for row in b.g for v in row) == (d > 1)


@pytest.mark.parametrize(("m", "r", "stride"), [(1, 3, 2), (4, 3, 2), (3, 5, 2), (2, 7, 2), (2, 3, 3), (2, 7, 4)])
def test_strided_is_exact(m: int, r: int, stride: int) -> None:
    b = chosen_strided(m, r, stride)
    taps = [-(-(r - phase) // stride) for phase in range(stride)]
    assert (b.m, b.r, b.stride) == (m, r, stride) and b.n == sum(m + t - 1 for t in taps)
    check_exact(b)
    check_exact(integral(b))
    check_exact(equilibrated(b))


def test_direct_and_single_taps() -> None:
    assert spread(direct(3)) == pytest.approx(1) and direct(3).n == 3
    check_exact(direct(3, 2))
    assert spread(chosen(4, 1)) == pytest.approx(1) and chosen(4, 1).n == 4
    assert chosen(1, 5) == direct(5)
    assert chosen_strided(4, 3, 1) is chosen(4, 3)


@pytest.mark.parametrize("points", [[], [0, 1, -1], [0, 1, -1, 2, -2, 3], [0, 1, -1, 2, 1]])
def test_wrong_points(points: list[int]) -> None:
    given_points = ", ".join(map(str, points)) or "none"
    with pytest.raises(ValueError, match=rf"^F\(4, 3\) takes 5 different finite points; given {given_points}$"):
        cook_toom(4, 3, list(map(Fraction, points)))


def test_a_wrong_algorithm_cannot_be_made() -> None:
    b = cook_toom(2, 3, [Fraction(0), Fraction(1), Fraction(-1)])
    bt = (tuple(-v for v in b.bt[0]), *b.bt[1:])
    with pytest.raises(ValueError, match=r"^F\(2, 3\): x\[0\] w\[0\] has coefficient -1 in y\[0\]$"):
        dataclasses.replace(b, bt=bt)
    with pytest.raises(ValueError):
        strided([chosen(2, 1), chosen(2, 2)])  # the longer phase comes first
