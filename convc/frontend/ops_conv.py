"""ONNX's convolutions and matrix products on floats."""

from __future__ import annotations

from collections.abc import Callable

from convc.errors import BadInputError
from convc.frontend.call import Call, scalar
from convc.frontend.window import (
    AUTO_PADS,
    Window,
    check_range,
    explicit_pads,
    halves,
    per_axis,
    spans,
    spatial_extents,
    window_of,
)
from convc.ir import Binary, Conv, ConvTranspose, MatMul, Node, Pads, Reshape, Transpose
from convc.ir.check import broadcast_shape


def kernel_of(call: Call, w: Node) -> tuple[int, ...]:
    """The taps are w's; the attribute may only repeat them."""
    given, found = call.ints("kernel_shape"), w.shape[2:]
    if given is not None and given != found:
        raise BadInputError(f"kernel_shape {list(given)} is not that of w {w.type}")
    return found


def conv_window(call: Call, x: Node, w: Node) -> Window:
    if w.type.rank != x.type.rank:
        raise BadInputError(f"w {w.type} and x {x.type} must have the same rank")
    return window_of(call, x, kernel_of(call, w))


def conv(call: Call) -> Node:
    return conv_of(call, call[0], call[1], call.get(2))


def conv_of(call: Call, x: Node, w: Node, b: Node | None) -> Node:
    window = conv_window(call, x, w)
    return Conv(x, w, b, window.stride, window.pad, window.dilation, call.integer("group", 1))


def conv_transpose(call: Call) -> Node:
    x, w = call[0], call[1]
    if w.type.rank != x.type.rank:
        raise BadInputError(f"w {w.type} and x {x.type} must have the same rank")
    extents, kernel, count = spatial_extents(x), kernel_of(call, w), x.type.rank - 2
    stride, dilation = per_axis(call, "strides", count), per_axis(call, "dilations", count)
    extra = per_axis(call, "output_padding", count, least=0)
    reach = zip(extents, stride, spans(kernel, dilation), extra, strict=True)
    full = tuple((i - 1) * s + span + o for i, s, span, o in reach)
    pad, extra = transposed_pads(call, extents, stride, full, extra)
    return ConvTranspose(x, w, call.get(2), stride, pad, dilation, extra, call.integer("group", 1))


def transposed_pads(
    call: Call, extents: tuple[int, ...], stride: tuple[int, ...], full: tuple[int, ...], extra: tuple[int, ...]
) -> tuple[Pads, tuple[int, ...]]:
    """Padding and output padding that cut `full` down, or extend it, to the output extents that the node asks for."""
    mode, wanted, count = call.text("auto_pad", "NOTSET", AUTO_PADS), call.ints("output_shape"), len(extents)
    if wanted is None and mode == "VALID":
        return ((0, 0),) * count, extra
    if wanted is None and mode == "NOTSET":
        return explicit_pads(call, count), extra
    if wanted is None:
        wanted = tuple(i * s for i, s in zip(extents, stride, strict=True))
    wanted = wanted[-count:] if len(wanted) == count + 2 else wanted
    check_range("output_shape", wanted, count, least=1)
    cut = [f - y for f, y in zip(full, wanted, strict=True)]
    pad = tuple(halves(c, upper=mode == "SAME_UPPER") for c in cut)
    return pad, tuple(e + max(-c, 0) for e, c in zip(extra, cut, strict=True))


def matmul(call: Call) -> Node:
    return product(call[0], call[1])


def product(a: Node, b: Node) -> Node:
    """numpy's matmul, vectors included: a vector is a row on the left and a column on the right."""
    if min(a.type.rank, b.type.rank) == 0:
        raise BadInputError(f"a {a.type} and b {b.type} must have rank 1 or more")
    rows = Reshape(a, (1, *a.shape)) if a.type.rank == 1 else a
    columns = Reshape(b, (*b.shape, 1)) if b.type.rank == 1 else b
    y = MatMul(rows, columns)
    shape = y.shape[:-2] + y.shape[-2:-1] * (a.type.rank > 1) + y.shape[-1:] * (b.type.rank > 1)
    return y if shape == y.shape else Reshape(y, shape)


def gemm(call: Call) -> Node:
    """alpha * A' B' + beta * C"""
    a, b = matrix(call, 0, "transA"), matrix(call, 1, "transB")
    y = scaled(MatMul(a, b), call.real("alpha", 1.0))
    c = call.get(2)
    if c is None:
        return y
    if broadcast_shape(c.shape, y.shape) != y.shape:
        raise BadInputError(f"C {c.type} does not broadcast to {y.type}")
    return Binary("add", y, scaled(c, call.real("beta", 1.0)))


def matrix(call: Call, index: int, transposed: str) -> Node:
    x = call[index]
    if x.type.rank != 2:
        raise BadInputError(f"argument {index} is {x.type}, it must be a matrix")
    return Transpose(x, (1, 0)) if call.flag(transposed, False) else x


def scaled(x: Node, factor: float) -> Node:
    return x if factor == 1.0 else Binary("mul", x, scalar(factor, x))


OPERATORS: dict[str, Callable[[Call], Node]] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "MatMul": matmul, "Gemm": gemm,
}  # fmt: skip
