"""Strips on GPUs: a few elements in a row of one thread, moved by one access where it can be proven that they lie side
by side and begin at a multiple of its size. Between loads and store they are computed one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.ir import Node
from convc.lower.boxes import linear
from convc.lower.core import Core
from convc.lower.gpu_nest import GpuNest
from convc.lower.nest import Memory, as_index, block, get, number, put, scratch
from convc.lower.source import Source, free_variables, trace

ACCESS = 16  # bytes, at most
SIZES = {"bfloat16": 2, "float16": 2, "bool": 1}
UNMOVED = ("bool", "int4", "uint4")  # types of which TVM writes no vectors

Value = Callable[[Any], Expr]
"""Element u of a strip."""


def lanes_of(result: str, *dtypes: str) -> int:
    """Elements of a strip: what 16 bytes hold of the widest type; one where the result's vectors cannot be written."""
    return 1 if result in UNMOVED else ACCESS // max(size_of(d) for d in (result, *dtypes))


def size_of(dtype: str) -> int:
    return SIZES.get(dtype) or max(1, np.dtype(dtype).itemsize)


@dataclass(frozen=True, eq=False)
class Strip:
    """Elements u = 0, 1, ...: what each reads, `memories` by node at an offset, and its value given some of that."""

    memories: Mapping[Node, Memory]
    reads: Callable[[Any], Mapping[Node, Any]]
    value: Callable[[Any, Mapping[Node, Expr]], Expr]


def strip_of(source: Source, index: Callable[[Any], Sequence[Any]]) -> Strip:
    """The elements of `source` at index(u)."""
    nest = source.nest
    assert isinstance(nest, GpuNest)

    def reads(u: Any) -> Mapping[Node, Any]:
        """Where every leaf is read that is read at one place, whatever was read before and whatever holds."""
        at = index(u)
        found, known = trace(source, at), [v for i in at for v in free_variables(i)]
        if found.conditions:
            return {}
        places: dict[Node, list[Any]] = {}
        for node, offset in zip(found.nodes, found.offsets, strict=True):
            places.setdefault(node, []).append(offset)
        return {n: o[0] for n, o in places.items() if _equal(nest, o) and _within(o[0], known)}

    return Strip(source.memories, reads, lambda u, instead: source.value(index(u), instead=instead))


def elements(source: Source, index: Callable[[Any], Sequence[Any]], lanes: int) -> tuple[list[Stmt], Value]:
    """The elements of `source` at index(0), index(1), ..., and what must be done before: on GPUs, to load them."""
    if isinstance(source.nest, GpuNest):
        return load(source.nest, strip_of(source, index), lanes)
    return [], lambda lane: source.value(index(lane))


def write(core: Core, index: Callable[[Any], Sequence[Any]], lanes: int, value: Value) -> Stmt:
    """value(lane) of the core's node at index(lane), with what follows it, into the result."""
    nest = core.nest
    if not isinstance(nest, GpuNest):
        return nest.vector(lanes, lambda lane: core.store(index(lane), lambda: value(lane)))

    def to(lane: Any) -> Any:
        return nest.simplify(core.result.offset(index(lane)))

    return store(nest, core.result, to, lanes, lambda lane: core.finish(value(lane), index(lane)))


def _equal(nest: GpuNest, offsets: Sequence[Any]) -> bool:
    return all(o is offsets[0] or nest.simplify(o - offsets[0]) == 0 for o in offsets)


def _within(offset: Any, known: Sequence[Any]) -> bool:
    return all(any(v.same_as(k) for k in known) for v in free_variables(offset))


def load(nest: GpuNest, strip: Strip, lanes: int) -> tuple[list[Stmt], Value]:
    """The statements that load the leaves that one access each holds, and the elements that are made of them."""
    if lanes == 1:
        return [], lambda u: strip.value(u, {})
    u = nest.variable(lanes, "u")
    made: list[Stmt] = []
    held: dict[Node, Any] = {}
    for node, offset in strip.reads(u).items():
        memory = strip.memories[node]
        begin = first_of(nest, memory, u, offset, lanes)
        if begin is not None:
            held[node], allocated = scratch(lanes, memory.type.dtype, "in")
            made += [allocated, moved(held[node], 0, memory.buffer, begin, lanes)]
    return made, lambda u: strip.value(u, {node: get(buffer, u) for node, buffer in held.items()})


def store(nest: GpuNest, memory: Memory, to: Callable[[Any], Any], lanes: int, value: Value) -> Stmt:
    """value(u) to offset to(u) of `memory`."""
    if lanes == 1:
        return put(memory.buffer, nest.simplify(to(0)), lambda: value(0))
    u = nest.variable(lanes, "u")
    begin = first_of(nest, memory, u, to(u), lanes)
    if begin is None:
        return nest.each_lane(lanes, lambda u: put(memory.buffer, nest.simplify(to(u)), lambda: value(u)))
    out, allocated = scratch(lanes, memory.type.dtype, "out")
    computed = nest.each_lane(lanes, lambda u: put(out, u, lambda: value(u)))
    return block([allocated, computed, moved(memory.buffer, begin, out, 0, lanes)])


def first_of(nest: GpuNest, memory: Memory, u: Expr, offset: Any, lanes: int) -> Any | None:
    """Where the elements begin that lie at `offset`, of u = 0, 1, ..., if one access holds all of them; None where that
    is not so or not known."""
    form = linear(nest.simplify(offset), u)
    if memory.type.dtype in UNMOVED or form is None or form[0] != 1:
        return None
    begin = nest.simplify(form[1])
    return begin if nest.simplify(as_index(begin) % lanes) == 0 else None


def moved(to: Any, there: Any, source: Any, here: Any, lanes: int) -> Stmt:
    """One access each."""

    def vector(at: Any) -> Expr:
        return tirx.Ramp(as_index(at), number(1), lanes)

    return tirx.BufferStore(to, tirx.BufferLoad(source, [vector(here)]), [vector(there)])
