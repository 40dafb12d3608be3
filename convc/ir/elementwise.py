"""Operations on each element on its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convc.ir.check import (
    DTYPES,
    FLOATS,
    broadcast_shape,
    check_floats,
    check_numbers,
    check_same_dtype,
    refuse,
    wide_dtype,
)
from convc.ir.functions import BINARY, COMPARISONS, LOGICAL, UNARY, UNARY_ON_INTEGERS
from convc.ir.node import Array, Node, TensorType


@dataclass(frozen=True, eq=False)
class Unary(Node):
    """y = fn(x, *params).

    fn (params): relu, leaky_relu (alpha), clip (low, high), sigmoid, hard_sigmoid (alpha, beta), hard_swish,
    swish (alpha: x * sigmoid(alpha*x)), gelu (the erf form), gelu_tanh, tanh, softplus, softsign, mish, elu (alpha),
    selu (alpha, gamma), celu (alpha), thresholded_relu (alpha), exp, log, sqrt, reciprocal, neg, abs, floor, ceil,
    round (half to even), sign, erf, sin, cos, tan, asin, acos, atan, sinh, cosh, asinh, acosh, atanh, not, isnan.
    """

    fn: str
    x: Node
    params: tuple[float, ...] = ()

    def infer(self) -> TensorType:
        refuse(self.fn not in UNARY, f"{self.fn} is not a function of one tensor")
        count = UNARY[self.fn][1]
        refuse(len(self.params) != count, f"{self.fn} takes {count} parameters, {len(self.params)} are given")
        x = self.x.type
        if self.fn == "not":
            refuse(x.dtype != "bool", f"not needs bool, x is {x}")
        elif self.fn in UNARY_ON_INTEGERS:
            check_numbers("x", x)
        else:
            check_floats("x", x)
        return TensorType(x.shape, "bool" if self.fn == "isnan" else x.dtype)

    @property
    def flops(self) -> int:
        """One an element, whatever the function."""
        return self.type.elements

    def reference(self, *args: Array) -> Array:
        (x,) = args
        with np.errstate(all="ignore"):
            y: Array = UNARY[self.fn][0](x.astype(wide_dtype(x.dtype), copy=False), *self.params)
        return y if y.dtype == bool else y.astype(x.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Binary(Node):
    """y = fn(a, b) with numpy's broadcasting.

    fn: add, sub, mul, div (integers: toward zero), pow, min, max, prelu (b is the slope), mod (sign of b), fmod (sign
    of a); bool results: equal, less, less_equal, greater, greater_equal; on bool: and, or, xor.
    """

    fn: str
    a: Node
    b: Node

    def infer(self) -> TensorType:
        refuse(self.fn not in BINARY, f"{self.fn} is not a function of two tensors")
        a, b = self.a.type, self.b.type
        dtype = check_same_dtype(a=a, b=b)
        if self.fn in LOGICAL:
            refuse(dtype != "bool", f"{self.fn} needs bool, a is {a}")
        elif self.fn != "equal":
            check_numbers("a", a)
        return TensorType(broadcast_shape(a.shape, b.shape), "bool" if self.fn in COMPARISONS else dtype)

    @property
    def flops(self) -> int:
        """One an element."""
        return self.type.elements

    def reference(self, *args: Array) -> Array:
        a, b = args
        dtype = np.result_type(a, b)
        wide = wide_dtype(dtype)
        with np.errstate(all="ignore"):
            y: Array = np.asarray(BINARY[self.fn](a.astype(wide, copy=False), b.astype(wide, copy=False)))
        return y if y.dtype == bool else y.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Where(Node):
    """y = a where cond, else b; numpy's broadcasting."""

    cond: Node
    a: Node
    b: Node

    def infer(self) -> TensorType:
        cond, a, b = self.cond.type, self.a.type, self.b.type
        refuse(cond.dtype != "bool", f"the condition must be bool, it is {cond}")
        return TensorType(broadcast_shape(cond.shape, a.shape, b.shape), check_same_dtype(a=a, b=b))

    def reference(self, *args: Array) -> Array:
        cond, a, b = args
        return np.where(cond, a, b)


@dataclass(frozen=True, eq=False)
class Cast(Node):
    """x as `to`. Float to integer truncates toward zero."""

    x: Node
    to: str

    def infer(self) -> TensorType:
        refuse(self.to not in DTYPES, f"{self.to} is not a dtype of a tensor; known are {', '.join(DTYPES)}")
        return TensorType(self.x.shape, self.to)

    def reference(self, *args: Array) -> Array:
        """A float64 array that stands for a narrower float, as in a float64 reference, stays float64 as any float."""
        (x,) = args
        if x.dtype == np.float64 and self.x.dtype != "float64" and self.to in FLOATS:
            return x
        with np.errstate(all="ignore"):
            return x.astype(np.dtype(self.to))
