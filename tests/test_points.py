"""Are the chosen points right, and as good as said?"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Any

import make_points
import numpy as np
import pytest
import study_winograd
from cli_calls import complaint, document, told

from convc.cli.points import FORMATS, SNAPS
from convc.cli.points import OBJECTIVES as NAMES
from convc.numerics import search
from convc.numerics.bilinear import cook_toom
from convc.numerics.known import integers, known
from convc.numerics.objective import OBJECTIVES, kappa, kappas, spread, spreads
from convc.numerics.points import OUTPUTS, TAPS, Entry, chosen, chosen_strided, entry, points_text
from convc.numerics.search import SEED, SLACK
from convc.numerics.study import study

EVERY = [(m, r) for m in OUTPUTS for r in TAPS]
# m: kappa of the integers and of NOVA's points as printed there, and their quotient (arXiv:2512.18453).
PRINTED = {4: ("42.472", "14.546", "2.920"), 6: ("2074.513", "76.639", "27.07"), 8: ("196899.68", "474.101", "415.312")}


def entries(m: int, r: int) -> list[Entry]:
    return [entry(m, r, objective, snap=snap) for objective in NAMES for snap in SNAPS]


def nova(m: int) -> tuple[Fraction, ...]:
    (found,) = (k.b.points for k in known(m, 3) if "NOVA" in k.name)
    return found


@pytest.mark.parametrize("r", TAPS)
def test_every_entry_is_proved_and_its_figures_are_its_own(r: int) -> None:
    for e in (e for m in OUTPUTS for e in entries(m, r)):
        b = cook_toom(e.m, e.r, e.points)
        assert e.kappa == pytest.approx(kappa(e.points), rel=1e-8)
        assert e.lambda_2d == pytest.approx(spread(b) ** 2, rel=1e-8)
        assert set(e.points) == {-p for p in e.points}
        value = {"lambda": e.lambda_2d, "kappa": e.kappa}[e.objective]
        assert 1 - 1e-5 < value / e.optimum < SLACK[e.objective, e.snap] + 1e-5
        assert e.snap == "rational" or all(p.denominator.bit_count() == 1 for p in e.points)


@pytest.mark.parametrize(("m", "r"), EVERY)
def test_one_entry_is_chosen(m: int, r: int) -> None:
    for objective in NAMES:
        (found,) = (e for e in entries(m, r) if e.objective == objective and e.chosen)
        assert entry(m, r, objective) == found
    assert chosen(m, r).points == entry(m, r).points
    assert entry(m, r).lambda_2d <= entry(m, r, "kappa").lambda_2d * (1 + 1e-9)


@pytest.mark.parametrize("m", PRINTED)
def test_kappa_is_as_printed(m: int) -> None:
    """The square Vandermonde of the finite points against that of the integers, to the last printed digit."""
    base, own = kappa(integers(m, 3)), kappa(nova(m))
    assert [agrees(v, t) for v, t in zip((base, own, base / own), PRINTED[m], strict=True)] == [True] * 3
    assert entry(m, 3, "kappa").kappa < own
    vandermonde = np.vander(np.array(nova(m), float), increasing=True)
    assert own == pytest.approx(float(np.linalg.cond(vandermonde)), rel=1e-9)


def agrees(value: float, text: str) -> bool:
    return f"{value:.{len(text.partition('.')[2])}f}" == text


def test_squared_gains() -> None:
    gains = [(kappa(integers(m, 3)) / kappa(nova(m))) ** 2 for m in PRINTED]
    assert [f"{g:.1f}" for g in gains] == ["8.5", "732.7", "172484.1"]


@pytest.mark.parametrize(("m", "at_most", "factor"), [(4, 4.77, 2), (6, 20.64, 7), (8, 113.9, 14)])
def test_lambda_is_below_that_of_nova_and_so_is_the_error(m: int, at_most: float, factor: float) -> None:
    ours, theirs = chosen(m, 3), cook_toom(m, 3, nova(m))
    assert spread(ours) ** 2 < at_most
    ratio = (spread(theirs) / spread(ours)) ** 2
    assert ratio > factor
    measured = study(theirs, "f16").error / study(ours, "f16").error
    assert measured == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize(("format_", "constant"), [("f32", 1.58e-7), ("f16", 3.6e-4), ("i8", 1.13e-2)])
def test_errors_are_proportional_to_lambda(format_: str, constant: float) -> None:
    sets = [k.b for m in (2, 4, 6, 8) for k in known(m, 3)]
    for b in (*sets, chosen(4, 3), chosen(8, 3), chosen(4, 5), chosen(2, 7), chosen_strided(4, 3, 2)):
        found = study(b, format_)
        assert found.nonfinite == 0 and found.error == pytest.approx(constant * spread(b) ** 2, rel=0.12)


@pytest.mark.parametrize("format_", ["f32", "f16", "i8"])
def test_the_study_of_networks_computes_a_convolution(format_: str) -> None:
    """Extents that no tile divides."""
    random = np.random.default_rng(5)
    x, w = random.standard_normal((1, 16, 13, 11)), random.standard_normal((8, 16, 3, 3))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    exact = np.einsum("nchwuv,ocuv->nohw", windows, w)
    found = study_winograd.convolved(chosen(4, 3), x, w, format_, is_scaled=True)
    error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert found.shape == exact.shape and error == pytest.approx(study(chosen(4, 3), format_).error, rel=0.5)


def test_fast_objectives_equal_the_exact_ones() -> None:
    sets = [k.b for k in known(6, 3)]
    floats = np.array([[float(p) for p in b.points] for b in sets])
    assert kappas(floats) == pytest.approx([kappa(b.points) for b in sets], rel=1e-12)
    assert spreads(floats, 6, 3) == pytest.approx([spread(b) for b in sets], rel=1e-12)
    assert OBJECTIVES["lambda"](floats, 6, 3) == pytest.approx([spread(b) ** 2 for b in sets], rel=1e-12)


@pytest.mark.parametrize(("m", "r", "objective"), [(4, 3, "lambda"), (2, 5, "kappa"), (6, 3, "lambda")])
def test_the_table_is_what_its_tool_makes(m: int, r: int, objective: str) -> None:
    lines = make_points.FILE.read_text().splitlines()[1:-1]
    assert len(lines) == len(EVERY) * 4
    for row in make_points.rows(m, r, objective):
        assert json.dumps(row) in [line.rstrip(",") for line in lines]


def test_a_search_without_time_still_ends_in_an_algorithm() -> None:
    found = search.search(8, 3, budget=0.0)
    assert not found.converged and len(found.points) == 9
    assert search.search(3, 2) == search.search(3, 2, seed=SEED)


def test_a_single_point_cannot_be_searched() -> None:
    with pytest.raises(ValueError, match=r"^F\(2, 1\) has 1 finite points; there is nothing to search below two$"):
        search.search(2, 1)


@pytest.mark.parametrize(("m", "r"), [(11, 3), (4, 8), (0, 3), (4, 0), (-1, 1)])
def test_beyond_the_table(m: int, r: int) -> None:
    with pytest.raises(ValueError, match=rf"^F\({m}, {r}\) (is beyond the table|needs at least one)"):
        chosen(m, r)


@pytest.mark.parametrize("stride", [0, 4])
def test_a_phase_without_a_tap(stride: int) -> None:
    with pytest.raises(ValueError, match=f"^3 taps at stride {stride}: every phase of a stride needs a tap"):
        chosen_strided(4, 3, stride)


def test_points_text() -> None:
    assert points_text(chosen(4, 3).points) == "0, ±2/3, ±3/2"
    assert points_text((Fraction(0), Fraction(1, 2), Fraction(1), Fraction(-1), Fraction(-3))) == "0, 1/2, ±1, -3"
    assert points_text(()) == "none"


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "points", "F(8,3)", "--error-study", "f16", "--show-matrices")
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert re.search(r"0, ±1, ±2, ±3, ±4 +196899\.68 +x1 +x1 ", lines["integers"])
    assert re.search(r"0, ±2/5, ±5/6, ±1, ±7/6 +474\.10 +x415\.3 +x172484 +1668\.82 ", lines["NOVA"])
    assert re.search(r" 320\.26 +1\.\de-01$", lines["Barabasz"])
    assert re.search(r" 113\.07 +4\.\de-02$", lines["convc, lambda"])
    assert "A^T, 8 x 10:" in lines and "B^T, 10 x 10:" in lines
    assert "convc, lambda: table; rational snap, seed 0, lambda 112.65 before the snap" in lines


@pytest.mark.parametrize(("m", "r"), [(4, 3), (6, 3), (2, 5), (3, 2)])
def test_the_document(m: int, r: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "points", f"F({m},{r})", "--error-study", "f32,i8")
    points = list(map(Fraction, found["points"]))
    b = cook_toom(m, r, points)
    assert [found[name] for name in ("AT", "G", "BT")] == [
        [[str(v) for v in row] for row in matrix] for matrix in (b.at, b.g, b.bt)
    ]
    assert found["kappa"] == kappa(points) and found["lambda_2d"] == spread(b) ** 2
    rows: dict[str, Any] = {row["name"]: row for row in found["sets"]}
    assert rows["convc, lambda"]["points"] == found["points"] and next(iter(rows)).startswith("integers")
    assert all(set(row["errors"]) == {"f32", "i8"} for row in rows.values())
    assert {name.startswith("NOVA") for name in rows} == ({True, False} if r == 3 else {False})


def test_the_verb_searches(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("points", " F( 4, 3 ) ", "--search", "--budget", "60s", "--objective", "kappa", "--snap", "dyadic")
    found = document(capsys, *argv)
    assert (found["found"], found["objective"], found["snap"]) == ("search", "kappa", "dyadic")
    assert tuple(map(Fraction, found["points"])) == entry(4, 3, "kappa", snap="dyadic").points
    assert document(capsys, "points", "F(4,3)", "--snap", "dyadic")["snap"] == "dyadic"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["F(8)"], "'F(8)' is no F(m,r); write it as \"F(4,3)\", in quotes, with m of 2 to 10 outputs and r of 2 to 7"),
        (["F(4x4,3x3)"], "'F(4x4,3x3)' is no F(m,r); write it as"),
        (["F(11,3)"], 'F(11,3) is out of range; write it as "F(4,3)", with m of 2 to 10 outputs and r of 2 to 7 taps'),
        (["F(4,1)"], "F(4,1) is out of range"),
        (["F(4,3)", "--budget", "3s"], "--budget bounds a search; add --search"),
        (["F(4,3)", "--error-study", "f64"], "'f64' is none of f32, f16, i8"),
        (["F(4,3)", "--objective", "rho"], "'rho' is not one of 'lambda', 'kappa'"),
        ([], "Missing argument 'F(m,r)'"),
    ],
)
def test_what_the_verb_refuses(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in complaint(capsys, "points", *argv, code=2)


def test_names_are_those_of_the_library() -> None:
    """The verb repeats them, so as to give its help without loading numpy."""
    from convc.numerics.study import FORMATS as KNOWN_FORMATS

    assert (tuple(OBJECTIVES), search.SNAPS, tuple(KNOWN_FORMATS)) == (NAMES, SNAPS, FORMATS)
