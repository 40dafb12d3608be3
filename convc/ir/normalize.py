"""Operations that scale elements by a statistic of their neighbours: softmax, the normalisations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convc.ir.check import check_axes, check_axis, check_floats, refuse, wide_dtype
from convc.ir.node import Array, Node, TensorType


@dataclass(frozen=True, eq=False)
class Softmax(Node):
    """exp(x - max) / sum over `axis`, or its logarithm."""

    x: Node
    axis: int
    log: bool = False

    def infer(self) -> TensorType:
        x = self.x.type
        check_floats("x", x)
        check_axis(self.axis, x.rank)
        return x

    @property
    def flops(self) -> int:
        """Four an element: maximum, difference with exponential, sum, quotient."""
        return 4 * self.type.elements

    def reference(self, *args: Array) -> Array:
        x = args[0].astype(wide_dtype(args[0].dtype), copy=False)
        with np.errstate(all="ignore"):
            shifted = x - np.max(x, axis=self.axis, keepdims=True)
            total = np.sum(np.exp(shifted), axis=self.axis, keepdims=True)
            y: Array = shifted - np.log(total) if self.log else np.exp(shifted) / total
        return y.astype(args[0].dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Normalize(Node):
    """(x - mean) / sqrt(variance + epsilon) over `axes` (sorted): the core of layer, instance and group norm."""

    x: Node
    axes: tuple[int, ...]
    epsilon: float

    def infer(self) -> TensorType:
        x = self.x.type
        check_floats("x", x)
        check_axes(self.axes, x.rank)
        refuse(not self.axes, "a normalisation over no axes")
        refuse(any(x.shape[a] == 0 for a in self.axes), f"axes {self.axes} of {x} hold no elements")
        refuse(not self.epsilon >= 0, f"epsilon is {self.epsilon}; it must not be negative")
        return x

    @property
    def flops(self) -> int:
        """Five an element: mean, difference, square, its mean, scale."""
        return 5 * self.type.elements

    def reference(self, *args: Array) -> Array:
        x = args[0].astype(wide_dtype(args[0].dtype), copy=False)
        with np.errstate(all="ignore"):
            centred = x - np.mean(x, axis=self.axes, keepdims=True)
            variance = np.mean(centred * centred, axis=self.axes, keepdims=True)
            y: Array = centred / np.sqrt(variance + self.epsilon)
        return y.astype(args[0].dtype, copy=False)


@dataclass(frozen=True, eq=False)
class LRN(Node):
    """x / (bias + alpha/size * sum of squares over `size` neighbouring channels) ** beta.

    Channel c reads channels c - (size-1)//2 to c + size//2.
    """

    x: Node
    size: int
    alpha: float
    beta: float
    bias: float

    def infer(self) -> TensorType:
        x = self.x.type
        check_floats("x", x)
        refuse(x.rank < 2, f"x {x} has no channel axis")
        refuse(self.size < 1, f"size is {self.size}; it must be 1 or more")
        return x

    @property
    def flops(self) -> int:
        """size + 3 an element."""
        return (self.size + 3) * self.type.elements

    def reference(self, *args: Array) -> Array:
        x = args[0].astype(wide_dtype(args[0].dtype), copy=False)
        channels = x.shape[1]
        before, after = min((self.size - 1) // 2, channels), min(self.size // 2, channels)
        total = np.zeros_like(x)
        for shift in range(-before, after + 1):
            to = slice(max(0, -shift), min(channels, channels - shift))
            source = slice(max(0, shift), min(channels, channels + shift))
            total[:, to] += np.square(x[:, source])
        with np.errstate(all="ignore"):
            y: Array = x / (self.bias + self.alpha / self.size * total) ** self.beta
        return y.astype(args[0].dtype, copy=False)
