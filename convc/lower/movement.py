"""Operations that move elements, as maps from an index of the result to indices of the arguments.

A rule is a generator: it asks for values of its arguments and returns its own value, so that whoever evaluates a chain
of nodes needs no recursion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx import Expr

from convc.ir import Broadcast, Concat, Gather, Node, Pad, Reshape, Resize, Slice, Transpose
from convc.lower.access import Simplify, align, least, most
from convc.lower.interpolate import resize
from convc.lower.vector_math import dtype_of, let


@dataclass(frozen=True)
class Ask:
    """The value of `node` at `index`; where `guard` is given the index is inside only where it holds."""

    node: Node
    index: tuple[Any, ...]
    guard: Expr | None = None


Steps = Generator[Ask, Expr, Expr]
Rule = Callable[[Any, Sequence[Any], Simplify], Steps]


def choose(condition: Any, value: Callable[[], Any] | Any, otherwise: Any) -> Any:
    """`value` where `condition` holds, evaluating only one of the two; decided here where the condition is known."""
    if isinstance(condition, bool):
        return value if condition else otherwise
    return tirx.if_then_else(condition, value, otherwise)


def _reshape(node: Reshape, index: Sequence[Any], simplify: Simplify) -> Steps:
    return (yield Ask(node.x, tuple(reshape_index(index, node.to, node.x.shape, simplify))))


def reshape_index(index: Sequence[Any], shape: Sequence[int], source: Sequence[int], simplify: Simplify) -> list[Any]:
    """The index into `source` of the element at `index` of `shape`, both row-major; what corresponds passes through."""
    found: list[Any] = []
    if math.prod(source) == 0:
        return [0] * len(source)
    for here, there in _matching_axes(shape, source):
        if len(here) == len(there) == 1:
            found.append(index[here[0]])
            continue
        offset: Any = 0
        for axis in here:
            offset = offset * shape[axis] + index[axis]
        rest: list[Any] = []
        for axis in reversed(there):
            rest.append(simplify(offset % source[axis]) if axis != there[0] else offset)
            offset = simplify(offset // source[axis])
        found.extend(reversed(rest))
    return found


def _matching_axes(shape: Sequence[int], source: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes of both shapes with equal products, in order."""
    runs, i, j = [], 0, 0
    while i < len(shape) or j < len(source):
        here, there, a, b = [], [], 1, 1
        if i < len(shape) and j < len(source):
            here, there, a, b = [i], [j], shape[i], source[j]
            i, j = i + 1, j + 1
            while a != b:
                if a < b:
                    here.append(i)
                    a, i = a * shape[i], i + 1
                else:
                    there.append(j)
                    b, j = b * source[j], j + 1
        elif i < len(shape):
            here, i = [i], i + 1
        else:
            there, j = [j], j + 1
        runs.append((here, there))
    return [(h, t) for h, t in runs if t]


def _transpose(node: Transpose, index: Sequence[Any], simplify: Simplify) -> Steps:
    source = [index[node.perm.index(axis)] for axis in range(len(node.perm))]
    return (yield Ask(node.x, tuple(source)))


def _slice(node: Slice, index: Sequence[Any], simplify: Simplify) -> Steps:
    source = (i * s + b for i, s, b in zip(index, node.step, node.begin, strict=True))
    return (yield Ask(node.x, tuple(map(simplify, source))))


def _broadcast(node: Broadcast, index: Sequence[Any], simplify: Simplify) -> Steps:
    return (yield Ask(node.x, tuple(align(index, node.x.shape))))


def _gather(node: Gather, index: Sequence[Any], simplify: Simplify) -> Steps:
    """An index from outside may be anything: it is held inside the axis, so that nothing else in memory is read."""
    axis, rank, extent = node.axis, len(node.indices.shape), node.x.shape[node.axis]
    given = yield Ask(node.indices, tuple(index[axis : axis + rank]))
    wide = given if dtype_of(given) == "int64" else tirx.Cast("int64", given)
    inside = let(wide, lambda i: tirx.max(tirx.min(tirx.Select(i < 0, i + extent, i), extent - 1), 0))
    at = let(tirx.Cast("int32", inside), lambda i: i)
    return (yield Ask(node.x, (*index[:axis], at, *index[axis + rank :])))


def _concat(node: Concat, index: Sequence[Any], simplify: Simplify) -> Steps:
    at, begin = index[node.axis], 0
    parts: list[tuple[Any, Expr]] = []
    for k, x in enumerate(node.xs, start=1):
        end = begin + x.shape[node.axis]
        inside = True if k == len(node.xs) else simplify(at < end)
        if inside is not False and end > begin:
            source = (*index[: node.axis], simplify(at - begin), *index[node.axis + 1 :])
            value = yield Ask(x, source, None if inside is True else inside)
            parts.append((inside, value))
        if inside is True:
            break
        begin = end
    found = parts[-1][1]
    for inside, value in reversed(parts[:-1]):
        found = choose(inside, value, found)
    return found


def _pad(node: Pad, index: Sequence[Any], simplify: Simplify) -> Steps:
    if node.mode != "constant":
        axes = zip(index, node.pad, node.x.shape, strict=True)
        return (yield Ask(node.x, tuple(_folded(node.mode, i, p, e, simplify) for i, p, e in axes)))
    inside: Any = True
    source = [simplify(i - before) for i, (before, _) in zip(index, node.pad, strict=True)]
    for i, (before, after), extent in zip(source, node.pad, node.x.shape, strict=True):
        inside = _both(inside, simplify(i >= 0) if before > 0 else True)
        inside = _both(inside, simplify(i < extent) if after > 0 else True)
    outside = tirx.const(_as_type(node.value, node.dtype), node.dtype)
    if inside is False or 0 in node.x.shape:
        return outside
    value = yield Ask(node.x, tuple(source), None if inside is True else inside)
    return choose(inside, value, outside)


def _as_type(value: float, dtype: str) -> float | int | bool:
    return bool(value) if dtype == "bool" else int(value) if "int" in dtype else value


def _both(a: Any, b: Any) -> Any:
    if isinstance(a, bool):
        return b if a else False
    if isinstance(b, bool):
        return a if b else False
    return tirx.And(a, b)


def _folded(mode: str, i: Any, pad: tuple[int, int], extent: int, simplify: Simplify) -> Any:
    """Where along an axis a padded element comes from. Negative pads crop first."""
    first, (before, after) = max(-pad[0], 0), (max(p, 0) for p in pad)
    kept = extent - first - max(-pad[1], 0)
    at = simplify(i - before)
    if before or after:
        match mode:
            case "edge":
                at = least(most(at, 0), kept - 1)
            case "wrap":
                at = at % kept
            case _:
                low = choose(simplify(at < 0), -at, at)
                at = choose(simplify(at >= kept), 2 * (kept - 1) - at, low)
    return simplify(at + first)


def _resize(node: Resize, index: Sequence[Any], simplify: Simplify) -> Steps:
    terms, combine = resize(node, index, simplify)
    values = []
    for term in terms:
        values.append((yield Ask(node.x, tuple(term))))
    return combine(values)


RULES: dict[type[Node], Rule] = {
    Reshape: _reshape,
    Transpose: _transpose,
    Slice: _slice,
    Broadcast: _broadcast,
    Gather: _gather,
    Concat: _concat,
    Pad: _pad,
    Resize: _resize,
}
