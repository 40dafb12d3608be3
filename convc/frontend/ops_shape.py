"""ONNX operators that make constants: shapes, ranges, literals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import Call
from convc.frontend.limits import MAX_FOLDED_BYTES
from convc.frontend.tensor import count_elements
from convc.ir import Array, Broadcast, Const, Node


def shape(call: Call) -> Node:
    x = call[0]
    start, end = call.integer("start", 0), call.integer("end", x.type.rank)
    return Const(np.array(x.shape[start:end], np.int64))


def size(call: Call) -> Node:
    return Const(np.array(call[0].type.elements, np.int64))


def constant(call: Call) -> Node:
    """One attribute holds the value; which one says what it is."""
    literals: dict[str, Callable[[], Any]] = {
        "value": lambda: call.tensor("value"),
        "value_float": lambda: np.array(call.real("value_float", 0.0), np.float32),
        "value_floats": lambda: np.array(call.floats("value_floats"), np.float32),
        "value_int": lambda: np.array(call.integer("value_int", 0), np.int64),
        "value_ints": lambda: np.array(call.ints("value_ints"), np.int64),
    }
    if len(call.attributes) != 1:
        raise BadInputError(f"{len(call.attributes)} attributes, exactly one must hold the value")
    (name,) = call.attributes
    if name not in literals:
        raise UnsupportedError(f"attribute {name} is not supported")
    return Const(literals[name]())


def constant_of_shape(call: Call) -> Node:
    to, value = call.constant_ints(0, "the shape") or (), call.tensor("value")
    count_elements(to)
    fill: Array = np.zeros(1, np.float32) if value is None else value
    if fill.size != 1:
        raise BadInputError(f"the value must be one number, not {fill.size}")
    return Broadcast(Const(fill.reshape(())), to)


def range_(call: Call) -> Node:
    start, limit, delta = (call.constant(i, what) for i, what in enumerate(("start", "limit", "delta")))
    single = start.size == limit.size == delta.size == 1
    if not single or not delta.any() or not all(np.isfinite(v).all() for v in (start, limit, delta)):
        raise BadInputError("start, limit and delta must be one finite number each, and delta not 0")
    first, last, step = (v.reshape(()).item() for v in (start, limit, delta))
    reach = (last - first) / step
    if not reach * 8 <= MAX_FOLDED_BYTES:
        raise UnsupportedError(f"a range of {reach} elements")
    count = max(math.ceil(reach), 0)
    return Const((first + np.arange(count) * step).astype(start.dtype))


def non_zero(call: Call) -> Node:
    value = call.constant(0, "its argument")
    if value.nbytes > MAX_FOLDED_BYTES:
        raise UnsupportedError(f"a constant of {value.nbytes} bytes")
    return Const(np.stack(np.nonzero(np.atleast_1d(value))).astype(np.int64))


OPERATORS: dict[str, Callable[[Call], Node]] = {
    "Shape": shape, "Size": size, "Constant": constant, "ConstantOfShape": constant_of_shape, "Range": range_,
    "NonZero": non_zero,
}  # fmt: skip
