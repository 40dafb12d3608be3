"""The graph's inputs: their dtypes, and extents for the dimensions that the model leaves open."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import onnx

from convc.errors import UnsupportedError, UsageError
from convc.frontend.names import quoted, shown
from convc.frontend.tensor import DTYPES, carried, count_elements
from convc.ir import TensorType


class OpenBatchWarning(UserWarning):
    """The model leaves the batch open and nothing was given: it is compiled for a batch of 1."""


def given_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What the caller gives: the inputs that no initializer defines."""
    constants = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in constants]


def check_given(shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[onnx.ValueInfoProto]) -> None:
    names = [value.name for value in inputs]
    for name in shapes:
        if name not in names:
            known = ", ".join(quoted(n) for n in names)
            raise UsageError(f"a shape is given for {quoted(name)}; the inputs of the model are {known}")


def bind_symbols(inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Extents of the named dimensions, from the shapes that are given; what is left of the leading ones is 1."""
    bound: dict[str, int] = {}
    for value in inputs:
        dims, given = value.type.tensor_type.shape.dim, shapes.get(value.name, ())
        for dim, extent in zip(dims, given, strict=False):
            if dim.dim_param and bound.setdefault(dim.dim_param, extent) != extent:
                other = bound[dim.dim_param]
                raise UsageError(f"the shapes make dimension {quoted(dim.dim_param)} both {other} and {extent}")
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1 and dims[0].dim_param and value.name not in shapes and dims[0].dim_param not in bound:
            note_batch(value)
            bound[dims[0].dim_param] = 1
    return bound


def note_batch(value: onnx.ValueInfoProto) -> None:
    text = f"the batch of input {quoted(value.name)} is open: compiled for a batch of 1 (--shape gives another)"
    warnings.warn(OpenBatchWarning(text), stacklevel=2)


def input_type(value: onnx.ValueInfoProto, given: tuple[int, ...] | None, bound: Mapping[str, int]) -> TensorType:
    """The type of an input; UnsupportedError names the --shape that is needed where extents are still open."""
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError("only tensors are supported, no sequences, maps or optional values")
    tensor = value.type.tensor_type
    carried(tensor.elem_type)
    extents = given if given is not None and not tensor.HasField("shape") else fixed_extents(value, given, bound)
    count_elements(extents)
    if 0 in extents:
        raise UnsupportedError(f"shape {list(extents)} is empty; a tensor must have an element")
    return TensorType(tuple(extents), DTYPES[tensor.elem_type])


def fixed_extents(
    value: onnx.ValueInfoProto, given: tuple[int, ...] | None, bound: Mapping[str, int]
) -> tuple[int, ...]:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise UnsupportedError(f"the model does not say its rank; give --shape '{shown(value.name)}=...'")
    dims = list(tensor.shape.dim)
    if given is not None:
        return matched(dims, given)
    found = [extent_of(dim, bound, batch=i == 0 and len(dims) > 1) for i, dim in enumerate(dims)]
    if None in found:
        wish = ",".join("?" if e is None else str(e) for e in found)
        raise UnsupportedError(f"open dimensions; give --shape '{shown(value.name)}={wish}' with a number for each ?")
    if len(dims) > 1 and not dims[0].dim_param and not dims[0].HasField("dim_value"):
        note_batch(value)
    return tuple(e for e in found if e is not None)


def extent_of(dim: onnx.TensorShapeProto.Dimension, bound: Mapping[str, int], *, batch: bool) -> int | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return bound.get(dim.dim_param, 1 if batch else None)


def matched(dims: Sequence[onnx.TensorShapeProto.Dimension], given: tuple[int, ...]) -> tuple[int, ...]:
    """`given`, which must agree with every extent that the model fixes."""
    fits = len(dims) == len(given) and min(given, default=1) > 0
    if not fits or any(d.HasField("dim_value") and d.dim_value != e for d, e in zip(dims, given, strict=True)):
        raise UsageError(f"shape {list(given)} does not fit the model's input")
    return given
