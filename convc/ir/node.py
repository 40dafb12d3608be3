"""The node: one operation and the one tensor it yields. A graph is a set of nodes that refer to each other."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorType:
    """Shape (elements per axis, all known) and dtype (a numpy name: float32, int64, bool, ...)."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{'x'.join(map(str, self.shape))}]"


@dataclass(frozen=True, eq=False)
class Node:
    """An operation. Fields that are nodes (or tuples of nodes) are its arguments, in order; the rest are attributes.

    Equality is identity, so that sharing is kept and hashing is O(1). A subclass gives three rules:
    `infer` (the type of the result from the types of the arguments; raises ValueError with the reason),
    `reference` (the result in numpy; float arguments are computed in their own dtype, so float64 arrays give
    a float64 reference) and, where it is not zero, `flops`.

    `origin` holds the names of the ONNX nodes this one came from. They are for people: never used in code or paths.
    """

    origin: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def __init_subclass__(cls) -> None:
        """A dataclass's own repr would print all that a node is made of, again for every path to it."""
        super().__init_subclass__()
        setattr(cls, "__repr__", Node.__repr__)  # noqa: B010

    def __repr__(self) -> str:
        """The operation and its type; `convc.ir.text.show` prints graphs."""
        known = self.__dict__.get("type")
        return f"<{type(self).__name__} {known}>" if known else f"<{type(self).__name__}>"

    @cached_property
    def args(self) -> tuple[Node, ...]:
        found: list[Node] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Node):
                found.append(value)
            elif isinstance(value, tuple):
                found.extend(v for v in value if isinstance(v, Node))
        return tuple(found)

    def with_args(self, args: tuple[Node, ...]) -> Self:
        """The same operation on other arguments, given in the order of `args`."""
        if all(a is b for a, b in zip(args, self.args, strict=True)):
            return self
        fresh = iter(args)
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Node):
                changes[field.name] = next(fresh)
            elif isinstance(value, tuple) and any(isinstance(v, Node) for v in value):
                changes[field.name] = tuple(next(fresh) if isinstance(v, Node) else v for v in value)
        return dataclasses.replace(self, **changes)

    @cached_property
    def type(self) -> TensorType:
        return self.infer()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def flops(self) -> int:
        """Floating-point operations of the direct algorithm: 2 x MAC for what multiplies and adds."""
        return 0

    @property
    def bytes(self) -> int:
        """Bytes that must be read and written at least once: arguments and result."""
        return self.type.bytes + sum(a.type.bytes for a in self.args)

    def infer(self) -> TensorType:
        raise NotImplementedError(type(self).__name__)

    def reference(self, *args: Array) -> Array:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True, eq=False)
class Input(Node):
    """A tensor the caller gives. `label` is the model's own name for it."""

    label: str
    given: TensorType

    def infer(self) -> TensorType:
        return self.given


@dataclass(frozen=True, eq=False)
class Const(Node):
    """A tensor known when compiling."""

    value: Array

    def infer(self) -> TensorType:
        return TensorType(tuple(self.value.shape), self.value.dtype.name)

    def reference(self, *args: Array) -> Array:
        return self.value
