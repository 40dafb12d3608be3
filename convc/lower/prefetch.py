"""Prefetches: what a nest of loops will read in its next round, asked for a little in every iteration of this one.

A core asks memory for a few dozen cache lines at once. Weights that come from memory and are used many times, one block
after the other, arrive in bursts: the first use of a block waits, the later ones leave memory idle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad

from convc.lower.names import each

DEPTH, BLOCK = "convc.prefetch", "convc.prefetch_block"  # annotations of loops; the first counts from the outermost
WEIGHTS = "w"  # the name of the parameter
READ, TO_L2, DATA = 0, 2, 1  # as llvm.prefetch counts
LINE = 64  # bytes


def prefetch() -> Any:
    """A pass for flat buffers."""
    return each(_function)


def _function(func: tirx.PrimFunc) -> tirx.PrimFunc:
    loops: dict[int, tirx.For] = {}

    def find(node: Any) -> None:
        if isinstance(node, tirx.For) and DEPTH in node.annotations:
            loops[int(node.annotations[DEPTH])] = node

    tvm_ffi.structural_walk(func.body, (tirx.For, find))
    if not loops:
        return func
    nest = [loops[depth] for depth in sorted(loops)]

    def insert(loop: tirx.For) -> tirx.For:
        return _asking(loop, nest) if BLOCK in loop.annotations else loop

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, insert)))


def _asking(loop: tirx.For, nest: Sequence[tirx.For]) -> tirx.For:
    block = int(loop.annotations[BLOCK])
    load, inner = _first_load(loop.body)
    within = [*(outer.loop_var for outer in nest), *inner]

    def first(var: tirx.Var) -> Any:
        return tirx.const(0, str(var.ty.dtype)) if any(var.same_as(other) for other in within) else var

    base, position = tvm_ffi.structural_map(load.indices[0], (tirx.Var, first)), 0
    for outer in nest:
        position = position * outer.extent + outer.loop_var
    rounds = math.prod(int(outer.extent) for outer in nest)
    elements = LINE // tvm_ffi.dtype(str(load.source.ty.dtype)).itemsize
    lines = -(-block // elements // rounds)
    asked = [_ask(load, base + block + (position * lines + i) * elements) for i in range(lines)]
    return tirx.For(
        loop.loop_var, loop.min, loop.extent, loop.kind, tirx.SeqStmt([*asked, loop.body]), loop.thread_binding,
        {k: v for k, v in loop.annotations.items() if k not in (DEPTH, BLOCK)},
    )  # fmt: skip


def _first_load(body: Any) -> tuple[Any, list[Any]]:
    """A load of the weights, and the variables of the loops in `body`."""
    loads: list[Any] = []
    inner: list[Any] = []

    def find(node: Any) -> None:
        if isinstance(node, TensorLoad) and node.source.name == WEIGHTS:
            loads.append(node)
        elif isinstance(node, tirx.For):
            inner.append(node.loop_var)

    tvm_ffi.structural_walk(body, ((TensorLoad, tirx.For), find))
    return loads[0], inner


def _ask(load: Any, index: Any) -> Any:
    address = tirx.address_of(tirx.BufferLoad(load.source, [index]))
    return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, READ, TO_L2, DATA))
