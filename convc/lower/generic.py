"""Kernels without an anchor: whatever is not a convolution by constant weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm.s_tir import Schedule
from tvm.tirx import Expr, Stmt

from convc.ir import (
    LRN,
    ArgReduce,
    Cast,
    Conv,
    ConvTranspose,
    Input,
    MatMul,
    Node,
    Normalize,
    Pool,
    Reduce,
    Resize,
    Softmax,
    TensorType,
)
from convc.layout import PLAIN, Layout
from convc.lower.core import Core
from convc.lower.elementwise import express, is_elementwise, is_map
from convc.lower.gpu_nest import nest_for
from convc.lower.lrn import write_lrn
from convc.lower.maps import write_map
from convc.lower.nest import Memory, Nest, block, function, leaves_of, scratch
from convc.lower.pool import write_pool
from convc.lower.products import write_conv, write_matmul
from convc.lower.reduction import write_arg_reduce, write_normalize, write_reduce, write_softmax
from convc.lower.regions import Map
from convc.lower.resample import write_resample
from convc.lower.source import source_of
from convc.plan.plan import Kernel
from convc.target import Target

CORES: dict[type[Node], Callable[[Core], Stmt]] = {
    ArgReduce: write_arg_reduce,
    Conv: write_conv,
    ConvTranspose: write_conv,
    LRN: write_lrn,
    MatMul: write_matmul,
    Normalize: write_normalize,
    Pool: write_pool,
    Reduce: write_reduce,
    Resize: write_resample,
    Softmax: write_softmax,
}
# Their elements read each argument element many times: what comes before is computed once, into memory.
REREADERS = (Conv, ConvTranspose, LRN, MatMul, Pool, Resize)


def generic(kernel: Kernel, target: Target) -> Schedule:
    """The function "main" of a kernel without an anchor: its reads in order, then the result, each in its layout.

    The group holds maps alone, or one node of CORES first, possibly after maps that feed only it, and maps after it.
    """
    group = kernel.group
    result = group.nodes[-1] if group.nodes else group.reads[0]
    params = [(r.type, layout) for r, layout in zip(group.reads, kernel.layouts, strict=True)]

    def body(memories: list[Memory]) -> Stmt:
        reads = dict(zip(group.reads, memories, strict=False))
        return write_group(nest_for(target), group.nodes or (result,), reads, memories[-1])

    return function([*params, (result.type, kernel.result)], body)


def relayout(shape: Sequence[int], dtype: str, source: Layout, to: Layout, target: Target) -> Schedule:
    """The function "main" that copies a tensor from one layout to another; lanes that pad its channels get 0."""
    type_ = TensorType(tuple(shape), dtype)

    def body(memories: list[Memory]) -> Stmt:
        x = Input("x", type_)
        return write_group(nest_for(target), (x,), {x: memories[0]}, memories[1])

    return function([(type_, source), (type_, to)], body)


def write_group(nest: Nest, nodes: Sequence[Node], reads: Mapping[Node, Memory], result: Memory) -> Stmt:
    """The last of `nodes` into `result`."""
    last = nodes[-1]
    at = next((k for k, node in enumerate(nodes) if node not in reads and not is_map(node)), None)
    if math.prod(last.shape) == 0:
        return block([])
    if at is None:
        return write_map(Map(source_of(nest, last, nodes, reads), result))
    before, core, after = nodes[:at], nodes[at], nodes[at + 1 :]
    if any(not is_elementwise(n) or n.shape != core.shape for n in after):
        return _in_two(nest, nodes[: at + 1], after, reads, result)
    made: list[Stmt] = []
    known = dict(reads)
    if isinstance(core, REREADERS):
        for arg in dict.fromkeys(core.args):
            if arg not in known:
                known[arg], statements = _computed(nest, arg, before, reads)
                made += statements
    args = [source_of(nest, arg, before, known) for arg in core.args]
    return block([*made, CORES[type(core)](Core(nest, core, args, result, _finish(nest, core, after, reads)))])


def _computed(nest: Nest, node: Node, nodes: Sequence[Node], reads: Mapping[Node, Memory]) -> tuple[Memory, list[Stmt]]:
    """`node` in memory of its own, row-major, and the statements that put it there."""
    buffer, made = scratch(max(node.type.elements, 1), node.dtype, "between")
    memory = Memory(buffer, node.type, PLAIN)
    # A literal is in no list: a cast to its own type makes a map of it.
    upto = nodes[: nodes.index(node) + 1] if node in nodes else (Cast(node, node.dtype),)
    return memory, [made, write_group(nest, upto, reads, memory)]


def _in_two(
    nest: Nest, nodes: Sequence[Node], after: Sequence[Node], reads: Mapping[Node, Memory], result: Memory
) -> Stmt:
    """Where what follows the core moves elements or grows, the core goes to memory first."""
    memory, made = _computed(nest, nodes[-1], nodes, reads)
    return block([*made, write_group(nest, after, {**reads, nodes[-1]: memory}, result)])


def _finish(
    nest: Nest, core: Node, after: Sequence[Node], reads: Mapping[Node, Memory]
) -> Callable[[Expr, Sequence[Any]], Expr]:
    """What the nodes after the core make of its value at an index."""
    if not after:
        return lambda value, _index: value
    leaves = leaves_of(nest, reads)
    return lambda value, index: express(after, {**leaves, core: lambda _index: value}, simplify=nest.simplify)(index)
