"""Resize nearest and linear as expressions: where an output element reads, and with which weights, in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx import Expr

from convc.ir import Resize
from convc.ir.node import Array
from convc.lower.access import Simplify, least, most
from convc.lower.vector_math import at_least, at_most, let, literal, nearest


def is_map(node: Resize) -> bool:
    """Whether each output element reads so few inputs that an expression serves: nearest, or linear between two."""
    return node.mode == "nearest" or (node.mode == "linear" and not node.antialias and not node.exclude_outside)


def resize(
    node: Resize, index: Sequence[Any], simplify: Simplify
) -> tuple[list[list[Any]], Callable[[Sequence[Expr]], Expr]]:
    """The indices of x that the element at `index` reads, and what makes the element of their values."""
    axes, source = node.resized_axes, list(index)
    reads: list[list[tuple[Any, Any]]] = []
    for axis in axes:
        i = simplify(index[axis])
        if node.mode == "nearest":
            reads.append([(lookup(node.taps(axis)[0][:, 0], i, _slopes(node, axis), simplify), None)])
        else:
            reads.append(_linear(node, axis, i, simplify))
    terms = []
    for corner in itertools.product(*reads):
        at = list(source)
        for axis, (where, _) in zip(axes, corner, strict=True):
            at[axis] = where
        terms.append(at)
    return terms, lambda values: outside_of(node, index, _weighted(node, reads, values), simplify)


def _linear(node: Resize, axis: int, i: Any, simplify: Simplify) -> list[tuple[Any, Any]]:
    index, weight = node.taps(axis)
    first, second = (lookup(index[:, t], i, _slopes(node, axis), simplify) for t in (0, 1))
    high = fraction(index, weight, i, _slopes(node, axis), dtype=wide_of(node), simplify=simplify)
    return [(first, literal(1, wide_of(node)) - high), (second, high)]


def wide_of(node: Resize) -> str:
    """What the interpolation is computed in."""
    return "float32" if node.dtype in ("float16", "bfloat16", "float32") else "float64"


def _weighted(node: Resize, reads: Sequence[Sequence[tuple[Any, Any]]], values: Sequence[Expr]) -> Expr:
    """One axis after the other, the last first, as corners come in row-major order."""
    if node.mode == "nearest" or not reads:
        return values[0]
    wide = wide_of(node)
    row = [v if node.dtype == wide else tirx.Cast(wide, v) for v in values]
    for taps in reversed(reads):
        low, high = (let(weight, lambda name: name) for _, weight in taps)
        row = [a * low + b * high for a, b in zip(row[::2], row[1::2], strict=True)]
    return rounded(node.dtype, row[0])


def rounded(dtype: str, value: Expr) -> Expr:
    """Integers: to the nearest, half to even, held inside the type."""
    if "int" not in dtype:
        return tirx.Cast(dtype, value)
    span = np.iinfo(dtype)
    return tirx.Cast(dtype, at_most(at_least(nearest(value), float(span.min)), float(span.max)))


def outside_of(node: Resize, index: Sequence[Any], value: Expr, simplify: Simplify) -> Expr:
    """`value`, or the extrapolation value where `index` lies outside the input."""
    if node.coordinate != "tf_crop_and_resize":
        return value
    outside: Any = False
    for axis in node.resized_axes:
        mask = node.outside(axis)
        for begin, end in _runs(mask):
            here = tirx.all(index[axis] >= begin, index[axis] < end)
            outside = here if outside is False else tirx.any(outside, here)
    known = outside if outside is False else simplify(outside)
    if isinstance(known, bool):
        return literal(node.extrapolation, node.dtype) if known else value
    return tirx.Select(known, literal(node.extrapolation, node.dtype), value)


def _runs(mask: Array) -> list[tuple[int, int]]:
    """[begin, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _slopes(node: Resize, axis: int) -> list[Fraction]:
    """Input elements per output element, in the forms that the coordinate maps come to."""
    extent, to = node.x.shape[axis], node.to[axis]
    found = [Fraction(extent, to), Fraction(1 / node.scale[axis]).limit_denominator(1 << 12)]
    if to > 1:
        found.append(Fraction(extent - 1, to - 1))
    return list(dict.fromkeys(found))


def lookup(values: Array, i: Any, slopes: Sequence[Fraction], simplify: Simplify) -> Any:
    """values[i] of a table of integers: clip(floor(slope * i + offset)) where that is what it holds, else bisection."""
    if isinstance(i, int):
        return int(values[i])
    low, high = int(values.min()), int(values.max())
    if low == high:
        return low
    for slope in slopes:
        found = floor_form(values, slope)
        if found is not None:
            p, q, r = found
            ends = (q // r, (p * (len(values) - 1) + q) // r)
            at = simplify((i * p + q) // r)
            at = at if min(ends) >= low else most(at, low)
            return at if max(ends) <= high else least(at, high)
    return _bisect([int(v) for v in values], i)


def floor_form(values: Array, slope: Fraction) -> tuple[int, int, int] | None:
    """(p, q, r) with clip((p*i + q) // r, min, max) = values[i] for every i, in 32 bits; None where there is none."""
    low, high, i = values.min(), values.max(), np.arange(len(values))
    for refine in (1, 2, 4, 8):
        p, r = slope.numerator * refine, slope.denominator * refine
        if (abs(p) * len(values) + 2 * r) * 2 >= 2**31:
            return None
        # At the ends, where the table is clipped, only one of the two inequalities has to hold.
        least_q = np.where(values > low, r * values - p * i, -(2**40)).max()
        most_q = np.where(values < high, r * values + r - 1 - p * i, 2**40).min()
        if least_q <= most_q and abs(least_q) < 2**30:
            q = int(least_q) if least_q > -(2**40) else int(most_q)
            if np.array_equal(np.clip((p * i + q) // r, low, high), values):
                return p, q, r
    return None


def _bisect(values: Sequence[float], i: Any, *, dtype: str = "int32", begin: int = 0) -> Any:
    if len(set(values)) == 1:
        return tirx.const(values[0], dtype)
    half = len(values) // 2
    first = _bisect(values[:half], i, dtype=dtype, begin=begin)
    return tirx.Select(i < begin + half, first, _bisect(values[half:], i, dtype=dtype, begin=begin + half))


def fraction(
    index: Array, weight: Array, i: Any, slopes: Sequence[Fraction], *, dtype: str, simplify: Simplify
) -> Expr:
    """The weight of the second tap at i. Where both taps are one element any weight will do."""
    if isinstance(i, int):
        return literal(float(weight[i, 1]), dtype)
    free, steps = index[:, 0] == index[:, 1], np.arange(len(weight))
    for slope in slopes:
        for refine in (1, 2, 4):
            p, r = slope.numerator * refine, slope.denominator * refine
            start = np.flatnonzero(~free)
            if not len(start) or (abs(p) * len(weight) + 2 * r) * 2 >= 2**31:
                break
            q = int(round(r * float(weight[start[0], 1]))) - p * int(start[0])
            if np.all(free | (np.abs((p * steps + q) % r / r - weight[:, 1]) < 1e-9)):
                return tirx.Cast(dtype, simplify((i * p + q) % r)) * literal(1 / r, dtype)
    return _bisect([float(w) for w in weight[:, 1]], i, dtype=dtype)
