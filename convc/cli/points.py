"""`convc points`: where a Winograd F(m, r) is evaluated, and what that costs in accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.verb import verb
from convc.errors import UsageError
from convc.report.table import Table, table

if TYPE_CHECKING:
    from fractions import Fraction

    from convc.numerics.bilinear import Bilinear, Matrix
    from convc.numerics.known import Known

OBJECTIVES, SNAPS, FORMATS = ("lambda", "kappa"), ("rational", "dyadic"), ("f32", "f16", "i8")
_TEXT = re.compile(r"\s*F\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)\s*")


@dataclass(frozen=True)
class Ours:
    """A set of convc's, and how it was found; `optimum` is the objective before the snap. `found` is "table",
    "search", or "search, cut short by the budget"."""

    objective: str
    snap: str
    seed: int
    optimum: float
    found: str
    b: Bilinear


@dataclass(frozen=True)
class Row:
    """A set in comparison: gains are of kappa over that of the integers, of one axis and squared; errors are relative
    RMS by format."""

    name: str
    source: str
    points: tuple[Fraction, ...]
    kappa: float
    gain: float
    gain_2d: float
    lambda_2d: float
    errors: dict[str, float]


@verb(
    'convc points "F(4,3)"',
    'convc points "F(8,3)" --error-study f32,f16,i8',
    'convc points "F(6,3)" --search --budget 60s --snap dyadic --show-matrices',
    summary="Points of a Winograd F(m, r), and their accuracy.",
)
@click.argument("algorithm", metavar="F(m,r)")
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="lambda",
    show_default=True,
    help="What the points make small.",
)
@click.option("--search", "is_search", is_flag=True, help="Search now, in place of what convc's table holds.")
@click.option("--budget", type=options.Duration(), help="Most wall clock of --search. Default: until it converges.")
@click.option("--snap", type=click.Choice(SNAPS), help="Fractions of any kind, or with powers of two below.")
@click.option("--show-matrices", is_flag=True, help="Print A^T, G and B^T.")
@click.option("--error-study", "formats", type=options.Words(FORMATS), default=(), help="Measure errors: f32,f16,i8.")
def command(
    console: Console, algorithm: str, objective: str, is_search: bool, budget: float | None, snap: str | None,
    show_matrices: bool, formats: tuple[str, ...],
) -> None:  # fmt: skip
    """Compare the points at which F(m, r) can be evaluated: m outputs of r taps from m + r - 1 products.

    kappa is the condition number of the Vandermonde matrix of the finite points, by which points are often chosen; its
    gain is that over the integers. lambda is what rounding errors grow by: the relative error of a convolution over
    two axes is about 1.6e-7 lambda in float32, 3.6e-4 lambda with products in float16, 1.1e-2 lambda in int8.
    --error-study measures that on 64 channels of random data. Every set is proved to be exact, in fractions.
    """
    m, r = _parsed(algorithm)
    if budget is not None and not is_search:
        raise UsageError("--budget bounds a search; add --search")
    from convc.numerics.known import Known, known

    ours = [_from_table(m, r, name, snap) for name in OBJECTIVES]
    if is_search:
        ours[OBJECTIVES.index(objective)] = _searched(m, r, objective, snap or "rational", budget)
    asked = next(o for o in ours if o.objective == objective)
    sets = [*known(m, r), *(Known(f"convc, {o.objective}", f"convc, {o.found}", o.b) for o in ours)]
    rows = list(_rows(sets, formats))
    parts: list[str | Table] = [_table(rows, formats, marked=f"convc, {objective}"), "", _closing(asked)]
    if show_matrices:
        parts += _matrices(asked.b)
    console.result(_document(asked, rows), *parts)


def _parsed(text: str) -> tuple[int, int]:
    from convc.numerics.points import OUTPUTS, TAPS

    spans = f"m of {OUTPUTS[0]} to {OUTPUTS[-1]} outputs and r of {TAPS[0]} to {TAPS[-1]} taps"
    found = _TEXT.fullmatch(text)
    if found is None:
        raise UsageError(f"'{text}' is no F(m,r); write it as \"F(4,3)\", in quotes, with {spans}")
    m, r = int(found[1]), int(found[2])
    if m not in OUTPUTS or r not in TAPS:
        raise UsageError(f'F({m},{r}) is out of range; write it as "F(4,3)", with {spans}')
    return m, r


def _from_table(m: int, r: int, objective: str, snap: str | None) -> Ours:
    from convc.numerics.bilinear import cook_toom
    from convc.numerics.points import entry

    e = entry(m, r, objective, snap=snap)
    return Ours(objective, e.snap, e.seed, e.optimum, "table", cook_toom(m, r, e.points))


def _searched(m: int, r: int, objective: str, snap: str, budget: float | None) -> Ours:
    from convc.numerics.bilinear import cook_toom
    from convc.numerics.search import search

    found = search(m, r, objective=objective, snap=snap, budget=budget)
    how = "search" if found.converged else "search, cut short by the budget"
    return Ours(objective, snap, found.seed, found.optimum, how, cook_toom(m, r, found.points))


def _rows(sets: Sequence[Known], formats: Sequence[str]) -> Iterator[Row]:
    """The first of `sets` are the integers."""
    from convc.numerics.objective import kappa, spread
    from convc.numerics.study import study

    base = kappa(sets[0].b.points)
    for each in sets:
        own = kappa(each.b.points)
        errors = {name: study(each.b, name).error for name in formats}
        gain = base / own
        yield Row(each.name, each.source, each.b.points, own, gain, gain**2, spread(each.b) ** 2, errors)


def _table(rows: Sequence[Row], formats: Sequence[str], *, marked: str) -> Table:
    from convc.numerics.points import points_text

    columns = ("set", "points", ">kappa", ">gain", ">squared", ">lambda", *(f">{name} error" for name in formats))
    cells = [
        (
            row.name, points_text(row.points), _number(row.kappa), _gain(row.gain), _gain(row.gain_2d),
            _number(row.lambda_2d), *(f"{error:.1e}" for error in row.errors.values()),
        )
        for row in rows
    ]  # fmt: skip
    return table(columns, cells, marked=[i for i, row in enumerate(rows) if row.name == marked])


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1e7 else f"{value:.3e}"


def _gain(value: float) -> str:
    return f"x{value:.4g}" if value < 1000 else f"x{value:.0f}" if value < 1e7 else f"x{value:.3e}"


def _closing(ours: Ours) -> str:
    start = f"convc, {ours.objective}: {ours.found}"
    return f"{start}; {ours.snap} snap, seed {ours.seed}, {ours.objective} {_number(ours.optimum)} before the snap"


def _matrices(b: Bilinear) -> Iterator[str | Table]:
    for name, matrix in (("A^T", b.at), ("G", b.g), ("B^T", b.bt)):
        yield ""
        yield f"{name}, {len(matrix)} x {len(matrix[0])}:"
        yield table((">",) * len(matrix[0]), matrix)


def _document(ours: Ours, rows: Sequence[Row]) -> dict[str, Any]:
    b = ours.b
    (own,) = (row for row in rows if row.name == f"convc, {ours.objective}")
    return {
        "m": b.m, "r": b.r, "objective": ours.objective, "snap": ours.snap, "seed": ours.seed, "found": ours.found,
        "optimum": ours.optimum, "points": b.points, "kappa": own.kappa, "lambda_2d": own.lambda_2d,
        "AT": _texts(b.at), "G": _texts(b.g), "BT": _texts(b.bt), "sets": rows,
    }  # fmt: skip


def _texts(matrix: Matrix) -> list[list[str]]:
    return [[str(value) for value in row] for row in matrix]
