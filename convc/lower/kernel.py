"""A kernel of the plan to a scheduled function: the algorithm's definition, the epilogue after it, the algorithm's
schedule. Kernels without an anchor are the generic ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm
from tvm import te
from tvm.s_tir import Schedule

from convc.algorithm import Choice, Config
from convc.ir import Cast, Const, Input, Node, TensorType
from convc.layout import Layout
from convc.lower.access import Access, access
from convc.lower.core import HALVES, wide
from convc.lower.elementwise import cast, express
from convc.lower.generic import generic, relayout
from convc.lower.prefetch import WEIGHTS
from convc.lower.vector_math import flat
from convc.plan.epilogue import is_long
from convc.plan.plan import Copy, Group, Kernel, Packing
from convc.problem import Problem
from convc.target import Target

PACKERS = 256  # threads of a block that packs weights


def lower(kernel: Kernel | Packing, target: Target) -> Schedule:
    """The function "main" of a kernel: its reads in order, then its result, over physical extents."""
    if isinstance(kernel, Packing):
        return _packing(kernel, target)
    first = kernel.group.nodes[0]
    if isinstance(first, Copy):
        return _copy(kernel, first, target)
    if kernel.choice is None:
        return generic(kernel, target)
    return _anchored(kernel, kernel.choice, target)


def _copy(kernel: Kernel, node: Copy, target: Target) -> Schedule:
    if kernel.group.reads:
        return relayout(node.shape, node.dtype, kernel.layouts[0], kernel.result, target)
    return generic(replace(kernel, group=Group((Cast(node.x, node.dtype),), ())), target)


def _packing(packing: Packing, target: Target) -> Schedule:
    weight = packing.weight
    if packing.choice is None or packing.problem is None:
        return relayout(weight.shape, weight.dtype, Layout(), packing.layout, target)
    w = te.placeholder(packing.problem.weights, weight.dtype, name="w")
    algorithm, config = packing.choice.entry, packing.choice.config
    sch = _function([w], algorithm.pack(w, packing.problem, config))
    (algorithm.arrange or _each_alone)(sch, packing.problem, target, config)
    return sch


def _each_alone(sch: Schedule, p: Problem, target: Target, config: Config) -> None:
    """Elements in order: of the outermost axis on threads of a CPU, each on a thread of its own of a GPU."""
    for sblock in sch.get_child_blocks(sch.get_sblock("root")):
        loops = sch.get_loops(sblock)
        if target.kind == "cuda":
            block, thread = sch.split(sch.fuse(*loops) if len(loops) > 1 else loops[0], [None, PACKERS])
            sch.bind(block, "blockIdx.x")
            sch.bind(thread, "threadIdx.x")
        elif len(loops) > 1 and target.threads > 1:
            sch.parallel(loops[0])


def _anchored(kernel: Kernel, choice: Choice, target: Target) -> Schedule:
    group, algorithm = kernel.group, choice.entry
    anchor, p = group.anchor, group.problem
    assert anchor is not None and p is not None
    source, weight = anchor.args[:2]
    tensors: dict[Node, te.Tensor] = {}
    for read, layout in zip(group.reads, kernel.layouts, strict=True):
        if read is weight:
            w = te.placeholder(p.weights, weight.dtype, name="w")
            shape = algorithm.pack(w, p, choice.config).shape
        else:
            shape = _view(read, layout, anchor, p)
        tensors[read] = te.placeholder(shape, read.dtype, name=WEIGHTS if read is weight else f"a{len(tensors)}")
    y = algorithm.define(tensors[source], tensors[weight], p, choice.config)
    lanes = Layout(choice.config.get("lanes", choice.config["yb"]))
    tile = te.compute(y.shape, lambda *index: y(*index), name="t") if is_long(group.nodes) else y
    leaves: dict[Node, Access] = {anchor: lambda index: tile(*lanes.index(index))}
    for read, layout in zip(group.reads, kernel.layouts, strict=True):
        if read is not weight:
            leaves[read] = _leaf(tensors[read], read, layout, anchor, p)
    value = _epilogue(group.nodes, leaves, p)
    layout = choice.y_layout
    extents = layout.physical((p.mb, p.oc, *p.o))

    def stored(*index: Any) -> Any:
        at, dtype = _logical(layout, extents, index), group.result.dtype
        return flat(lambda: cast(value(at), dtype)) if dtype in HALVES else value(at)

    z = te.compute(extents, stored, name="z")
    sch = _function([tensors[read] for read in group.reads], z)
    algorithm.schedule(sch, p, target, choice.config)
    return sch


def _epilogue(nodes: Sequence[Node], leaves: Mapping[Node, Access], p: Problem) -> Access:
    """The nodes after the anchor as a function of the problem's index: the same nodes over the problem's axes. What a
    2-byte type holds is float32 here, from the accumulator on, and rounded only where it is stored."""
    view = TensorType((p.mb, p.oc, *p.o))
    inside: dict[Node, Node] = {leaf: Input("", replace(view, dtype=wide(leaf.dtype))) for leaf in leaves}
    if len(nodes) == 1:
        return leaves[nodes[0]]
    made: list[Node] = []
    for node in nodes[1:]:
        for arg in node.args:
            if arg not in inside and isinstance(arg, Const):  # a literal, of any rank in the model
                inside[arg] = Const(arg.value.reshape(()).astype(wide(arg.dtype)))
        made.append(node.with_args(tuple(inside[arg] for arg in node.args)))
        if made[-1].dtype != wide(made[-1].dtype):  # a Cast, whose rounding is what it is for
            made.append(Cast(made[-1], wide(made[-1].dtype)))
        inside[node] = made[-1]
    return express(made, {inside[leaf]: _as(access, wide(leaf.dtype)) for leaf, access in leaves.items()})


def _as(access: Access, dtype: str) -> Access:
    return lambda index: cast(access(index), dtype)


def _function(params: Sequence[te.Tensor], result: te.Tensor) -> Schedule:
    func = te.create_prim_func([*params, result])
    return Schedule(tvm.IRModule({"main": func}))


def _logical(layout: Layout, extents: Sequence[int], index: Sequence[Any]) -> tuple[Any, ...]:
    """The problem's index (n, channel, *pixel). One block of channels leaves no trace of the block axis."""
    single = layout.block > 1 and extents[1] == 1
    return layout.logical((index[0], 0, *index[2:])) if single else layout.logical(index)


def _full(read: Node, anchor: Node) -> bool:
    return read.shape == anchor.shape


def _view(read: Node, layout: Layout, anchor: Node, p: Problem) -> tuple[int, ...]:
    """Extents of a read as the problem sees it: pixels on one axis where the problem has one."""
    matmul = p.kind == "matmul"
    if read is anchor.args[0]:
        return Layout(p.ic if matmul else layout.block).physical((p.mb, p.ic, *p.i))
    if _full(read, anchor):
        return Layout(p.oc if matmul else layout.block).physical((p.mb, p.oc, *p.o))
    return layout.physical(read.shape)


def _leaf(tensor: te.Tensor, read: Node, layout: Layout, anchor: Node, p: Problem) -> Access:
    """Reads an operand of the epilogue by the problem's index."""
    shape = (p.mb, p.oc, *p.o)
    if _full(read, anchor):
        return access(tensor, shape, Layout(p.oc) if p.kind == "matmul" else layout)
    inner = access(tensor, read.shape, layout)
    return lambda index: inner(_original(index, anchor, p))


def _original(index: Sequence[Any], anchor: Node, p: Problem) -> tuple[Any, ...]:
    """The index in the anchor's own shape of the problem's index (n, channel, *pixel)."""
    n, channel, *pixel = index
    if p.kind == "matmul":
        return (*_unravel(pixel[0], anchor.shape[:-1]), channel)
    spatial = anchor.shape[2:]
    return (n, channel, *(pixel if len(pixel) == len(spatial) else _unravel(pixel[0], spatial)))


def _unravel(flat: Any, extents: Sequence[int]) -> tuple[Any, ...]:
    found: list[Any] = []
    for extent in reversed(extents[1:]):
        found.append(flat % extent)
        flat = flat // extent
    return (flat, *reversed(found))
