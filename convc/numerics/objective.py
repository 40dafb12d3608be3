"""What a set of points is worth: lambda, to which the rounding error is proportional, and kappa, which is often quoted.

For random data the relative RMS error of an algorithm nested over two axes is, with lambda the product of both axes'
(convc.numerics.study, within 8 % for every set tried): 1.6e-7 lambda in float32; 3.6e-4 lambda where what the products
read and write is kept in float16; 1.1e-2 lambda where they read int8 with a scale for each place of the tile. lambda
does not change when rows are scaled, as the error does not; kappa does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from convc.numerics.bilinear import Bilinear

Floats = np.ndarray[Any, np.dtype[np.float64]]


def spread(b: Bilinear) -> float:
    """lambda of one axis: sqrt(1/(m r) * sum over i, k of at[i][k]^2 |g[k]|^2 |bt[k]|^2).

    What independent roundings of the products grow to in the outputs, relative to their RMS; 1 for the definition. Of
    an algorithm nested over two axes it is the product of both.
    """
    rows = _row_spreads(b)
    return math.sqrt(sum(rows) / len(rows))


def largest_spread(b: Bilinear) -> float:
    """lambda of the output that errs most, an outer one of the tile: what the maximum of the error follows."""
    return math.sqrt(max(_row_spreads(b)))


def _row_spreads(b: Bilinear) -> list[float]:
    squares = [_square(g) * _square(t) for g, t in zip(b.g, b.bt, strict=True)]
    return [sum(float(a) ** 2 * square for a, square in zip(row, squares, strict=True)) / b.r for row in b.at]


def kappa(points: Sequence[Fraction]) -> float:
    """Condition number in the 2-norm of the square Vandermonde matrix of the finite points.

    Source: NOVA (arXiv:2512.18453); infinity is left out there.
    """
    return float(kappas(np.array(points, np.float64)))


def kappas(points: Floats) -> Floats:
    """kappa of many sets: points [..., n] -> [...]. Keeps its digits where a factorisation of the matrix loses them:
    the inverse holds the coefficients of Lagrange's polynomials."""
    polynomials, factors, _ = _lagrange(points)
    vandermonde = points[..., None] ** np.arange(points.shape[-1])
    return _norms(vandermonde) * _norms(polynomials / factors[..., None])


def spreads(points: Floats, m: int, r: int) -> Floats:
    """lambda of F(m, r) at many sets of finite points, one axis: points [..., m + r - 2] -> [...]."""
    polynomials, factors, whole = _lagrange(points)
    at = (points[..., None] ** np.arange(0, 2 * m, 2)).sum(-1)
    g = (points[..., None] ** np.arange(0, 2 * r, 2)).sum(-1) / factors**2
    finite = (at * g * (polynomials**2).sum(-1)).sum(-1)
    found: Floats = np.sqrt((finite + (whole**2).sum(-1)) / (m * r))
    return found


OBJECTIVES: Mapping[str, Callable[[Floats, int, int], Floats]] = {
    "lambda": lambda points, m, r: spreads(points, m, r) ** 2,
    "kappa": lambda points, m, r: kappas(points),
}
"""What a search makes small, by name; lambda of both axes."""


def _square(row: Sequence[Fraction]) -> float:
    return sum(float(v) ** 2 for v in row)


def _lagrange(points: Floats) -> tuple[Floats, Floats, Floats]:
    """Coefficients of prod over j != k of (x - a[j]), [..., k, n], the constant first; their values at a[k],
    [..., k]; and the coefficients of the whole product, [..., n + 1]."""
    n = points.shape[-1]
    polynomials, whole = np.zeros((*points.shape, n)), np.zeros((*points.shape[:-1], n + 1))
    polynomials[..., 0] = whole[..., 0] = 1
    for j in range(n):
        kept = polynomials[..., j, :].copy()
        polynomials = _times_root(polynomials, points[..., j, None, None])
        polynomials[..., j, :] = kept
        whole = _times_root(whole, points[..., j, None])
    differences = points[..., :, None] - points[..., None, :]
    differences[..., range(n), range(n)] = 1
    return polynomials, differences.prod(-1), whole


def _times_root(polynomials: Floats, root: Floats) -> Floats:
    """Times (x - root). The highest coefficient must be zero yet."""
    found = -root * polynomials
    found[..., 1:] += polynomials[..., :-1]
    return found


def _norms(matrices: Floats) -> Floats:
    found: Floats = np.linalg.norm(matrices, 2, axis=(-2, -1))
    return found
