"""Operations that fold axes or windows: pools and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convc.ir.check import (
    check_axes,
    check_axis,
    check_floats,
    check_numbers,
    check_spatial,
    refuse,
    wide_dtype,
    window_extents,
)
from convc.ir.conv import Pads, tap_slices
from convc.ir.node import Array, Node, TensorType


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """Max, average or Lp over windows of x [N, C, *I]. kind: max, average, lp (with exponent `p`).

    `pad` is (before, after) per spatial axis. `overhang` is how far ceil_mode lets the last window reach beyond the
    padded input; those cells never count. Average divides by the cells inside the input, or, with `count_pad`, inside
    the padded input.
    """

    kind: str
    x: Node
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: Pads
    dilation: tuple[int, ...]
    overhang: tuple[int, ...]
    count_pad: bool = False
    p: int = 2

    def infer(self) -> TensorType:
        x = self.x.type
        refuse(self.kind not in ("max", "average", "lp"), f"{self.kind} is not a kind of pool")
        check_spatial(x)
        if self.kind != "max":
            check_floats("x", x)
        refuse(self.p < 1, f"the exponent p is {self.p}; it must be 1 or more")
        extents = self.extents(x.shape[2:])
        for k, d, (before, after) in zip(self.kernel, self.dilation, self.pad, strict=True):
            span = (k - 1) * d + 1
            reason = f"pad {before, after} leaves a window of {span} cells nothing but padding"
            refuse(max(before, after) >= span, reason)
        return TensorType((*x.shape[:2], *extents), x.dtype)

    def extents(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        return window_extents(
            inputs, self.kernel, stride=self.stride, pad=self.pad, dilation=self.dilation, overhang=self.overhang
        )

    @property
    def flops(self) -> int:
        """One for each element of each window."""
        return self.type.elements * math.prod(self.kernel)

    def counts(self, inputs: tuple[int, ...]) -> Array:
        """How many cells each window of an average divides by, [*extents]; at least 1."""
        found = np.ones((), np.int64)
        axes = zip(inputs, self.extents(inputs), self.kernel, self.stride, self.pad, self.dilation, strict=True)
        for i, out, k, s, (before, after), d in axes:
            cell = np.arange(out)[:, None] * s + np.arange(k)[None, :] * d
            first, last = (0, before + i + after) if self.count_pad else (before, before + i)
            found = np.multiply.outer(found, np.sum((cell >= first) & (cell < last), axis=1))
        return np.maximum(found, 1)

    def reference(self, *args: Array) -> Array:
        (x,) = args
        inputs, dtype = x.shape[2:], wide_dtype(x.dtype)
        edge = [(before, after + extra) for (before, after), extra in zip(self.pad, self.overhang, strict=True)]
        fill = lowest(x.dtype) if self.kind == "max" else 0
        cells = np.pad(x.astype(dtype, copy=False), ((0, 0), (0, 0), *edge), constant_values=fill)
        extents = self.extents(inputs)
        y = np.full((*x.shape[:2], *extents), fill, dtype)
        for _, where in tap_slices(self.kernel, extents=extents, stride=self.stride, dilation=self.dilation):
            tap = cells[(slice(None), slice(None), *where)]
            if self.kind == "max":
                np.maximum(y, tap, out=y)
            else:
                y += np.abs(tap) ** self.p if self.kind == "lp" else tap
        if self.kind == "lp":
            y = y ** (1 / self.p)
        if self.kind == "average":
            y = y / self.counts(inputs).astype(dtype)
        return y.astype(x.dtype, copy=False)


def lowest(dtype: np.dtype[Any]) -> float | int:
    """What every element of `dtype` is at least."""
    return int(np.iinfo(dtype).min) if dtype.kind in "iu" else -math.inf


Fold = Callable[[Array, tuple[int, ...], bool], Array]


def _mean(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    """Integers: toward zero."""
    if x.dtype.kind not in "iu":
        return np.asarray(np.mean(x, axis=axes, keepdims=keep))
    count = math.prod(x.shape[a] for a in axes)
    total = np.sum(x, axis=axes, keepdims=keep, dtype=np.int64)
    return np.asarray(np.sign(total) * (np.abs(total) // count))


def _log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    top = np.max(x, axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    total: Array = np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True)) + top
    return total if keep else np.squeeze(total, axes)


def _sum(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return np.asarray(np.sum(x, axis=axes, keepdims=keep, dtype=x.dtype))


REDUCTIONS: dict[str, Fold] = {
    "sum": _sum,
    "mean": _mean,
    "max": lambda x, axes, keep: np.asarray(np.max(x, axis=axes, keepdims=keep)),
    "min": lambda x, axes, keep: np.asarray(np.min(x, axis=axes, keepdims=keep)),
    "prod": lambda x, axes, keep: np.asarray(np.prod(x, axis=axes, keepdims=keep, dtype=x.dtype)),
    "l1": lambda x, axes, keep: _sum(np.abs(x), axes, keep),
    "l2": lambda x, axes, keep: np.sqrt(_sum(x * x, axes, keep)),
    "sum_square": lambda x, axes, keep: _sum(x * x, axes, keep),
    "log_sum": lambda x, axes, keep: np.log(_sum(x, axes, keep)),
    "log_sum_exp": _log_sum_exp,
}
_FLOAT_REDUCTIONS = frozenset({"log_sum", "log_sum_exp", "l2"})
_NEEDS_ELEMENTS = frozenset({"mean", "max", "min", "log_sum_exp"})


@dataclass(frozen=True, eq=False)
class Reduce(Node):
    """fn over `axes` (non-negative, sorted).

    fn: sum, mean (integers: toward zero), max, min, prod, l1, l2, sum_square, log_sum, log_sum_exp.
    """

    fn: str
    x: Node
    axes: tuple[int, ...]
    keepdims: bool = True

    def infer(self) -> TensorType:
        refuse(self.fn not in REDUCTIONS, f"{self.fn} is not a reduction")
        x = self.x.type
        check_numbers("x", x)
        check_axes(self.axes, x.rank)
        if self.fn in _FLOAT_REDUCTIONS:
            check_floats("x", x)
        empty = self.fn in _NEEDS_ELEMENTS and any(x.shape[a] == 0 for a in self.axes)
        refuse(empty, f"the {self.fn} over axes {self.axes} of {x} is over no elements")
        return TensorType(reduced_shape(x.shape, self.axes, keepdims=self.keepdims), x.dtype)

    @property
    def flops(self) -> int:
        """One an element of x."""
        return self.x.type.elements

    def reference(self, *args: Array) -> Array:
        (x,) = args
        with np.errstate(all="ignore"):
            y = REDUCTIONS[self.fn](x.astype(wide_dtype(x.dtype), copy=False), self.axes, self.keepdims)
        return y.astype(x.dtype, copy=False)


def reduced_shape(shape: tuple[int, ...], axes: tuple[int, ...], *, keepdims: bool) -> tuple[int, ...]:
    if keepdims:
        return tuple(1 if a in axes else e for a, e in enumerate(shape))
    return tuple(e for a, e in enumerate(shape) if a not in axes)


@dataclass(frozen=True, eq=False)
class ArgReduce(Node):
    """Index (int64) of the largest (fn max) or smallest (fn min) element along `axis`; of equals the first or last."""

    fn: str
    x: Node
    axis: int
    keepdims: bool = True
    last: bool = False

    def infer(self) -> TensorType:
        refuse(self.fn not in ("max", "min"), f"{self.fn} has no position; max and min have")
        x = self.x.type
        check_numbers("x", x)
        check_axis(self.axis, x.rank)
        refuse(x.shape[self.axis] == 0, f"axis {self.axis} of {x} has no element")
        return TensorType(reduced_shape(x.shape, (self.axis,), keepdims=self.keepdims), "int64")

    @property
    def flops(self) -> int:
        """One an element of x."""
        return self.x.type.elements

    def reference(self, *args: Array) -> Array:
        (x,) = args
        find = np.argmax if self.fn == "max" else np.argmin
        if not self.last:
            return np.asarray(find(x, axis=self.axis, keepdims=self.keepdims), np.int64)
        from_end = find(np.flip(x, self.axis), axis=self.axis, keepdims=self.keepdims)
        return np.asarray(x.shape[self.axis] - 1 - from_end, np.int64)
