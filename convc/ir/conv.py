"""Convolution, its transpose, and the matrix product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convc.ir.check import (
    SUMS,
    broadcast_shape,
    check_lengths,
    check_numbers,
    check_positive,
    check_products,
    check_same_dtype,
    check_spatial,
    refuse,
    wide_dtype,
    window_extents,
)
from convc.ir.node import Array, Node, TensorType

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """y[n,o,i,j] = b[o] + sum over c,u,v of x[n, c, i*s0 + u*d0 - p0, j*s1 + v*d1 - p1] * w[o,c,u,v].

    1 to 3 spatial axes; x [N, C, *I], w [O, C/group, *K], b [O] or None. `pad` is (before, after) per spatial axis, in
    elements; `dilation` is the distance between taps (1 is dense). Integer tensors accumulate in their own dtype, but
    int8 and uint8 x by int8 w in int32, which b and y are then.
    """

    x: Node
    w: Node
    b: Node | None
    stride: tuple[int, ...]
    pad: Pads
    dilation: tuple[int, ...]
    group: int

    def infer(self) -> TensorType:
        x, w = self.x.type, self.w.type
        dtype = check_weights(x, w, group=self.group)
        (channels, per_group), out = x.shape[1:2] + w.shape[1:2], w.shape[0]
        refuse(
            per_group * self.group != channels,
            f"w {w} reads {per_group} channels in each of {self.group} groups, x {x} has {channels}",
        )
        refuse(out % self.group != 0, f"{out} output channels do not divide into {self.group} groups")
        check_bias(self.b, dtype, channels=out)
        extents = window_extents(x.shape[2:], w.shape[2:], stride=self.stride, pad=self.pad, dilation=self.dilation)
        return TensorType((x.shape[0], out, *extents), dtype)

    @property
    def flops(self) -> int:
        """2 x MAC; taps that fall on padding count as well."""
        return 2 * self.type.elements * math.prod(self.w.shape[1:])

    def reference(self, *args: Array) -> Array:
        x, w, b = args[0], args[1], args[2] if len(args) > 2 else None
        padded = np.pad(x, ((0, 0), (0, 0), *self.pad))
        extents = window_extents(x.shape[2:], w.shape[2:], stride=self.stride, pad=self.pad, dilation=self.dilation)
        dtype = sums_of(x, w)
        taps = sum_of_taps(padded, w, extents=extents, stride=self.stride, dilation=self.dilation, group=self.group)
        return add_bias(taps, b).astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class ConvTranspose(Node):
    """The gradient of Conv: y[n, o, i*s + u*d - p] += x[n,c,i] * w[c,o,u]. x [N, C, *I], w [C, O/group, *K], b [O].

    Extent: (I-1)*s + (K-1)*d + 1 - before - after + output_pad.
    """

    x: Node
    w: Node
    b: Node | None
    stride: tuple[int, ...]
    pad: Pads
    dilation: tuple[int, ...]
    output_pad: tuple[int, ...]
    group: int

    def infer(self) -> TensorType:
        x, w = self.x.type, self.w.type
        dtype = check_weights(x, w, group=self.group)
        channels, out = x.shape[1], w.shape[1] * self.group
        refuse(w.shape[0] != channels, f"w {w} reads {w.shape[0]} channels, x {x} has {channels}")
        refuse(channels % self.group != 0, f"{channels} input channels do not divide into {self.group} groups")
        check_bias(self.b, dtype, channels=out)
        check_lengths(x.rank - 2, stride=self.stride, pad=self.pad, dilation=self.dilation, output_pad=self.output_pad)
        check_positive(stride=self.stride, dilation=self.dilation)
        refuse(any(p < 0 for pair in self.pad for p in pair), f"pad {self.pad} has a negative entry")
        refuse(any(p < 0 for p in self.output_pad), f"output_pad {self.output_pad} has a negative entry")
        extents = self.extents(x.shape[2:], w.shape[2:])
        refuse(min(extents) < 1, f"the output would have extents {extents}: pad {self.pad} crops all of it")
        return TensorType((x.shape[0], out, *extents), dtype)

    def extents(self, inputs: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        axes = zip(inputs, kernel, self.stride, self.dilation, self.pad, self.output_pad, strict=True)
        return tuple((i - 1) * s + (k - 1) * d + 1 - sum(p) + o for i, k, s, d, p, o in axes)

    @property
    def flops(self) -> int:
        """2 x MAC; products that fall on the cropped border count as well."""
        return 2 * self.x.type.elements * math.prod(self.w.shape[1:])

    def reference(self, *args: Array) -> Array:
        x, w, b = args[0], args[1], args[2] if len(args) > 2 else None
        dtype, group = sums_of(x, w), self.group
        batch, inputs, kernel = x.shape[0], x.shape[2:], w.shape[2:]
        extents = self.extents(inputs, kernel)
        full = [e + sum(p) for e, p in zip(extents, self.pad, strict=True)]
        lhs = w.reshape(group, w.shape[0] // group, w.shape[1], *kernel)
        rhs = x.reshape(batch, group, x.shape[1] // group, -1)
        y = np.zeros((batch, group * w.shape[1], *full), wide_dtype(dtype))
        for tap, where in tap_slices(kernel, extents=inputs, stride=self.stride, dilation=self.dilation):
            part = exact_matmul(lhs[(slice(None),) * 3 + tap].swapaxes(1, 2), rhs)
            y[(slice(None), slice(None), *where)] += part.reshape(batch, -1, *inputs)
        kept = tuple(slice(p[0], p[0] + e) for e, p in zip(extents, self.pad, strict=True))
        return add_bias(y[(slice(None), slice(None), *kept)], b).astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class MatMul(Node):
    """numpy's matmul: a [..., M, K] times b [..., K, N]; leading axes broadcast. Both have rank 2 or more.
    The product of int8 or uint8 a and int8 b is int32.
    """

    a: Node
    b: Node

    def infer(self) -> TensorType:
        a, b = self.a.type, self.b.type
        dtype = check_products(a=a, b=b)
        check_numbers("a", a)
        refuse(min(a.rank, b.rank) < 2, f"a {a} and b {b} must both be matrices or stacks of matrices")
        refuse(a.shape[-1] != b.shape[-2], f"a {a} has {a.shape[-1]} columns, b {b} has {b.shape[-2]} rows")
        stack = broadcast_shape(a.shape[:-2], b.shape[:-2])
        return TensorType((*stack, a.shape[-2], b.shape[-1]), dtype)

    @property
    def flops(self) -> int:
        """2 x MAC."""
        return 2 * self.type.elements * self.a.shape[-1]

    def reference(self, *args: Array) -> Array:
        a, b = args
        return exact_matmul(a, b).astype(sums_of(a, b), copy=False)


def check_weights(x: TensorType, w: TensorType, *, group: int) -> str:
    """What Conv and ConvTranspose both ask of x and w; the dtype of their sums."""
    check_spatial(x)
    dtype = check_products(x=x, w=w)
    refuse(w.rank != x.rank, f"w {w} has rank {w.rank}, x {x} has rank {x.rank}")
    check_positive(w=w.shape, group=(group,))
    return dtype


def check_bias(b: Node | None, dtype: str, *, channels: int) -> None:
    if b is None:
        return
    check_same_dtype(y=TensorType((), dtype), b=b.type)
    refuse(b.shape != (channels,), f"b {b.type} must be one number for each of {channels} output channels")


def sums_of(x: Array, w: Array) -> np.dtype[Any]:
    return np.dtype(SUMS.get(x.dtype.name, np.result_type(x, w)))


def tap_slices(
    kernel: Sequence[int], *, extents: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """For every tap its index and the strided slices, one per axis, of the cells that it meets in `extents` windows."""
    for tap in itertools.product(*map(range, kernel)):
        axes = zip(tap, extents, stride, dilation, strict=True)
        yield tap, tuple(slice(u * d, u * d + (e - 1) * s + 1, s) for u, e, s, d in axes)


def sum_of_taps(
    padded: Array, w: Array, *, extents: Sequence[int], stride: Sequence[int], dilation: Sequence[int], group: int
) -> Array:
    """The convolution without padding and bias: one matrix product for each tap. [N, O, *extents]"""
    batch, out = padded.shape[0], w.shape[0]
    y = np.zeros((batch, group, out // group, math.prod(extents)), wide_dtype(sums_of(padded, w)))
    lhs = w.reshape(group, out // group, *w.shape[1:])
    for tap, where in tap_slices(w.shape[2:], extents=extents, stride=stride, dilation=dilation):
        cells = padded[(slice(None), slice(None), *where)].reshape(batch, group, w.shape[1], -1)
        y += exact_matmul(lhs[(slice(None),) * 3 + tap], cells)
    return y.reshape(batch, out, *extents)


def add_bias(y: Array, b: Array | None) -> Array:
    """y [N, O, *I] plus b [O]."""
    return y if b is None else y + b.reshape(-1, *(1,) * (y.ndim - 2))


def exact_matmul(a: Array, b: Array) -> Array:
    """numpy's matmul without its two weak spots: 2-byte floats sum in float32 (the dtype of the result), and integer
    products go through float64, which is much faster, where no sum can leave the range in which float64 is exact."""
    dtype = wide_dtype(sums_of(a, b))
    through = dtype
    if dtype.kind in "iu" and a.size and b.size:
        bound = a.shape[-1] * largest(a) * largest(b)
        through = np.dtype(np.float64) if bound < min(2**53, np.iinfo(dtype).max) else dtype
    lhs, rhs = a.astype(through, copy=False), b.astype(through, copy=False)
    product: Array = lhs * rhs if a.shape[-1] == 1 else np.matmul(lhs, rhs)
    return product.astype(dtype, copy=False)


def largest(x: Array) -> int:
    return max(abs(int(x.max())), abs(int(x.min())))
