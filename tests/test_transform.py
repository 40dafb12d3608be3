"""Do the straight-line transforms compute the matrix products that they stand for?"""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convc.schedules import _transform
from convc.schedules._tiling import form_of

FORMS = [(m, r, s) for m in range(1, 9) for r in range(1, 8) for s in (1, 2, 3) if m == 1 or (r > s and -(-r // s) > 1)]


class Number(Fraction):
    """A fraction that TVM's constants multiply exactly."""

    def __mul__(self, other: object) -> Number:
        return Number(Fraction(self) * Fraction(getattr(other, "value", other)))  # type: ignore[arg-type]

    def __add__(self, other: object) -> Number:
        return Number(Fraction(self) + Fraction(getattr(other, "value", other)))  # type: ignore[arg-type]

    def __sub__(self, other: object) -> Number:
        return Number(Fraction(self) - Fraction(getattr(other, "value", other)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("m", "r", "stride"), FORMS)
@pytest.mark.parametrize("ways", ["times", "times_by_rows", "times_by_columns"])
def test_all_ways_give_the_product(ways: str, m: int, r: int, stride: int) -> None:
    form = form_of(m, r, stride)
    for matrix in (form.at, form.bt):
        values = [Number(k * k - 3 * k + 1) for k in range(len(matrix[0]))]
        found = getattr(_transform, ways)(matrix, lambda k, values=values: values[k], "float64")
        wanted = [sum(a * v for a, v in zip(row, values, strict=True)) for row in matrix]
        assert [Fraction(getattr(value, "value", value)) for value in found] == wanted


@settings(max_examples=100)
@given(st.lists(st.lists(st.fractions(-4, 4, max_denominator=6), min_size=3, max_size=3), min_size=1, max_size=4))
def test_whole_numbers_and_divisors_are_the_matrix(rows: list[list[Fraction]]) -> None:
    whole, divisors = _transform.over_whole_numbers(tuple(map(tuple, rows)))
    assert all(value.denominator == 1 for row in whole for value in row)
    assert [[value / d for value in row] for row, d in zip(whole, divisors, strict=True)] == rows
