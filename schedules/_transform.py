"""Constant matrices times vectors, as straight-line expressions with shared partial sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

from convc.numerics.bilinear import Matrix

Element = Callable[[int], Any]
"""The expression of an element of a vector, by its index."""


def chosen(i: Any, values: Sequence[Any]) -> Any:
    """values[i], by conditions that fold when the loop over i is unrolled."""
    from tvm import tirx

    found = values[-1]
    for k, value in reversed(list(enumerate(values[:-1]))):
        found = tirx.Select(i == k, value, found)
    return found


def times(matrix: Matrix, element: Element, dtype: str) -> list[Any]:
    """matrix @ elements, row by row."""
    return [_sum(enumerate(row), element, dtype) for row in matrix]


def times_by_rows(matrix: Matrix, element: Element, dtype: str) -> list[Any]:
    """The same, where two rows that differ in the signs of some columns share both partial sums: those of points a
    and -a, whose odd columns do. The compiler computes equal expressions once."""
    found: list[Any] = []
    for k, row in enumerate(matrix):
        mate = next((j for j, other in enumerate(matrix) if _mirrors(row, other)), None)
        if mate is None:
            found.append(_sum(enumerate(row), element, dtype))
            continue
        first, second = matrix[min(k, mate)], matrix[max(k, mate)]
        pairs = list(enumerate(zip(first, second, strict=True)))
        same = _sum(((i, a) for i, (a, b) in pairs if a == b), element, dtype)
        opposite = _sum(((i, a) for i, (a, b) in pairs if a != b), element, dtype)
        found.append(same + opposite if k < mate else same - opposite)
    return found


def times_by_columns(matrix: Matrix, element: Element, dtype: str) -> list[Any]:
    """The same, where the elements of two columns that differ in the signs of some rows are added, or subtracted,
    before they are multiplied."""
    columns = list(zip(*matrix, strict=True))
    terms: list[tuple[Sequence[Fraction], Element]] = []  # factors by row, and by row what they multiply
    done: set[int] = set()
    for k, column in enumerate(columns):
        if k in done:
            continue
        later = (j for j in range(k + 1, len(columns)) if j not in done)  # phases of a stride share points
        mate = next((j for j in later if _mirrors(column, columns[j])), None)
        if mate is None:
            terms.append((column, partial(_alone, element(k))))
        else:
            done.add(mate)
            equal = [a == b for a, b in zip(column, columns[mate], strict=True)]
            terms.append((column, partial(_either, equal, element(k) + element(mate), element(k) - element(mate))))
    rows = range(len(matrix))
    return [_sum(((i, c[row]) for i, (c, _) in enumerate(terms)), partial(_term, terms, row), dtype) for row in rows]


def operations(matrix: Matrix) -> float:
    """Of either, about: pairs halve the multiplications and add one addition each."""
    return 0.6 * sum(1 for row in matrix for a in row if a) + len(matrix)


def over_whole_numbers(matrix: Matrix) -> tuple[Matrix, list[int]]:
    """The rows as whole numbers, and what each is to be divided by."""
    divisors = [math.lcm(*(v.denominator for v in row)) for row in matrix]
    return tuple(tuple(v * d for v in row) for row, d in zip(matrix, divisors, strict=True)), divisors


def _sum(terms: Iterable[tuple[int, Fraction]], element: Element, dtype: str) -> Any:
    from tvm import tirx

    found = None
    for k, factor in terms:
        if factor:
            term = element(k) if factor == 1 else element(k) * tirx.const(float(factor), dtype)
            found = term if found is None else found + term
    return tirx.const(0, dtype) if found is None else found


def _mirrors(a: Sequence[Fraction], b: Sequence[Fraction]) -> bool:
    """Whether they differ in the signs of some elements, but not of all."""
    pairs = list(zip(a, b, strict=True))
    return all(x in (y, -y) for x, y in pairs) and a != b and any(x == y != 0 for x, y in pairs)


def _alone(value: Any, row: int) -> Any:
    return value


def _either(equal: Sequence[bool], added: Any, subtracted: Any, row: int) -> Any:
    return added if equal[row] else subtracted


def _term(terms: Sequence[tuple[Sequence[Fraction], Element]], row: int, i: int) -> Any:
    return terms[i][1](row)
