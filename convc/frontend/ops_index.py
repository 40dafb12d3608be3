"""ONNX operators that choose elements by index: slice, split, gather."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from convc.errors import BadInputError
from convc.frontend.call import Call, check_table, normal_axes, scalar
from convc.frontend.ops_elementwise import cast
from convc.ir import Binary, Const, Gather, Node, Reduce, Reshape, Slice, Where


def slice_(call: Call) -> Node:
    """numpy's slicing. Starts, ends and axes are attributes before opset 10, then arguments, with steps."""
    x = call[0]
    starts, ends, axes, steps = slice_arguments(call)
    if starts is None or ends is None:
        raise BadInputError("starts and ends must be given")
    chosen = normal_axes(axes if axes is not None else tuple(range(len(starts))), x.type.rank)
    steps = steps if steps is not None else (1,) * len(starts)
    if not len(starts) == len(ends) == len(chosen) == len(steps) or 0 in steps:
        raise BadInputError(f"starts, ends, axes and steps {list(steps)} must be of one length, and no step 0")
    ranges = [range(e) for e in x.shape]
    for axis, start, end, step in zip(chosen, starts, ends, steps, strict=True):
        ranges[axis] = range(*slice(start, end, step).indices(x.shape[axis]))
    return Slice(
        x, tuple(r.start if len(r) else 0 for r in ranges), tuple(map(len, ranges)), tuple(r.step for r in ranges)
    )


def slice_arguments(call: Call) -> list[tuple[int, ...] | None]:
    names = ("starts", "ends", "axes", "steps")
    if call.version < 10:
        return [call.ints(name) for name in names]
    return [call.constant_ints(i, name) for i, name in enumerate(names, 1)]


def split(call: Call) -> tuple[Node, ...]:
    x = call[0]
    axis = call.axis(0, x.type.rank)
    sizes = call.ints("split") if call.version < 13 else call.constant_ints(1, "the sizes")
    sizes = sizes if sizes is not None else even_parts(x.shape[axis], len(call.outputs), call)
    if len(sizes) != len(call.outputs) or sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise BadInputError(f"sizes {list(sizes)} do not divide axis {axis} of x {x.type} into {len(call.outputs)}")
    begins = [sum(sizes[:i]) for i in range(len(sizes))] if len(sizes) < 64 else list(np.cumsum((0, *sizes[:-1])))
    return tuple(part(x, axis, int(b), n) for b, n in zip(begins, sizes, strict=True))


def even_parts(extent: int, count: int, call: Call) -> tuple[int, ...]:
    """Equal parts; since opset 18 the last may be smaller."""
    if call.version >= 18 and call.integer("num_outputs", count) != count:
        raise BadInputError(f"num_outputs is {call.integer('num_outputs', count)}, the node has {count} results")
    each = -(-extent // count)
    return (each,) * (count - 1) + (extent - each * (count - 1) if call.version >= 18 else each,)


def part(x: Node, axis: int, begin: int, size: int) -> Node:
    begins = tuple(begin if i == axis else 0 for i in range(x.type.rank))
    return Slice(x, begins, (*x.shape[:axis], size, *x.shape[axis + 1 :]), (1,) * x.type.rank)


def gather(call: Call) -> Node:
    x, indices = call[0], call[1]
    axis = call.axis(0, x.type.rank)
    check_indices(indices, x.shape[axis])
    return Gather(x, indices, axis)


def check_indices(indices: Node, extent: int) -> None:
    if not isinstance(indices, Const) or indices.value.size == 0:
        return
    low, high = int(indices.value.min()), int(indices.value.max())
    if low < -extent or high >= extent:
        raise BadInputError(f"indices from {low} to {high} lie outside an axis of {extent}")


def gather_elements(call: Call) -> Node:
    """y[i, j] = x[index[i, j], j] (axis 0): a gather from the flat x at index * stride + where the other axes point."""
    x, indices = call[0], call[1]
    axis = call.axis(0, x.type.rank)
    others = zip(indices.shape, x.shape, strict=False)
    if indices.type.rank != x.type.rank or any(n > e and i != axis for i, (n, e) in enumerate(others)):
        raise BadInputError(f"indices {indices.type} do not fit x {x.type}")
    check_indices(indices, x.shape[axis])
    strides = [math.prod(x.shape[i + 1 :]) for i in range(x.type.rank)]
    check_table(indices.type.elements)
    offset = np.zeros((1,) * x.type.rank, np.int64)
    for i, n in enumerate(indices.shape):
        if i != axis:
            offset = offset + (np.arange(n) * strides[i]).reshape(-1, *(1,) * (x.type.rank - i - 1))
    steps = Binary("mul", from_front(indices, x.shape[axis]), scalar(strides[axis], "int64"))
    return Gather(Reshape(x, (x.type.elements,)), Binary("add", steps, Const(offset)), 0)


def from_front(indices: Node, extent: int) -> Node:
    """Indices as int64, those that count from the end turned around."""
    wide = cast(indices, "int64")
    return Where(
        Binary("less", wide, scalar(0, "int64")), Binary("add", wide, scalar(extent, "int64")), wide
    )


def gather_nd(call: Call) -> Node:
    """The last axis of the indices points at elements, or at slices, of x; the first `batch_dims` axes run together."""
    x, indices, batch = call[0], call[1], call.integer("batch_dims", 0)
    depth = indices.shape[-1] if indices.type.rank else 0
    fits = 0 <= batch < indices.type.rank and 0 < depth <= x.type.rank - batch
    if not fits or x.shape[:batch] != indices.shape[:batch]:
        raise BadInputError(f"indices {indices.type} do not fit x {x.type} with batch_dims {batch}")
    extents = x.shape[batch : batch + depth]
    for k, extent in enumerate(extents):
        check_indices(Const(indices.value[..., k]) if isinstance(indices, Const) else indices, extent)
    strides = np.array([math.prod(extents[k + 1 :]) for k in range(depth)], np.int64)
    front = from_front_each(indices, extents)
    flat: Node = Reduce("sum", Binary("mul", front, Const(strides)), (indices.type.rank - 1,), keepdims=False)
    check_table(math.prod(x.shape[:batch]))
    outer, inner = math.prod(x.shape[:batch]), math.prod(extents)
    first = (np.arange(outer) * inner).reshape((*x.shape[:batch], *(1,) * (indices.type.rank - 1 - batch)))
    rows = Reshape(x, (outer * inner, *x.shape[batch + depth :]))
    return Gather(rows, Binary("add", flat, Const(first)), 0)


def from_front_each(indices: Node, extents: tuple[int, ...]) -> Node:
    wide = cast(indices, "int64")
    ahead = Binary("add", wide, Const(np.array(extents, np.int64)))
    return Where(Binary("less", wide, scalar(0, "int64")), ahead, wide)


OPERATORS: dict[str, Callable[[Call], Node | tuple[Node, ...]]] = {
    "Slice": slice_, "Split": split, "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd,
}  # fmt: skip
