"""The search for points: an evolution strategy over symmetric sets, then a snap to small fractions."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np

from convc.numerics.bilinear import ZERO, cook_toom
from convc.numerics.objective import OBJECTIVES, Floats

SNAPS = ("rational", "dyadic")
SEED = 0
# How far a snap may lie above the optimum. For lambda small fractions are worth a little, as they make small whole
# numbers in the transforms; nothing is computed with sets for kappa, so there only the figure counts.
SLACK = {
    ("lambda", "rational"): 1.015, ("lambda", "dyadic"): 1.03, ("kappa", "rational"): 1.001, ("kappa", "dyadic"): 1.001,
}  # fmt: skip
LARGEST_HEIGHT, LARGEST_POWER = 64, 10  # numerators and denominators; exponents of the denominators 2^e
SETS_AT_ONCE = 4096
LOG_BOUNDS = (-2.6, 2.1)  # of the points found, up to 15 of them, none lies near 0.074 or 8.2
GENERATIONS = 4000


@dataclass(frozen=True)
class Found:
    """Finite points of F(m, r) and what they were found by. `optimum` is the objective before the snap, `value` after
    it; `converged` is False where the budget ended the search."""

    m: int
    r: int
    objective: str
    snap: str
    seed: int
    points: tuple[Fraction, ...]
    optimum: float
    value: float
    converged: bool


@dataclass(frozen=True)
class Symmetric:
    """Sets of 0, where the number of points is odd, and of pairs a, -a, as an objective sees them. Searches without
    this restriction end in such sets as well."""

    m: int
    r: int
    objective: str

    @property
    def pairs(self) -> int:
        return (self.m + self.r - 2) // 2

    def values(self, halves: Floats) -> Floats:
        """The objective of many sets: the positive points [..., pairs] -> [...]."""
        zero = np.zeros((*halves.shape[:-1], (self.m + self.r) % 2))
        points = np.concatenate([zero, halves, -halves], axis=-1)
        return OBJECTIVES[self.objective](points, self.m, self.r)

    def points(self, halves: Sequence[Fraction]) -> tuple[Fraction, ...]:
        zero = (ZERO,) * ((self.m + self.r) % 2)
        return (*zero, *(point for half in sorted(halves) for point in (half, -half)))


def search(
    m: int, r: int, *, objective: str = "lambda", snap: str = "rational", seed: int = SEED, budget: float | None = None
) -> Found:
    """The points of F(m, r) that make `objective` small, as fractions of small height or with small powers of two
    below. The same input gives the same points, unless `budget`, in seconds, ends the search before it converges.

    Raises ValueError where there are fewer than two finite points.
    """
    sets = Symmetric(m, r, objective)
    if sets.pairs < 1:
        raise ValueError(f"F({m}, {r}) has {max(0, m + r - 2)} finite points; there is nothing to search below two")
    halves, optimum, converged = _optimum(sets, seed, budget)
    points = sets.points(_snapped(sets, halves, _grids(snap), optimum * SLACK[objective, snap]))
    cook_toom(m, r, points)  # proves them, or raises
    value = float(OBJECTIVES[objective](np.array(points, np.float64), m, r))
    return Found(m, r, objective, snap, seed, points, optimum, value, converged)


def _optimum(sets: Symmetric, seed: int, budget: float | None) -> tuple[Floats, float, bool]:
    """The positive points over the reals, ascending; their objective; whether the search converged.

    Differential evolution: Storn and Price, J. Global Optimization 11 (1997). Over logarithms, as points come with
    their reciprocals.
    """
    from scipy.optimize import differential_evolution

    deadline = time.monotonic() + (math.inf if budget is None else budget)

    def cost(logs: Floats) -> Floats:
        found: Floats = np.log(sets.values(np.exp(logs).T))
        return found

    def over(_logs: Floats, convergence: float) -> bool:
        return time.monotonic() > deadline

    found = differential_evolution(
        cost, [LOG_BOUNDS] * sets.pairs, callback=over, maxiter=GENERATIONS, tol=1e-9, atol=0, polish=False,
        vectorized=True, updating="deferred", seed=seed,
    )  # fmt: skip
    return np.sort(np.exp(found.x)), math.exp(found.fun), bool(found.success)


def _snapped(
    sets: Symmetric, halves: Floats, grids: Iterator[Sequence[Fraction]], enough: float
) -> tuple[Fraction, ...]:
    """The best set on the first grid that has one not above `enough`; if none has, the best of all."""
    best: tuple[float, tuple[Fraction, ...]] = math.inf, ()
    for grid in grids:
        best = min(best, _best_on(sets, halves, grid), key=lambda found: found[0])
        if best[0] <= enough:
            break
    return best[1]


def _best_on(sets: Symmetric, halves: Floats, grid: Sequence[Fraction]) -> tuple[float, tuple[Fraction, ...]]:
    """Of all sets with every point among the nearest of `grid` to the optimum's."""
    reach = min(4, max(1, int(SETS_AT_ONCE ** (1 / sets.pairs) / 2 + 1e-9)))
    product = itertools.product(*(_nearest(half, grid, reach) for half in halves))
    candidates = [halves for halves in product if len(set(halves)) == sets.pairs]
    if not candidates:
        return math.inf, ()
    values = sets.values(np.array(candidates, np.float64))
    first = int(values.argmin())
    return float(values[first]), candidates[first]


def _nearest(value: float, grid: Sequence[Fraction], reach: int) -> Sequence[Fraction]:
    """Up to `reach` on either side."""
    at = int(np.searchsorted(np.array(grid, np.float64), value))
    return grid[max(0, at - reach) : at + reach]


def _grids(snap: str) -> Iterator[Sequence[Fraction]]:
    """Finer and finer grids of positive fractions, ascending."""
    if snap == "dyadic":
        return (_dyadics(power) for power in range(LARGEST_POWER + 1))
    return (_rationals(height) for height in range(1, LARGEST_HEIGHT + 1))


@cache
def _dyadics(power: int) -> tuple[Fraction, ...]:
    return tuple(Fraction(p, 1 << power) for p in range(1, (8 << power) + 1))


@cache
def _rationals(height: int) -> tuple[Fraction, ...]:
    """Numerator and denominator at most `height`."""
    return tuple(sorted({Fraction(p, q) for p in range(1, height + 1) for q in range(1, height + 1)}))
