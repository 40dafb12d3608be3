"""Where the guards of Concat and Pad change their answer: boxes of the result inside which nothing is asked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.sym import detect_linear_equation
from tvm.tirx import Expr

from convc.lower.access import plain_int

Box = tuple[tuple[int, int], ...]
LARGEST_COUNT = 64
ORDERED = (tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def linear(x: Any, var: Expr) -> tuple[int, Any] | None:
    """(a, b) with x = a * var + b, a a number and b free of var; None where x is not of that form."""
    if isinstance(x, int):
        return 0, x
    found = [plain_int(v) for v in detect_linear_equation(x, [var])]
    return (found[0], found[1]) if found and isinstance(found[0], int) else None


def boxes(conditions: Sequence[Expr], axes: Sequence[Expr], extents: Sequence[int]) -> list[Box]:
    """[begin, end) per axis of the boxes that the conditions cut the index space of `axes` into, in row-major order.

    Conditions that do not compare one axis with a number cut nothing, nor do those of an axis with too many.
    """
    cuts = [{0, extent} for extent in extents]
    for condition in conditions:
        for atom in _atoms(condition):
            for axis, (var, extent) in enumerate(zip(axes, extents, strict=True)):
                cuts[axis] |= {at for at in _turns(atom, var) if 0 < at < extent}
    while _count(cuts) > LARGEST_COUNT:
        axis = max(range(len(cuts)), key=lambda a: len(cuts[a]))
        cuts[axis] = {0, extents[axis]}
    spans = [list(itertools.pairwise(sorted(c))) for c in cuts]
    return [tuple(box) for box in itertools.product(*spans)]


def _count(cuts: Sequence[set[int]]) -> int:
    total = 1
    for c in cuts:
        total *= max(len(c) - 1, 1)
    return total


def _atoms(condition: Expr) -> list[Expr]:
    found, stack = [], [condition]
    while stack:
        at = stack.pop()
        if isinstance(at, tirx.And | tirx.Or):
            stack += [at.a, at.b]
        elif isinstance(at, tirx.Not):
            stack.append(at.a)
        elif isinstance(at, (*ORDERED, tirx.EQ, tirx.NE)):
            found.append(at)
    return found


def _turns(atom: Any, var: Expr) -> set[int]:
    """The values of `var` from which on the comparison may answer differently than one before."""
    form = linear(atom.a - atom.b, var)
    if form is None or form[0] == 0 or not isinstance(form[1], int):
        return set()
    a, b = form
    zero = -b // a  # the last value at or before which a * var + b is 0, for either sign of a
    return {zero, zero + 1} if -b % a == 0 else {zero + 1}
