"""ONNX's quantized operators, as integer nodes with the casts written out. The passes find the integers by these forms:

dequantize: mul(Cast(sub(Cast(q, int32), zero), float32), scale), without the sub and its cast where zero is 0;
quantize: Cast(clip(add(round(div(x, scale)), zero)), 8-bit), without the add where zero is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import Call, check_table, normal_axis
from convc.frontend.limits import MAX_TABLE
from convc.frontend.ops_conv import conv_of, product
from convc.frontend.ops_elementwise import cast
from convc.frontend.tensor import carried
from convc.ir import Array, Binary, Cast, Const, Node, Unary

INT32 = 2**31 - 1


def scale_at(call: Call, index: int) -> Array:
    scale = call.constant(index, "a scale")
    if not scale.size or not np.all(np.isfinite(scale) & (scale > 0)):
        raise BadInputError(f"argument {index} is a scale that is not a positive, finite number")
    return scale


def zero_at(call: Call, index: int) -> Array:
    """Zero points as int32; 0 where the argument is left out."""
    zero = call.constant_or_none(index, "a zero point")
    return np.zeros((), np.int32) if zero is None else zero.astype(np.int32)


def along(p: Array, x: Node, axis: int, block: int = 0) -> Array:
    """A quantization parameter - one number, one for each index of `axis`, or one for each block - broadcast to x."""
    if p.size == 1:
        return p.reshape(())
    axis, rank = normal_axis(axis, x.type.rank), x.type.rank
    if p.shape == (x.shape[axis],):
        return p.reshape(-1, *(1,) * (rank - axis - 1))
    blocks = -(-x.shape[axis] // block) if block > 0 else 0
    if p.shape != (*x.shape[:axis], blocks, *x.shape[axis + 1 :]):
        raise BadInputError(f"scale or zero point of shape {list(p.shape)} do not fit x {x.type} along axis {axis}")
    check_table(x.type.elements)
    return np.repeat(p, min(block, x.shape[axis]), axis)[(slice(None),) * axis + (slice(x.shape[axis]),)]


def parameters(call: Call) -> tuple[Array, Array]:
    """Scale and zero point of QuantizeLinear and DequantizeLinear."""
    axis, block = call.integer("axis", 1), call.integer("block_size", 0)
    if not 0 <= block <= INT32:
        raise BadInputError(f"block_size is {block}")
    scale, zero = scale_at(call, 1), zero_at(call, 2)
    if zero.ndim and zero.shape != scale.shape:
        raise BadInputError(f"a zero point of shape {list(zero.shape)} with a scale of {list(scale.shape)}")
    return along(scale, call[0], axis, block), along(zero, call[0], axis, block)


def dequantize_linear(call: Call) -> Node:
    scale, zero = parameters(call)
    if call.integer("output_dtype", 0):
        carried(call.integer("output_dtype", 0))
    return Binary("mul", Cast(centred(call[0], zero), "float32"), Const(scale))


def centred(q: Node, zero: Array) -> Node:
    """q - zero in int32; q itself where that changes nothing."""
    return Binary("sub", cast(q, "int32"), Const(zero)) if zero.any() else q


def quantize_linear(call: Call) -> Node:
    scale, zero = parameters(call)
    given = call.get(2)
    dtype = carried(call.integer("output_dtype", 0)) if call.integer("output_dtype", 0) else "uint8"
    x = cast(call[0], "float32")
    return quantized(Binary("div", x, Const(scale)), zero, given.dtype if given is not None else dtype)


def quantized(x: Node, zero: Array, dtype: str) -> Node:
    """round half to even, + zero, saturate"""
    if dtype not in ("int8", "uint8"):
        raise UnsupportedError(f"quantization to {dtype} is not supported")
    y: Node = Unary("round", x)
    y = Binary("add", y, Const(zero.astype(np.float32))) if zero.any() else y
    span = np.iinfo(dtype)
    return Cast(Unary("clip", y, (float(span.min), float(span.max))), dtype)


def requantized(total: Node, factor: Array, zero: Array, dtype: str) -> Node:
    """total * factor, rounded half to even; the factor is float64 until it is stored as float32."""
    with np.errstate(all="ignore"):
        stored = factor.astype(np.float32)
    if not np.all(np.isfinite(stored) & (stored > 0)):
        raise UnsupportedError("the scales make a factor that float32 cannot hold")
    return quantized(Binary("mul", Cast(total, "float32"), Const(stored)), zero, dtype)


def largest(x: Node, zero: Array) -> int:
    """The largest |q - zero| of any q of x's dtype."""
    span = np.iinfo(x.dtype)
    return max(abs(int(span.min) - int(zero.max())), abs(int(span.max) - int(zero.min())))


def check_sums(x_most: int, w: Node, w_zero: Array, axes: tuple[int, ...], bias: Node | None = None) -> None:
    """Refuse where a sum of products over `axes` of w, plus the bias, could leave int32."""
    if isinstance(w, Const) and w.type.elements <= MAX_TABLE:
        values = np.abs(w.value.astype(np.int64) - w_zero)
        most = int(values.sum(axis=axes).max(initial=0))
    else:
        most = largest(w, w_zero) * int(np.prod([w.shape[a] for a in axes], dtype=np.int64))
    start = int(np.abs(bias.value.astype(np.int64)).max(initial=0)) if isinstance(bias, Const) else 0
    if x_most * most + start > INT32:
        raise UnsupportedError(f"a sum can reach {x_most * most + start}, more than int32 holds")


def integer_conv(call: Call, x: Node, w: Node, b: Node | None, zeros: tuple[Array, Array]) -> Node:
    """The convolution of x - zero and w - zero in int32; padding is the zero point, which is 0 here."""
    x_zero, w_zero = zeros
    if x_zero.size != 1 or w_zero.size not in (1, w.shape[0] if w.type.rank else 0):
        raise BadInputError("x needs one zero point, w one or one for each output channel")
    per_output = along(w_zero, w, 0)
    check_sums(largest(x, x_zero), w, per_output, tuple(range(1, w.type.rank)), b)
    shifted = cast(centred(x, x_zero.reshape(())), "int32")
    return conv_of(call, shifted, cast(centred(w, per_output), "int32"), b)


def conv_integer(call: Call) -> Node:
    return integer_conv(call, call[0], call[1], None, (zero_at(call, 2), zero_at(call, 3)))


def qlinear_conv(call: Call) -> Node:
    """x, its scale and zero; w, its scale and zero; the result's scale and zero; bias in int32."""
    x, w, bias = call[0], call[3], call.get(8)
    x_scale, w_scale, y_scale = (scale_at(call, i).astype(np.float64) for i in (1, 4, 6))
    y_zero = zero_at(call, 7)
    if x_scale.size != 1 or y_scale.size != 1 or y_zero.size != 1:
        raise BadInputError("x and y need one scale and one zero point")
    total = integer_conv(call, x, w, bias, (zero_at(call, 2), zero_at(call, 5)))
    factor = x_scale.reshape(()) * along(w_scale, w, 0).reshape(-1) / y_scale.reshape(())
    shape = (-1, *(1,) * (x.type.rank - 2)) if factor.size > 1 else ()
    return requantized(total, factor.reshape(shape), y_zero.reshape(()), call[7].dtype)


def rows(p: Array) -> Array:
    """A parameter of the left matrix: one number, or one for each row."""
    return p.reshape(-1, 1) if p.ndim == 1 and p.size > 1 else p.reshape(()) if p.size == 1 else p


def columns(p: Array) -> Array:
    """A parameter of the right matrix: one number, or one for each column."""
    return p.reshape(()) if p.size == 1 else p


def integer_product(a: Node, b: Node, a_zero: Array, b_zero: Array) -> Node:
    for x, zero in ((a, a_zero), (b, b_zero)):
        if np.broadcast_shapes(zero.shape, x.shape) != x.shape:
            raise BadInputError(f"zero points of shape {list(zero.shape)} do not fit {x.type}")
    check_sums(largest(a, a_zero), b, b_zero, (max(b.type.rank - 2, 0),))
    return product(cast(centred(a, a_zero), "int32"), cast(centred(b, b_zero), "int32"))


def matmul_integer(call: Call) -> Node:
    return integer_product(call[0], call[1], rows(zero_at(call, 2)), columns(zero_at(call, 3)))


def qlinear_matmul(call: Call) -> Node:
    """a, its scale and zero; b, its scale and zero; the result's scale and zero."""
    a_scale, b_scale, y_scale = (scale_at(call, i).astype(np.float64) for i in (1, 4, 6))
    total = integer_product(call[0], call[3], rows(zero_at(call, 2)), columns(zero_at(call, 5)))
    factor = rows(a_scale) * columns(b_scale) / rows(y_scale)
    return requantized(total, factor, rows(zero_at(call, 7)), call[7].dtype)


OPERATORS: dict[str, Callable[[Call], Node]] = {
    "QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear, "QLinearConv": qlinear_conv,
    "ConvInteger": conv_integer, "QLinearMatMul": qlinear_matmul, "MatMulInteger": matmul_integer,
}  # fmt: skip
