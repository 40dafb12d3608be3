"""What layouts cost: the model whose minimum `select` takes. Label 0 of a value is row-major, 1 is blocked.

Variables are values (the layout in which a group leaves its result) and (group, read) pairs (the layout in which a
group wants it). Where the two differ, a copy is made once for all who want it. Costs are in picoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from convc.ir import (
    ArgReduce,
    Broadcast,
    Concat,
    Const,
    Input,
    MatMul,
    Node,
    Normalize,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Softmax,
)
from convc.layout import PLAIN, Layout, blocked
from convc.plan.energy import REFUSED, Energy, Option
from convc.plan.plan import Copy, Group, Plan
from convc.plan.views import buffer_bytes, is_row_major, view_offsets
from convc.plan.work import is_elementwise
from convc.target import GpuTarget, Target

PICO = 1e12


@dataclass(frozen=True)
class Rates:
    """What passes over tensors cost on a kind of target.

    bandwidth  bytes/s: what one thread of a CPU moves between its caches and L3, or a GPU to and from its memory.
    scatter    passes that strides cost beyond the one that a contiguous pass does.
    call       seconds of a kernel of its own.
    plain      elements/s of windows and sums over a row, `blocked` the same with channels in the lanes.
    """

    bandwidth: float
    scatter: float
    call: float
    plain: float
    blocked: float


CPU = Rates(bandwidth=25e9, scatter=2.0, call=1e-6, plain=3e9, blocked=20e9)


def rates_of(target: Target) -> Rates:
    """On GPUs windows are read from L1, by accesses of one channel or of several."""
    if not isinstance(target, GpuTarget):
        return CPU
    rate = target.gpu.multiprocessors * target.gpu.fma * target.gpu.clock / 8  # instructions of an element
    return Rates(0.85 * target.gpu.bandwidth, scatter=1.0, call=1.5e-6, plain=rate, blocked=2 * rate)


Options = Mapping[Group, Sequence[Option]]
"""What each anchored group can be, by the labels of x and result. Groups that no algorithm takes are absent."""


def layout_of(node: Node, label: int, *, block: int) -> Layout:
    return blocked(node.shape, block=block) if label else PLAIN


def const_layout(group: Group, const: Const, result: Layout) -> Layout:
    """The form in which a group reads a constant: blocked beside a blocked result where it has the same channels."""
    channels = len(const.shape) == group.result.type.rank >= 3 and const.shape[1] == group.result.shape[1]
    return blocked(const.shape, block=result.block) if channels and const is not group.weights else PLAIN


def activations(group: Group) -> tuple[Node, ...]:
    return tuple(r for r in group.reads if not isinstance(r, Const))


def layout_energy(plan: Plan, options: Options, *, block: int, rates: Rates = CPU) -> Energy:
    """The cost of every labelling of the plan's values and of what its groups want."""
    energy = Energy()
    wants: dict[Node, list[Hashable]] = {}
    for node in plan.inputs:
        energy.add_unary(node, 0, REFUSED)
    for group in plan.groups:
        _restrict(energy, group.result, group.result, block)
        for read in activations(group):
            _restrict(energy, (group, read), read, block)
            wants.setdefault(read, []).append((group, read))
        _add_group(energy, group, options, block, rates)
    for _, result in plan.outputs:
        energy.add_unary(("output", result), 0, REFUSED)
        wants.setdefault(result, []).append(("output", result))
    for value, readers in wants.items():
        energy.add_shared(value, readers, relayout_cost(value, block=block, rates=rates))
    return energy


def relayout_cost(node: Node, *, block: int, rates: Rates = CPU) -> int:
    """A copy into the other layout; nothing where both have the same bytes."""
    other = blocked(node.shape, block=block)
    return 0 if is_row_major(node.shape, other) else cost_of(rates.call + 2 * _seconds(node, other, rates))


def _restrict(energy: Energy, variable: Hashable, node: Node, block: int) -> None:
    energy.add_unary(variable, 0, REFUSED if blocked(node.shape, block=block) == PLAIN else 0)


def _add_group(energy: Energy, group: Group, options: Options, block: int, rates: Rates) -> None:
    node = group.result
    if group in options:
        _add_anchored(energy, group, options[group], block, rates)
    elif any(isinstance(n, MatMul) for n in group.nodes):
        _keep_plain(energy, group)
    elif len(group.nodes) == 1 and isinstance(node, Concat):
        _add_concat(energy, group, node, block, rates)
    elif len(group.nodes) == 1 and isinstance(node, Copy | Reshape | Slice) and activations(group):
        _add_view(energy, group, node, block, rates)
    else:
        _add_generic(energy, group, block, rates)


def _keep_plain(energy: Energy, group: Group) -> None:
    energy.add_unary(group.result, 0, REFUSED)
    for read in activations(group):
        energy.add_unary((group, read), 0, REFUSED)


def _add_anchored(energy: Energy, group: Group, options: Sequence[Option], block: int, rates: Rates) -> None:
    x = group.nodes[0].args[0]
    energy.add_pair((group, x), group.result, options)
    if isinstance(group.nodes[0], MatMul):
        _keep_plain(energy, group)
        return
    for read in activations(group):
        if read is not x:
            _prefer_equal(energy, group, read, block, rates)


def _prefer_equal(energy: Energy, group: Group, read: Node, block: int, rates: Rates) -> None:
    """Reading across layouts costs strides; where only one layout exists there is nothing to agree on."""
    if blocked(group.result.shape, block=block) == PLAIN or blocked(read.shape, block=block) == PLAIN:
        return
    if len(read.shape) != group.result.type.rank:
        energy.add_unary((group, read), 0, REFUSED)
        return
    mixed = cost_of(rates.scatter * _seconds(read, PLAIN, rates))
    energy.add_table((group, read), group.result, ((0, mixed), (mixed, 0)))


def _add_concat(energy: Energy, group: Group, node: Concat, block: int, rates: Rates) -> None:
    """Free where the parts can be written in place: all in the layout of the whole."""
    movable = len(set(node.xs)) == len(node.xs) and not any(isinstance(x, Const | Input) for x in node.xs)
    costs = []
    for label in (0, 1):
        layouts = [layout_of(x, label, block=block) for x in node.xs]
        whole = layout_of(node, label, block=block)
        view = movable and view_offsets(node, layouts, whole) is not None
        costs.append(0 if view else _copying(node, whole, rates, strided=node.axis == 1 and whole != PLAIN))
    energy.add_unary(node, *costs)
    for read in activations(group):
        mixed = _copying(read, layout_of(read, 1, block=block), rates, strided=True)
        energy.add_table((group, read), node, ((0, mixed), (mixed, 0)))


def _add_view(energy: Energy, group: Group, node: Copy | Reshape | Slice, block: int, rates: Rates) -> None:
    def cost(a: int, b: int) -> int:
        x, y = layout_of(node.x, a, block=block), layout_of(node, b, block=block)
        if view_offsets(node, [x], y) is not None:
            return 0
        return _copying(node, y, rates, strided=x != y or (y != PLAIN and not isinstance(node, Copy)))

    energy.add_table((group, node.x), node, ((cost(0, 0), cost(0, 1)), (cost(1, 0), cost(1, 1))))


def _copying(node: Node, layout: Layout, rates: Rates, *, strided: bool) -> int:
    return cost_of(rates.call + (2 + rates.scatter * strided) * _seconds(node, layout, rates))


def _add_generic(energy: Energy, group: Group, block: int, rates: Rates) -> None:
    """A pass over memory. Channels stay with channels, or the blocked layout costs strides on its side."""
    result, agrees = group.result, all(keeps_channels(n) for n in group.nodes)
    strides = 1.0 if agrees else 1.0 + rates.scatter
    for variable, node in [(result, result), *(((group, r), r) for r in activations(group))]:
        passes = [_seconds(node, layout_of(node, label, block=block), rates) for label in (0, 1)]
        energy.add_unary(variable, cost_of(passes[0]), cost_of(passes[1] * strides))
        if agrees and node is not result:
            _prefer_equal(energy, group, node, block, rates)
    for node in group.nodes:
        if work := _window_work(node):
            variable = result if isinstance(node, Pool) or not activations(group) else (group, activations(group)[0])
            energy.add_unary(variable, cost_of(work / rates.plain), cost_of(work / rates.blocked))


def _window_work(node: Node) -> int:
    match node:
        case Pool(kernel=kernel):
            return node.type.elements * math.prod(kernel)
        case Reduce(x=x, axes=axes):
            return x.type.elements if axes and min(axes) >= 2 else 0
    return 0


def keeps_channels(node: Node) -> bool:
    """Whether each channel of the result comes from that channel of the arguments, so that lanes stay lanes."""
    match node:
        case Pool() | Copy():
            return True
        case Reduce(axes=axes) | Normalize(axes=axes):
            return not axes or (1 not in axes and 0 not in axes)
        case Softmax(axis=axis) | ArgReduce(axis=axis):
            return axis >= 2
        case Resize(x, to) | Broadcast(x, to):
            return tuple(to[:2]) == x.shape[:2] and len(to) == x.type.rank
        case Slice(x) | Pad(x):
            return node.shape[:2] == x.shape[:2] and _whole(node)
    return is_elementwise(node)


def _whole(node: Slice | Pad) -> bool:
    """Neither channels nor batch are shifted or reversed."""
    if isinstance(node, Pad):
        return not any(p for pair in node.pad[:2] for p in pair)
    return all(step == 1 for step in node.step[:2])


def _seconds(node: Node, layout: Layout, rates: Rates) -> float:
    return buffer_bytes(node, layout) / rates.bandwidth


def cost_of(seconds: float) -> int:
    """Picoseconds."""
    return round(seconds * PICO)
