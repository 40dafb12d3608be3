"""ONNX's normalisations, softmax and its relatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import Call, check_table, normal_axes, scalar
from convc.frontend.ops_pool import p_norm
from convc.ir import LRN, ArgReduce, Array, Binary, Cast, Const, Node, Normalize, Reduce, Reshape, Softmax, Unary


def batch_norm(call: Call) -> Node:
    """x * m + a with m = scale / sqrt(var + epsilon), a = bias - mean * m, worked out in float64."""
    if call.flag("training_mode", False) or not call.flag("spatial", True):
        raise UnsupportedError("only inference with one mean and variance for each channel is supported")
    x, parameters = call[0], [call[i] for i in range(1, 5)]
    check_per_channel(x, *parameters)
    epsilon = call.real("epsilon", 1e-5)
    values = [p.value.astype(np.float64) for p in parameters if isinstance(p, Const)]
    if len(values) < 4:
        return batch_norm_in_graph(x, *parameters, epsilon=epsilon)
    with np.errstate(all="ignore"):
        factor = values[0] / np.sqrt(values[3] + epsilon)
        shift = values[1] - values[2] * factor
    return affine(x, Const(factor.astype(np.float32)), Const(shift.astype(np.float32)))


def batch_norm_in_graph(x: Node, scale: Node, bias: Node, mean: Node, variance: Node, *, epsilon: float) -> Node:
    factor = Binary("div", scale, Unary("sqrt", Binary("add", variance, scalar(epsilon, x))))
    centred = Binary("sub", x, per_channel(mean, x))
    return Binary("add", Binary("mul", centred, per_channel(factor, x)), per_channel(bias, x))


def check_per_channel(x: Node, *parameters: Node) -> None:
    if x.type.rank < 2:
        raise BadInputError(f"x is {x.type}; it needs a batch axis and a channel axis")
    for p in parameters:
        if p.shape != x.shape[1:2]:
            raise BadInputError(f"a parameter is {p.type}, x {x.type} needs one number for each channel")


def per_channel(p: Node, x: Node) -> Node:
    """p [C] so that it broadcasts along axis 1 of x."""
    shape = (*p.shape, *(1,) * (x.type.rank - 2))
    return Const(p.value.reshape(shape)) if isinstance(p, Const) else Reshape(p, shape)


def affine(x: Node, scale: Node, bias: Node) -> Node:
    """x * scale + bias, one number for each channel."""
    return Binary("add", Binary("mul", x, per_channel(scale, x)), per_channel(bias, x))


def instance_norm(call: Call) -> Node:
    x = call[0]
    check_per_channel(x, call[1], call[2])
    core = Normalize(x, tuple(range(2, x.type.rank)), call.real("epsilon", 1e-5))
    return affine(core, call[1], call[2])


def group_norm(call: Call) -> Node:
    """Scale and bias are for each group in opset 18, for each channel from 21 on."""
    x, groups = call[0], call.integer("num_groups", 0)
    if groups < 1 or x.type.rank < 2 or x.shape[1] % groups:
        raise BadInputError(f"num_groups {groups} does not divide the channels of x {x.type}")
    split = Reshape(x, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    core = Normalize(split, tuple(range(2, split.type.rank)), call.real("epsilon", 1e-5))
    if call.version < 21:
        check_per_channel(split, call[1], call[2])
        return Reshape(affine(core, call[1], call[2]), x.shape)
    check_per_channel(x, call[1], call[2])
    return affine(Reshape(core, x.shape), call[1], call[2])


def layer_norm(call: Call) -> Node | tuple[Node, ...]:
    x = call[0]
    axes = tuple(range(call.axis(-1, x.type.rank), x.type.rank))
    epsilon = call.real("epsilon", 1e-5)
    y: Node = Binary("mul", Normalize(x, axes, epsilon), call[1])
    bias = call.get(2)
    y = y if bias is None else Binary("add", y, bias)
    if y.shape != x.shape:
        raise BadInputError(f"scale or bias do not broadcast to x {x.type}")
    return (y, *moments(x, axes, epsilon)) if call.wants(1) or call.wants(2) else y


def moments(x: Node, axes: tuple[int, ...], epsilon: float) -> tuple[Node, Node]:
    """Mean, and one over the standard deviation."""
    mean = Reduce("mean", x, axes)
    centred = Binary("sub", x, mean)
    variance = Reduce("mean", Binary("mul", centred, centred), axes)
    return mean, Unary("reciprocal", Unary("sqrt", Binary("add", variance, scalar(epsilon, x))))


def rms_norm(call: Call) -> Node:
    x = call[0]
    axes = tuple(range(call.axis(-1, x.type.rank), x.type.rank))
    power = Reduce("mean", Binary("mul", x, x), axes)
    root = Unary("sqrt", Binary("add", power, scalar(call.real("epsilon", 1e-5), x)))
    return Binary("mul", Binary("div", x, root), call[1])


def mean_variance_norm(call: Call) -> Node:
    axes = normal_axes(call.ints("axes") or (0, 2, 3), call[0].type.rank)
    # ONNX adds 1e-9 to the deviation; 1e-18 in the variance is the same where the deviation is 0.
    return Normalize(call[0], tuple(sorted(axes)), 1e-18)


def lp_norm(call: Call) -> Node:
    """x / |x|, and 0 where the norm is 0."""
    x = call[0]
    norm = p_norm(x, call.integer("p", 2), (call.axis(-1, x.type.rank),))
    return Binary("div", x, Binary("max", norm, scalar(float(np.finfo(np.float32).tiny), x)))


def lrn(call: Call) -> Node:
    size = call.integer("size", 0)
    if size < 1:
        raise BadInputError(f"size must be 1 or more, not {size}")
    return LRN(call[0], size, call.real("alpha", 1e-4), call.real("beta", 0.75), call.real("bias", 1.0))


def along_one_axis(build: Callable[[Node, int], Node], call: Call) -> Node:
    """Before opset 13 softmax and its relatives see a matrix: the axes before `axis`, and the axes from it on."""
    x, rank = call[0], call[0].type.rank
    if call.version >= 13:
        return build(x, call.axis(-1, rank))
    axis = call.integer("axis", 1)
    axis = axis if axis == rank else call.axis(1, rank)
    matrix = (math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    return Reshape(build(Reshape(x, matrix), 1), x.shape)


def softmax(x: Node, axis: int) -> Node:
    return Softmax(x, axis)


def log_softmax(x: Node, axis: int) -> Node:
    return Softmax(x, axis, log=True)


def hardmax(x: Node, axis: int) -> Node:
    """1 at the first of the largest, else 0."""
    check_table(x.shape[axis])
    places: Array = np.arange(x.shape[axis], dtype=np.int64).reshape(-1, *(1,) * (x.type.rank - axis - 1))
    return Cast(Binary("equal", ArgReduce("max", x, axis), Const(places)), x.dtype)


OPERATORS: dict[str, Callable[[Call], Node | tuple[Node, ...]]] = {
    "BatchNormalization": batch_norm, "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "LayerNormalization": layer_norm, "RMSNormalization": rms_norm, "MeanVarianceNormalization": mean_variance_norm,
    "LpNormalization": lp_norm, "LRN": lrn, "Softmax": partial(along_one_axis, softmax),
    "LogSoftmax": partial(along_one_axis, log_softmax), "Hardmax": partial(along_one_axis, hardmax),
}  # fmt: skip
