"""Loop nests written out statement by statement, for kernels whose order of evaluation is known from the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, tirx
from tvm.s_tir import Schedule
from tvm.sym import Analyzer
from tvm.tirx import Expr, Stmt

from convc.ir import Node, TensorType
from convc.layout import Layout
from convc.lower.access import Access, align, plain_int, within
from convc.lower.names import vectorize
from convc.lower.vector_math import flat
from convc.target import Target

# Below this many elements of work a parallel region costs more than it saves.
PARALLEL_WORK = 32_768
# A parallel loop needs a few times as many iterations as there are threads; machines have up to about a hundred.
PARALLEL_ITERATIONS = 256


@dataclass(frozen=True, eq=False)
class Memory:
    """A flat buffer that holds a tensor of `type` in `layout`."""

    buffer: Any
    type: TensorType
    layout: Layout

    @property
    def strides(self) -> tuple[int, ...]:
        extents = self.layout.physical(self.type.shape)
        return tuple(math.prod(extents[k + 1 :]) for k in range(len(extents)))

    @property
    def channels(self) -> int | None:
        """Channels with the lanes that pad the last block."""
        return None if self.layout.block == 1 else self.layout.physical(self.type.shape)[1] * self.layout.block

    def offset(self, index: Sequence[Any]) -> Any:
        """Elements from the start to the element at logical `index`."""
        return sum((i * s for i, s in zip(self.layout.index(index), self.strides, strict=True)), start=0)


@dataclass(eq=False)
class Nest:
    """What statements are written with: the ranges of the loop variables so far, and the target."""

    target: Target
    analyzer: Analyzer = field(default_factory=Analyzer)

    @property
    def alone(self) -> bool:
        """Whether each element is computed for itself, so that loops around elements, not vectors, are outermost."""
        return False

    def simplify(self, x: Any) -> Any:
        return x if isinstance(x, int | bool) else plain_int(self.analyzer.simplify(x))

    def lanes(self, *dtypes: str, vectors: int = 2) -> int:
        """Lanes of a vector loop: `vectors` registers of the widest of `dtypes`."""
        size = max(4, *(np.dtype(d).itemsize for d in dtypes if d not in ("bfloat16", "int4", "uint4")))
        return vectors * self.target.lanes * 4 // size

    def variable(self, extent: int, name: str = "i", *, begin: int = 0) -> Expr:
        var = tirx.Var(name, "int32")
        self.analyzer.bind(var, tvm.ir.Range(begin, begin + extent))
        return var

    def loop(self, extent: int, body: Callable[[Any], Stmt], *, kind: str = "serial", begin: int = 0) -> Stmt:
        """`body` for each of `extent` values from `begin`; a loop of one is no loop."""
        if extent == 1:
            return body(begin)
        var = self.variable(extent, begin=begin)
        return tirx.For(var, number(begin), number(extent), KINDS[kind], body(var))

    def vector(self, width: int, body: Callable[[Any], Stmt]) -> Stmt:
        return self.loop(width, body, kind="vectorized")

    def strips(self, runs: Sequence[tuple[Any, int, int]], body: Callable[[Any, int], Stmt]) -> Stmt:
        """body(first, lanes) for every vector of `runs` (first, count, lanes)."""

        def strip(first: Any, count: int, lanes: int) -> Stmt:
            return self.loop(count, lambda i: body(first + i * lanes, lanes))

        return block([strip(*run) for run in runs])

    def elements(self, runs: Sequence[tuple[Any, int, int]], body: Callable[[Any], Stmt]) -> Stmt:
        """body(position) in vectors, for every element of `runs`."""

        def vector(first: Any, lanes: int) -> Stmt:
            return self.vector(lanes, lambda lane: body(self.simplify(first + lane)))

        return self.strips(runs, vector)

    def unrolled(self, extent: int, body: Callable[[int], Stmt]) -> Stmt:
        return block([body(i) for i in range(extent)])

    def grid(self, extents: Sequence[int], body: Callable[[list[Any]], Stmt], *, work: int = 0) -> Stmt:
        """Loops over `extents`, outermost first; as many of them as it takes are one parallel loop where `work`
        (elements in all) is worth it."""
        if work < PARALLEL_WORK:
            return self._serial(list(extents), [], body)
        fused, count = 0, 1
        while fused < len(extents) and count < PARALLEL_ITERATIONS:
            count *= extents[fused]
            fused += 1
        outer, inner = list(extents[:fused]), list(extents[fused:])

        def iteration(p: Any) -> Stmt:
            return self._decoded(p, outer, lambda ids: self._serial(inner, ids, body))

        return self.loop(count, iteration, kind="parallel")

    def _serial(self, extents: list[int], ids: list[Any], body: Callable[[list[Any]], Stmt]) -> Stmt:
        if not extents:
            return body(ids)
        return self.loop(extents[0], lambda i: self._serial(extents[1:], [*ids, i], body))

    def _decoded(self, p: Any, extents: list[int], body: Callable[[list[Any]], Stmt]) -> Stmt:
        """`body` with the indices that `p` counts, each named once per iteration."""
        if sum(e > 1 for e in extents) <= 1:
            return body([p if e > 1 else 0 for e in extents])
        binds, ids, rest = [], [], p
        for k, extent in enumerate(extents):
            size = math.prod(extents[k + 1 :])
            if extent == 1:
                ids.append(0)
                continue
            name = self.variable(extent)
            binds.append(tirx.Bind(name, self.simplify(rest // size if size > 1 else rest)))
            rest = rest % size if size > 1 else 0
            ids.append(name)
        return block([*binds, body(ids)])

    def read(self, memory: Memory) -> Access:
        """Reads by logical index, with numpy's broadcasting."""
        return lambda index: self.load(memory, self.offset(memory, index))

    def inside(self, memory: Memory, index: Sequence[Any]) -> list[Any]:
        """The index of `memory` that `index` reads."""
        shape = memory.type.shape
        at = within(align(index, shape), shape, rank=len(index), channels=memory.channels)
        return [self.simplify(i) for i in at]

    def offset(self, memory: Memory, index: Sequence[Any]) -> Any:
        return self.simplify(memory.offset(self.inside(memory, index)))

    def load(self, memory: Memory, offset: Any) -> Expr:
        return tirx.BufferLoad(memory.buffer, [as_index(offset)])

    def store(self, memory: Memory, index: Sequence[Any], value: Callable[[], Expr]) -> Stmt:
        return put(memory.buffer, self.simplify(memory.offset(index)), value)


KINDS: Mapping[str, Any] = {
    "serial": tirx.ForKind.SERIAL,
    "parallel": tirx.ForKind.PARALLEL,
    "vectorized": tirx.ForKind.VECTORIZED,
}


def number(value: int) -> Expr:
    return tirx.const(value, "int32")


def as_index(value: Any) -> Expr:
    return number(value) if isinstance(value, int) else value


def block(statements: Sequence[Stmt]) -> Stmt:
    found = [s for s in statements if s is not None]
    if not found:
        return tirx.Evaluate(number(0))
    return found[0] if len(found) == 1 else tirx.SeqStmt(found)


def put(buffer: Any, place: Any, value: Callable[[], Expr]) -> Stmt:
    """buffer[place] = value()."""
    return tirx.BufferStore(buffer, flat(value), [as_index(place)])


def get(buffer: Any, place: Any) -> Expr:
    return tirx.BufferLoad(buffer, [as_index(place)])


def scratch(count: int, dtype: str, name: str = "t") -> tuple[Any, Stmt]:
    """A temporary of `count` elements and the statement that makes it."""
    buffer = tirx.decl_buffer((count,), dtype, name)
    return buffer, tirx.AllocBuffer(buffer)


def pieces(extent: int, width: int, *, begin: int = 0) -> list[tuple[int, int, int]]:
    """(first, count, lanes) of the vector loops that cover `extent` elements: full ones, then quarters for the rest."""
    found, at, left = [], begin, extent
    while left:
        if count := left // width:
            found.append((at, count, width))
            at, left = at + count * width, left - count * width
        width = max(width // 4, 1)
    return found


def unmerge(nest: Nest, shape: Sequence[int], axes: Sequence[Sequence[int]], names: Sequence[Any]) -> list[Any]:
    """The index into `shape` of an index of its axes merged in runs `axes`."""
    found: list[Any] = []
    for axis, name in zip(axes, names, strict=True):
        rest, index = name, []
        for a in reversed(axis):
            whole = a == axis[0]
            index.append(rest if whole else rest % shape[a])
            rest = rest if whole else rest // shape[a]
        found.extend(nest.simplify(i) for i in reversed(index))
    return found


def parallel_parts(extent: int, outer: int) -> int:
    """Into how many equal parts an axis below `outer` iterations is cut so that threads find enough of them."""
    if outer >= PARALLEL_ITERATIONS:
        return 1
    fitting = [d for d in range(1, extent + 1) if extent % d == 0 and outer * d <= 4 * PARALLEL_ITERATIONS]
    return next((d for d in fitting if outer * d >= PARALLEL_ITERATIONS), fitting[-1])


def function(params: Sequence[tuple[TensorType, Layout]], body: Callable[[list[Memory]], Stmt]) -> Schedule:
    """The function "main" over buffers of these types and layouts, the result last."""
    outside, inside, views = [], [], []
    for k, (type_, layout) in enumerate(params):
        name = "y" if k == len(params) - 1 else f"x{k}"
        shape = layout.physical(type_.shape)
        outside.append(tirx.decl_buffer(shape, type_.dtype, name))
        flat = tirx.decl_buffer((max(math.prod(shape), 1),), type_.dtype, f"{name}_flat")
        views.append(tirx.DeclBuffer(flat, data=tirx.buffer_data(outside[-1])))
        inside.append(Memory(flat, type_, layout))
    root = s_tir.SBlock([], [], [], "root", block([*views, body(inside)]))
    func = tirx.PrimFunc(outside, s_tir.SBlockRealize([], True, root))
    func = func.with_attr({"global_symbol": "main", "s_tir": True, "tirx.noalias": True})
    return Schedule(vectorize()(tvm.IRModule({"main": func})))


def leaves_of(nest: Nest, memories: Mapping[Node, Memory]) -> dict[Node, Access]:
    return {node: nest.read(memory) for node, memory in memories.items()}
