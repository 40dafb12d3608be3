"""Points that others use, to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from convc.numerics.bilinear import Bilinear, cook_toom

NOVA = "Lohia, NOVA (arXiv:2512.18453)"
LAVIN = "Lavin and Gray (CVPR 2016, arXiv:1509.09308)"
WINCNN = "Lavin, wincnn (github.com/andravin/wincnn)"
BARABASZ = "Barabasz et al. (ACM TOMS 2020, arXiv:1803.10986)"
# By m and r: short name, source, points.
PUBLISHED = (
    (4, 3, "NOVA", NOVA, "0 5/6 -5/6 7/6 -7/6"),
    (6, 3, "NOVA", NOVA, "0 3/5 -3/5 1 -1 7/6 -7/6"),
    (8, 3, "NOVA", NOVA, "0 2/5 -2/5 5/6 -5/6 1 -1 7/6 -7/6"),
    (2, 3, "Lavin", LAVIN, "0 1 -1"),
    (4, 3, "Lavin", LAVIN, "0 1 -1 2 -2"),
    (6, 3, "Lavin", WINCNN, "0 1 -1 2 -2 1/2 -1/2"),
    (4, 3, "Barabasz", BARABASZ, "0 1/2 -1 1 -3"),
    (6, 3, "Barabasz", BARABASZ, "0 -1/2 1/2 -1 1 -2 2"),
    (8, 3, "Barabasz", BARABASZ, "0 -1/4 -1/2 1/2 -1 1 -2 2 4"),
    (10, 3, "Barabasz", BARABASZ, "0 -1/4 -1/2 1/2 3/4 -1 1 -4/3 -2 2 4"),
)
INTEGERS = "integers"


@dataclass(frozen=True)
class Known:
    """F(m, r) at points that go by a name, and whose they are."""

    name: str
    source: str
    b: Bilinear


def integers(m: int, r: int) -> tuple[Fraction, ...]:
    """0, 1, -1, 2, -2, ..., which NOVA and others call standard."""
    return tuple(Fraction((k + 1) // 2 * (1 if k % 2 else -1)) for k in range(m + r - 2))


def known(m: int, r: int) -> list[Known]:
    """The integers first, then what was published for F(m, r); a set that goes by several names comes once."""
    found = {frozenset(integers(m, r)): Known(INTEGERS, "", cook_toom(m, r, integers(m, r)))}
    for outputs, taps, name, source, text in PUBLISHED:
        if (outputs, taps) == (m, r):
            points = tuple(map(Fraction, text.split()))
            had = found.get(frozenset(points), Known("", "", cook_toom(m, r, points)))
            names, sources = (", ".join(filter(None, pair)) for pair in ((had.name, name), (had.source, source)))
            found[frozenset(points)] = Known(names, sources, had.b)
    return list(found.values())
