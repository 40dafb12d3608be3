"""Search the points that convc uses, and write them to convc/numerics/points.json: a row per line, a few minutes.

python tools/make_points.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import convc.numerics
from convc.numerics.bilinear import Bilinear, cook_toom, integral
from convc.numerics.objective import OBJECTIVES, kappa, spread
from convc.numerics.points import OUTPUTS, TAPS
from convc.numerics.search import SNAPS, Found, search

FILE = Path(convc.numerics.__file__).with_name("points.json")
# A dyadic set is chosen up to this far above the best of all fractions, where it needs no larger whole numbers.
DYADIC_SLACK = 1.03


def rows(m: int, r: int, objective: str) -> list[dict[str, Any]]:
    """What the search finds with each snap, the chosen one marked."""
    found = {snap: search(m, r, objective=objective, snap=snap) for snap in SNAPS}
    best = preferred(found["rational"], found["dyadic"]).snap
    return [row(f, chosen=f.snap == best) for f in found.values()]


def preferred(rational: Found, dyadic: Found) -> Found:
    is_near = dyadic.value <= DYADIC_SLACK * rational.value
    return dyadic if is_near and largest(dyadic) <= largest(rational) else rational


def largest(found: Found) -> int:
    """Of the whole numbers that the transforms of inputs and products hold once their rows are coprime."""
    b = integral(cook_toom(found.m, found.r, found.points))
    return max(abs(v.numerator) for matrix in (b.at, b.bt) for row in matrix for v in row)


def row(found: Found, *, chosen: bool) -> dict[str, Any]:
    b: Bilinear = cook_toom(found.m, found.r, found.points)
    return {
        "m": found.m, "r": found.r, "objective": found.objective, "snap": found.snap, "chosen": chosen,
        "points": [str(p) for p in found.points], "kappa": rounded(kappa(found.points)),
        "lambda_2d": rounded(spread(b) ** 2), "optimum": rounded(found.optimum, digits=6), "seed": found.seed,
    }  # fmt: skip


def rounded(value: float, *, digits: int = 10) -> float:
    return float(f"{value:.{digits}g}")


def main() -> None:
    lines = []
    for m in OUTPUTS:
        for r in TAPS:
            lines += [json.dumps(found) for objective in OBJECTIVES for found in rows(m, r, objective)]
            print(f"F({m}, {r})", flush=True)
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
