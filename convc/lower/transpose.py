"""Transposing a square of vectors in registers: n log2(n) shuffles of two vectors, each one instruction.

Source: the 8 x 8 network of unpacks and permutes in Intel's optimization reference manual, for any power of two: pairs
of elements, pairs of pairs, then runs of four as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx import Expr, Stmt

RUN = 4  # elements that an unpack stays within: 128 bits of 32 each


def fits(lanes: int, *dtypes: str) -> bool:
    """Whether vectors of `lanes` elements of these types are turned by the network."""
    return lanes >= RUN and lanes & (lanes - 1) == 0 and all(d in ("float32", "int32", "uint32") for d in dtypes)


def transpose(rows: Sequence[Expr], dtype: str) -> tuple[list[Stmt], list[Expr]]:
    """The columns of a square of vectors, and the statements that make them: every step gets a name, as steps share."""
    lanes = len(rows)
    made: list[Stmt] = []

    def named(value: Expr) -> Expr:
        name = tirx.Var("v", f"{dtype}x{lanes}")
        made.append(tirx.Bind(name, value))
        return name

    def both(a: Expr, b: Expr, unit: int) -> tuple[Expr, Expr]:
        """Units of a and b in turn: the first half of every run of four, then the second; or whole runs, the even ones
        of both vectors, then the odd ones."""
        low, high = _indices(lanes, unit)
        return named(tirx.Shuffle([a, b], low)), named(tirx.Shuffle([a, b], high))

    vectors = [named(row) for row in rows]
    for unit in (1, 2):
        for i in range(0, lanes, 2 * unit):
            for k in range(i, i + unit):
                vectors[k], vectors[k + unit] = both(vectors[k], vectors[k + unit], unit)
    columns: list[Expr] = [None] * lanes
    for k in range(RUN):
        # Of rows 4i..4i+3, run q of vector k holds column 4q + (k with its two bits exchanged).
        runs = {0: [vectors[i + k] for i in range(0, lanes, RUN)]}
        step = 1
        while len(runs[0]) > 1:
            split: dict[int, list[Expr]] = {}
            for first, group in runs.items():
                pairs = [both(a, b, RUN) for a, b in zip(group[::2], group[1::2], strict=True)]
                split[first], split[first + step] = [p[0] for p in pairs], [p[1] for p in pairs]
            runs, step = split, 2 * step
        for q, (column,) in runs.items():
            columns[RUN * q + (k % 2 * 2 + k // 2)] = column
    return made, columns


def _indices(lanes: int, unit: int) -> tuple[list[int], list[int]]:
    """Which elements of two vectors one after the other make the two results of a step."""
    if unit == RUN:
        even = [e for source in (0, lanes) for e in range(source, source + lanes) if e // RUN % 2 == 0]
        return even, [e + RUN for e in even]
    low = []
    for run in range(0, lanes, RUN):
        for at in range(0, RUN // 2, unit):
            low += [source + run + at + e for source in (0, lanes) for e in range(unit)]
    return low, [e + RUN // 2 for e in low]
