"""Operations that move elements and compute nothing. Resize, which also interpolates, is in resize.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from convc.ir.check import INTEGERS, check_axis, check_lengths, check_same_dtype, refuse
from convc.ir.conv import Pads
from convc.ir.node import Array, Node, TensorType


@dataclass(frozen=True, eq=False)
class Reshape(Node):
    """Row-major order kept. `to` has no -1 and no 0 that means "copy"."""

    x: Node
    to: tuple[int, ...]

    def infer(self) -> TensorType:
        x = self.x.type
        refuse(any(e < 0 for e in self.to), f"shape {self.to} has a negative extent")
        count = math.prod(self.to)
        refuse(count != x.elements, f"x {x} has {x.elements} elements, shape {self.to} has {count}")
        return TensorType(self.to, x.dtype)

    def reference(self, *args: Array) -> Array:
        return args[0].reshape(self.to)


@dataclass(frozen=True, eq=False)
class Transpose(Node):
    """y's axis i is x's axis perm[i]."""

    x: Node
    perm: tuple[int, ...]

    def infer(self) -> TensorType:
        x = self.x.type
        refuse(sorted(self.perm) != list(range(x.rank)), f"{self.perm} is not a permutation of the {x.rank} axes of x")
        return TensorType(tuple(x.shape[a] for a in self.perm), x.dtype)

    def reference(self, *args: Array) -> Array:
        return np.ascontiguousarray(args[0].transpose(self.perm))


@dataclass(frozen=True, eq=False)
class Slice(Node):
    """Along every axis: `size` elements from `begin` in steps of `step` (not 0, may be negative)."""

    x: Node
    begin: tuple[int, ...]
    size: tuple[int, ...]
    step: tuple[int, ...]

    def infer(self) -> TensorType:
        x = self.x.type
        check_lengths(x.rank, begin=self.begin, size=self.size, step=self.step)
        for axis, (extent, b, n, s) in enumerate(zip(x.shape, self.begin, self.size, self.step, strict=True)):
            refuse(s == 0, f"the step along axis {axis} is 0")
            refuse(n < 0, f"the size along axis {axis} is {n}")
            last = b + (n - 1) * s
            outside = n > 0 and not (0 <= b < extent and 0 <= last < extent)
            refuse(outside, f"elements {b} to {last} along axis {axis} lie outside its extent {extent}")
        return TensorType(self.size, x.dtype)

    def reference(self, *args: Array) -> Array:
        axes = zip(self.begin, self.size, self.step, strict=True)
        return np.ascontiguousarray(args[0][tuple(slice_of(b, n, s) for b, n, s in axes)])


def slice_of(begin: int, size: int, step: int) -> slice:
    """numpy's slice of `size` elements from `begin` in steps of `step`."""
    end = begin + size * step
    return slice(0, 0) if size == 0 else slice(begin, None if end < 0 else end, step)


@dataclass(frozen=True, eq=False)
class Concat(Node):
    """xs one after the other along `axis`."""

    xs: tuple[Node, ...]
    axis: int

    def infer(self) -> TensorType:
        refuse(not self.xs, "nothing to concatenate")
        types = [x.type for x in self.xs]
        first = types[0]
        check_axis(self.axis, first.rank)
        dtype = check_same_dtype(**{f"xs[{i}]": t for i, t in enumerate(types)})
        for i, t in enumerate(types):
            refuse(
                _without(t.shape, self.axis) != _without(first.shape, self.axis),
                f"xs[{i}] is {t}, xs[0] is {first}: they differ beside axis {self.axis}",
            )
        extent = sum(t.shape[self.axis] for t in types)
        return TensorType((*first.shape[: self.axis], extent, *first.shape[self.axis + 1 :]), dtype)

    def reference(self, *args: Array) -> Array:
        return np.concatenate(args, axis=self.axis)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :] if len(shape) > axis else (*shape, -1)


@dataclass(frozen=True, eq=False)
class Pad(Node):
    """(before, after) elements per axis, negative crops. mode: constant (with `value`), reflect, edge, wrap."""

    x: Node
    pad: Pads
    mode: str = "constant"
    value: float = 0.0

    def infer(self) -> TensorType:
        x = self.x.type
        refuse(self.mode not in ("constant", "reflect", "edge", "wrap"), f"{self.mode} is not a mode of padding")
        check_lengths(x.rank, pad=self.pad)
        for axis, (extent, (before, after)) in enumerate(zip(x.shape, self.pad, strict=True)):
            kept = extent + min(before, 0) + min(after, 0)
            refuse(kept < 0, f"pad {before, after} crops more than axis {axis} has: {extent}")
            grows = max(before, after) > 0
            refuse(grows and self.mode != "constant" and kept == 0, f"axis {axis} has no element to pad with")
            bounces = self.mode == "reflect" and max(before, after) > max(kept - 1, 0)
            refuse(bounces, f"pad {before, after} reflects further than axis {axis} of {kept} elements reaches")
        return TensorType(tuple(e + sum(p) for e, p in zip(x.shape, self.pad, strict=True)), x.dtype)

    def reference(self, *args: Array) -> Array:
        x = args[0]
        kept = x[tuple(slice(max(-b, 0), e - max(-a, 0)) for e, (b, a) in zip(x.shape, self.pad, strict=True))]
        grown = [(max(b, 0), max(a, 0)) for b, a in self.pad]
        match self.mode:
            case "constant":
                return np.pad(kept, grown, constant_values=x.dtype.type(self.value))
            case "reflect":
                return np.pad(kept, grown, mode="reflect")
            case "edge":
                return np.pad(kept, grown, mode="edge")
            case _:
                return np.pad(kept, grown, mode="wrap")


@dataclass(frozen=True, eq=False)
class Broadcast(Node):
    """numpy's broadcast_to."""

    x: Node
    to: tuple[int, ...]

    def infer(self) -> TensorType:
        x = self.x.type
        refuse(any(e < 0 for e in self.to), f"shape {self.to} has a negative extent")
        tail = self.to[len(self.to) - x.rank :] if x.rank <= len(self.to) else ()
        fits = len(tail) == x.rank and all(e in (1, t) for e, t in zip(x.shape, tail, strict=True))
        refuse(not fits, f"x {x} does not broadcast to {self.to}")
        return TensorType(self.to, x.dtype)

    def reference(self, *args: Array) -> Array:
        return np.broadcast_to(args[0], self.to)


@dataclass(frozen=True, eq=False)
class Gather(Node):
    """numpy's take along `axis`; negative indices count from the end."""

    x: Node
    indices: Node
    axis: int

    def infer(self) -> TensorType:
        x, indices = self.x.type, self.indices.type
        check_axis(self.axis, x.rank)
        refuse(indices.dtype not in INTEGERS, f"indices must be integers, they are {indices}")
        return TensorType((*x.shape[: self.axis], *indices.shape, *x.shape[self.axis + 1 :]), x.dtype)

    def reference(self, *args: Array) -> Array:
        x, indices = args
        return np.take(x, indices.astype(np.int64), axis=self.axis)
