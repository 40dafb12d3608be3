"""What an operator's function gets: one ONNX node, its arguments as nodes of our graph, its attributes by type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.limits import MAX_TABLE
from convc.frontend.names import quoted
from convc.frontend.tensor import TensorReader
from convc.ir import Array, Const, Node

A = onnx.AttributeProto


@dataclass(frozen=True)
class Call:
    """`version` is the opset in which the meaning of the operator that holds here was defined.

    `reader` reads tensors in attributes; `outputs` are the model's names of the results, "" where it leaves one out.
    """

    operator: str
    version: int
    args: tuple[Node | None, ...]
    attributes: Mapping[str, onnx.AttributeProto]
    outputs: tuple[str, ...]
    reader: TensorReader

    def __getitem__(self, index: int) -> Node:
        """An argument that must be there."""
        found = self.get(index)
        if found is None:
            raise BadInputError(f"argument {index} is missing")
        return found

    def get(self, index: int) -> Node | None:
        return self.args[index] if index < len(self.args) else None

    def constant(self, index: int, what: str) -> Array:
        """The value of an argument that must be known when compiling."""
        found = self[index]
        if not isinstance(found, Const):
            raise UnsupportedError(f"{what} must be known when compiling, here it depends on the graph's inputs")
        return found.value

    def constant_or_none(self, index: int, what: str) -> Array | None:
        return None if self.get(index) is None else self.constant(index, what)

    def constant_ints(self, index: int, what: str) -> tuple[int, ...] | None:
        """A constant argument of rank 0 or 1 as integers, None where it is left out."""
        value = self.constant_or_none(index, what)
        if value is None:
            return None
        if value.ndim > 1 or value.dtype.kind not in "iu":
            raise BadInputError(f"{what} must be a list of integers, not {value.dtype}{list(value.shape)}")
        return tuple(int(v) for v in value.reshape(-1))

    def attribute(self, name: str, kind: int, field: str, default: Any) -> Any:
        found = self.attributes.get(name)
        if found is None:
            return default
        if found.type != kind:
            raise BadInputError(f"attribute {name} is {kind_name(found.type)}, it must be {kind_name(kind)}")
        return getattr(found, field)

    def integer(self, name: str, default: int) -> int:
        return int(self.attribute(name, A.INT, "i", default))

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.integer(name, int(default)))

    def real(self, name: str, default: float) -> float:
        return float(self.attribute(name, A.FLOAT, "f", default))

    def text(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        found = self.attribute(name, A.STRING, "s", default.encode()).decode("utf-8", "replace")
        if found not in allowed:
            raise BadInputError(f"attribute {name} is {quoted(found)}; known are {', '.join(allowed)}")
        return str(found)

    def ints(self, name: str) -> tuple[int, ...] | None:
        found = self.attribute(name, A.INTS, "ints", None)
        return None if found is None else tuple(int(v) for v in found)

    def floats(self, name: str) -> tuple[float, ...] | None:
        found = self.attribute(name, A.FLOATS, "floats", None)
        return None if found is None else tuple(float(v) for v in found)

    def tensor(self, name: str) -> Array | None:
        found = self.attribute(name, A.TENSOR, "t", None)
        return None if found is None else self.reader.read(found)

    def axis(self, default: int, rank: int) -> int:
        return normal_axis(self.integer("axis", default), rank)

    def wants(self, index: int) -> bool:
        """Does the model name result `index`?"""
        return index < len(self.outputs) and bool(self.outputs[index])


def check_table(elements: int) -> None:
    """Before a constant is made whose size the model only names."""
    if elements > MAX_TABLE:
        raise UnsupportedError(f"it needs a table of {elements} elements; the limit is {MAX_TABLE}")


def kind_name(kind: int) -> str:
    return str(A.AttributeType.Name(kind)) if kind in A.AttributeType.values() else f"of unknown kind {kind}"


def normal_axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise BadInputError(f"axis {axis} lies outside a tensor of rank {rank}")
    return axis % rank


def normal_axes(axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Non-negative, in the order given, each once."""
    found = tuple(normal_axis(a, rank) for a in axes)
    if len(set(found)) < len(found):
        raise BadInputError(f"axes {list(axes)} name an axis twice")
    return found


def scalar(value: float, like: Node | str) -> Const:
    """A constant of rank 0, of the dtype of a node or of a name."""
    return Const(np.asarray(value, like if isinstance(like, str) else like.dtype))
