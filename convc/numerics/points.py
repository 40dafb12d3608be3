"""The points that convc uses: points.json beside this file, which tools/make_points.py writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.resources import files

from convc.numerics.bilinear import ONE, Bilinear, cook_toom, direct, strided

OUTPUTS, TAPS = range(2, 11), range(2, 8)  # m and r of the table


@dataclass(frozen=True)
class Entry:
    """Finite points of F(m, r), their kappa and lambda of both axes, and how they were found: what `objective` was
    before the snap, the kind of fractions, the seed. `chosen` marks, of the entries for one objective, the one that
    convc computes with."""

    m: int
    r: int
    objective: str
    snap: str
    points: tuple[Fraction, ...]
    kappa: float
    lambda_2d: float
    optimum: float
    seed: int
    chosen: bool


def entry(m: int, r: int, objective: str = "lambda", *, snap: str | None = None) -> Entry:
    """What was found for F(m, r); without `snap` the chosen one of the objective.

    Raises ValueError beyond the table.
    """
    if m not in OUTPUTS or r not in TAPS:
        raise ValueError(f"F({m}, {r}) is beyond the table of points: m is {_span(OUTPUTS)} and r {_span(TAPS)}")
    (found,) = (
        e for e in _table()[m, r] if e.objective == objective and (e.chosen if snap is None else e.snap == snap)
    )
    return found


@cache
def chosen(m: int, r: int) -> Bilinear:
    """F(m, r) at the points of the least lambda: m outputs from m + r - 1 products. One output or one tap takes the
    products of the definition."""
    if m < 1 or r < 1:
        raise ValueError(f"F({m}, {r}) needs at least one output and one tap")
    if m == 1:
        return direct(r)
    return _single_tap(m) if r == 1 else cook_toom(m, r, entry(m, r).points)


@cache
def chosen_strided(m: int, r: int, stride: int) -> Bilinear:
    """m outputs of r taps at a stride: tap u belongs to phase u % stride, and each phase has its F(m, .).

    Raises ValueError where a phase would have no tap.
    """
    if not 1 <= stride <= r:
        raise ValueError(f"{r} taps at stride {stride}: every phase of a stride needs a tap, so a stride of 1 to {r}")
    if stride == 1:
        return chosen(m, r)
    return strided([chosen(m, -(-(r - phase) // stride)) for phase in range(stride)])


def _single_tap(m: int) -> Bilinear:
    unit = tuple(tuple(Fraction(i == j) for j in range(m)) for i in range(m))
    return Bilinear(m, 1, (), unit, ((ONE,),) * m, unit)


@cache
def _table() -> Mapping[tuple[int, int], list[Entry]]:
    found: dict[tuple[int, int], list[Entry]] = {}
    for row in json.loads(files("convc.numerics").joinpath("points.json").read_text()):
        points = tuple(map(Fraction, row.pop("points")))
        found.setdefault((row["m"], row["r"]), []).append(Entry(**row, points=points))
    return found


def _span(values: range) -> str:
    return f"{values[0]} to {values[-1]}"


def points_text(points: tuple[Fraction, ...]) -> str:
    """0, 2/3, -2/3 -> 0, ±2/3"""
    both = {abs(p) for p in points if p and -p in points}
    texts = [f"±{abs(p)}" if abs(p) in both else str(p) for p in sorted(points, key=lambda p: (abs(p), p))]
    return ", ".join(dict.fromkeys(texts)) or "none"
