"""Bilinear algorithms over exact rationals: y = AT [(G g) * (BT d)], fewer products than the sum they replace.

Source: Winograd, Arithmetic Complexity of Computations (SIAM 1980), in the convention of Lavin and Gray (CVPR 2016,
arXiv:1509.09308): F(m, r) computes m outputs of a filter with r taps from m + r - 1 products, one for each point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Matrix = tuple[tuple[Fraction, ...], ...]
ZERO, ONE = Fraction(0), Fraction(1)


@dataclass(frozen=True)
class Bilinear:
    """y[i] = sum over k of at[i][k] * (sum over u of g[k][u] w[u]) * (sum over j of bt[k][j] x[j]), which equals
    sum over u of x[i * stride + u] w[u], for m outputs i and r taps u.

    `at` is m x n, `g` n x r, `bt` n x span; `points` the finite ones, in the order of their rows, those of a stride's
    phases one after the other. Made by functions of this file, which raise ValueError where the identity fails.
    """

    m: int
    r: int
    points: tuple[Fraction, ...]
    at: Matrix
    g: Matrix
    bt: Matrix
    stride: int = 1

    def __post_init__(self) -> None:
        if (reason := self.wrong()) is not None:
            raise ValueError(reason)

    @property
    def n(self) -> int:
        """Products."""
        return len(self.g)

    @property
    def span(self) -> int:
        """Inputs under a tile of m outputs."""
        return (self.m - 1) * self.stride + self.r

    def wrong(self) -> str | None:
        """Where the identity fails, or None. Both sides are linear in x and in w, so equal coefficients of every
        x[j] w[u] in every y[i] prove it for all numbers."""
        inputs = _columns(self.bt)
        for i in range(self.m):
            for u in range(self.r):
                products = [a * row[u] for a, row in zip(self.at[i], self.g, strict=True)]
                for j in range(self.span):
                    found = sum((p * b for p, b in zip(products, inputs[j], strict=True) if p and b), ZERO)
                    if found != (j == i * self.stride + u):
                        return f"F({self.m}, {self.r}): x[{j}] w[{u}] has coefficient {found} in y[{i}]"
        return None

    def scaled(self, s: Sequence[Fraction], t: Sequence[Fraction]) -> Bilinear:
        """Row k of g times s[k], of bt times t[k], and column k of at by both: the same function."""
        at = tuple(tuple(a / (x * y) for a, x, y in zip(row, s, t, strict=True)) for row in self.at)
        return Bilinear(self.m, self.r, self.points, at, _rows_scaled(self.g, s), _rows_scaled(self.bt, t), self.stride)


def cook_toom(m: int, r: int, points: Sequence[Fraction]) -> Bilinear:
    """F(m, r) at m + r - 2 different finite points and infinity. Raises ValueError where they are not."""
    a = tuple(Fraction(point) for point in points)
    if m < 1 or r < 1 or len(a) != m + r - 2 or len(set(a)) != len(a):
        given = ", ".join(map(str, a)) or "none"
        raise ValueError(f"F({m}, {r}) takes {max(0, m + r - 2)} different finite points; given {given}")
    others = [[b for b in a if b != point] for point in a]
    factors = [math.prod((point - b for b in rest), start=ONE) for point, rest in zip(a, others, strict=True)]
    at = tuple((*(point**i for point in a), Fraction(i == m - 1)) for i in range(m))
    g = (*(tuple(p**u / f for u in range(r)) for p, f in zip(a, factors, strict=True)), _unit(r))
    bt = (*((*_polynomial(rest), ZERO) for rest in others), _polynomial(a))
    return Bilinear(m, r, a, at, g, bt)


def direct(r: int, stride: int = 1) -> Bilinear:
    """F(1, r): the r products of the definition."""
    unit = tuple(tuple(Fraction(i == j) for j in range(r)) for i in range(r))
    return Bilinear(1, r, (), ((ONE,) * r,), unit, unit, stride)


def strided(phases: Sequence[Bilinear]) -> Bilinear:
    """The filter whose tap u is tap u // s of phase u % s, at stride s = len(phases), each phase at stride 1: inputs of
    a phase meet taps of the same phase only (polyphase decomposition)."""
    s, m, r = len(phases), phases[0].m, sum(phase.r for phase in phases)
    span = (m - 1) * s + r
    at = tuple(tuple(a for phase in phases for a in phase.at[i]) for i in range(m))
    g = tuple(_spread(row, s, p, r) for p, phase in enumerate(phases) for row in phase.g)
    bt = tuple(_spread(row, s, p, span) for p, phase in enumerate(phases) for row in phase.bt)
    return Bilinear(m, r, tuple(a for phase in phases for a in phase.points), at, g, bt, s)


def integral(b: Bilinear) -> Bilinear:
    """With coprime whole numbers in every row of bt and every column of at: what is left of fractions is in g, which
    is applied to the weights once."""
    t = [_to_integers(row) for row in b.bt]
    columns = [_to_integers(column) for column in _columns(b.at)]
    return b.scaled([1 / (x * y) for x, y in zip(t, columns, strict=True)], t)


def equilibrated(b: Bilinear) -> Bilinear:
    """With the rows of g and of bt near norm 1, by powers of two, which cost no rounding: float16 then neither
    overflows nor loses small numbers."""
    return b.scaled([_power(row) for row in b.g], [_power(row) for row in b.bt])


def denominator(b: Bilinear) -> int:
    """The least number that makes g whole: weights that are multiples of it are transformed without a rounding."""
    return math.lcm(*(value.denominator for row in b.g for value in row))


def mantissa(b: Bilinear) -> float:
    """Bits that hold every number on the way from x to y without rounding, for x and w of -1, 0 and 1 whose w are
    multiples of `denominator`: the largest beside the unit of all that are added up, at the products or in y."""
    d = denominator(b)
    largest = [_magnitude(g) * d * _magnitude(t) for g, t in zip(b.g, b.bt, strict=True)]
    units = [_unit_of(g) * d * _unit_of(t) for g, t in zip(b.g, b.bt, strict=True)]
    found = [math.log2(v / u) for v, u in zip(largest, units, strict=True)]
    for row in b.at:
        terms = [(abs(a) * v, abs(a) * u) for a, v, u in zip(row, largest, units, strict=True) if a]
        found.append(math.log2(sum(v for v, _ in terms) / _unit_of([u for _, u in terms])))
    return max(found)


def significand(b: Bilinear) -> float:
    """Bits that hold every number of BT x and of G w alone, for the same x and w."""
    return max(math.log2(_magnitude(row) / _unit_of(row)) for row in (*b.bt, *b.g))


def _magnitude(row: Sequence[Fraction]) -> Fraction:
    return sum((abs(v) for v in row), ZERO)


def _unit_of(row: Sequence[Fraction]) -> Fraction:
    """The largest number of which all are whole multiples."""
    values = [v for v in row if v]
    return Fraction(math.gcd(*(v.numerator for v in values)), math.lcm(*(v.denominator for v in values)))


def _power(row: Sequence[Fraction]) -> Fraction:
    norm = math.sqrt(sum(float(v) ** 2 for v in row))
    return Fraction(2) ** -round(math.log2(norm))


def _to_integers(row: Sequence[Fraction]) -> Fraction:
    """The factor that makes the row coprime whole numbers."""
    return Fraction(math.lcm(*(v.denominator for v in row)), math.gcd(*(v.numerator for v in row)))


def _unit(r: int) -> tuple[Fraction, ...]:
    return tuple(Fraction(u == r - 1) for u in range(r))


def _polynomial(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of prod (x - root), the constant first."""
    found = [ONE]
    for root in roots:
        found = [low - root * high for low, high in zip([ZERO, *found], [*found, ZERO], strict=True)]
    return tuple(found)


def _spread(row: Sequence[Fraction], stride: int, phase: int, length: int) -> tuple[Fraction, ...]:
    found = [ZERO] * length
    found[phase::stride] = row
    return tuple(found)


def _columns(matrix: Matrix) -> list[tuple[Fraction, ...]]:
    return list(zip(*matrix, strict=True))


def _rows_scaled(matrix: Matrix, by: Sequence[Fraction]) -> Matrix:
    return tuple(tuple(v * f for v in row) for row, f in zip(matrix, by, strict=True))
