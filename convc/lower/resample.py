"""Resize whose elements read many inputs (cubic, antialiased): one axis after the other, from tables of taps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.ir import Resize, TensorType
from convc.layout import PLAIN
from convc.lower.core import Core
from convc.lower.elementwise import cast
from convc.lower.gpu_nest import GpuNest
from convc.lower.interpolate import outside_of, rounded, wide_of
from convc.lower.nest import Memory, block, get, pieces, put, scratch
from convc.lower.vector_math import literal

Read = Callable[[Sequence[Any]], Expr]


def write_resample(core: Core) -> Stmt:
    node = core.node
    assert isinstance(node, Resize)
    dtype, shape = wide_of(node), list(node.x.shape)
    read: Read = lambda index: cast(core.args[0].value(index), dtype)  # noqa: E731
    statements: list[Stmt] = []
    for axis in node.resized_axes:
        shape[axis] = node.to[axis]
        passed, made = _pass(core, read, axis, tuple(shape), dtype)
        statements += made
        read = core.nest.read(passed)

    def write(index: Sequence[Any]) -> Stmt:
        return core.store(index, lambda: outside_of(node, index, rounded(node.dtype, read(index)), core.nest.simplify))

    return block([*statements, _each(core, node.to, core.nest.lanes(dtype), write)])


def _pass(core: Core, read: Read, axis: int, shape: tuple[int, ...], dtype: str) -> tuple[Memory, list[Stmt]]:
    """The tensor of `shape` that has `axis` resized, and the statements that make it."""
    node, nest = core.node, core.nest
    assert isinstance(node, Resize)
    index, weight = node.taps(axis)
    count = index.shape[1]
    places, made = _table(core, index, "int32")
    weights, also = _table(core, weight, dtype)
    to, allocated = scratch(math.prod(shape), dtype, "resized")
    memory = Memory(to, TensorType(shape, dtype), PLAIN)

    def write(at: Sequence[Any]) -> Stmt:
        def value() -> Expr:
            total = literal(0, dtype)
            for t in range(count):
                tap = nest.simplify(at[axis] * count + t)
                total = total + read([*at[:axis], get(places, tap), *at[axis + 1 :]]) * get(weights, tap)
            return total

        return nest.store(memory, at, value)

    # Along the last axis vectors would gather by a vector of table entries, which TVM's region analysis refuses.
    lanes = 1 if axis == len(shape) - 1 else nest.lanes(dtype)
    return memory, [made, also, allocated, _each(core, shape, lanes, write)]


def _table(core: Core, values: np.ndarray[Any, Any], dtype: str) -> tuple[Any, Stmt]:
    """A table in memory, written entry by entry: few next to the elements that read it."""
    flat = values.reshape(-1)
    buffer, made = scratch(len(flat), dtype, "table")
    entries = [put(buffer, i, partial(tirx.const, v.item(), dtype)) for i, v in enumerate(flat)]
    if isinstance(core.nest, GpuNest):
        return buffer, block([made, core.nest.blocks(1, 1, lambda _group, _thread: block(entries))])
    return buffer, block([made, *entries])


def _each(core: Core, shape: Sequence[int], lanes: int, write: Callable[[Sequence[Any]], Stmt]) -> Stmt:
    """`write` at every index of `shape`, in vectors along the last axis."""
    nest, (*outer, last) = core.nest, shape
    if nest.alone:
        return nest.grid(shape, write)

    def body(ids: Sequence[Any]) -> Stmt:
        return nest.elements(pieces(last, lanes), lambda at: write([*ids, at]))

    return nest.grid(outer, body, work=math.prod(shape))
