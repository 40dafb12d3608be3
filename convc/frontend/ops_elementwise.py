"""ONNX operators on each element on its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial, reduce

import numpy as np

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import Call, scalar
from convc.frontend.tensor import carried
from convc.ir import Binary, Broadcast, Cast, Const, Node, Unary, Where
from convc.ir.check import broadcast_shape

PLAIN = {
    "Relu": "relu", "Sigmoid": "sigmoid", "HardSwish": "hard_swish", "Tanh": "tanh", "Softplus": "softplus",
    "Softsign": "softsign", "Mish": "mish", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal",
    "Neg": "neg", "Abs": "abs", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sign": "sign", "Erf": "erf",
    "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh",
    "Cosh": "cosh", "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "Not": "not", "IsNaN": "isnan",
}  # fmt: skip

# Operator: (function, its parameters in order as ONNX's attribute and default).
WITH_PARAMETERS: Mapping[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "LeakyRelu": ("leaky_relu", (("alpha", 0.01),)),
    "HardSigmoid": ("hard_sigmoid", (("alpha", 0.2), ("beta", 0.5))),
    "Swish": ("swish", (("alpha", 1.0),)),
    "Elu": ("elu", (("alpha", 1.0),)),
    "Selu": ("selu", (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))),
    "Celu": ("celu", (("alpha", 1.0),)),
    "ThresholdedRelu": ("thresholded_relu", (("alpha", 1.0),)),
}

TWO_ARGUMENTS = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Equal": "equal", "Less": "less",
    "LessOrEqual": "less_equal", "Greater": "greater", "GreaterOrEqual": "greater_equal", "And": "and", "Or": "or",
    "Xor": "xor",
}  # fmt: skip

ANY_NUMBER = {"Min": "min", "Max": "max", "Sum": "add"}


def plain(fn: str, call: Call) -> Node:
    return Unary(fn, call[0])


def with_parameters(fn: str, parameters: tuple[tuple[str, float], ...], call: Call) -> Node:
    return Unary(fn, call[0], tuple(call.real(name, default) for name, default in parameters))


def gelu(call: Call) -> Node:
    return Unary("gelu_tanh" if call.text("approximate", "none", ("none", "tanh")) == "tanh" else "gelu", call[0])


def clip(call: Call) -> Node:
    """Bounds are attributes before opset 11, then arguments, which need not be constant."""
    x, low, high = call[0], call.get(1), call.get(2)
    if call.version < 11:
        low, high = scalar(call.real("min", -np.inf), x), scalar(call.real("max", np.inf), x)
    if x.dtype == "float32" and all(b is None or isinstance(b, Const) for b in (low, high)):
        return Unary("clip", x, (bound(low, -np.inf), bound(high, np.inf)))
    for fn, node in (("max", low), ("min", high)):
        x = x if node is None else Binary(fn, x, node)
    return x


def bound(node: Node | None, default: float) -> float:
    if not isinstance(node, Const):
        return default
    if node.value.size != 1:
        raise BadInputError(f"a bound must be one number, not {node.type}")
    return float(node.value.reshape(-1)[0])


def prelu(call: Call) -> Node:
    x, slope = call[0], call[1]
    if broadcast_shape(x.shape, slope.shape) != x.shape:
        raise BadInputError(f"the slope {slope.type} does not broadcast to x {x.type}")
    return Binary("prelu", x, slope)


def two_arguments(fn: str, call: Call) -> Node:
    return Binary(fn, call[0], call[1])


def any_number(fn: str, call: Call) -> Node:
    return reduce(partial(Binary, fn), [call[i] for i in range(len(call.args))])


def mean(call: Call) -> Node:
    return Binary("div", any_number("add", call), scalar(len(call.args), call[0]))


def power(call: Call) -> Node:
    """The result has the dtype of the base; a float exponent makes the arithmetic float."""
    base, exponent = call[0], call[1]
    if base.dtype != "float32" and exponent.dtype == "float32":
        return Cast(Binary("pow", Cast(base, "float32"), exponent), base.dtype)
    return Binary("pow", base, cast(exponent, base.dtype))


def modulo(call: Call) -> Node:
    return Binary("fmod" if call.flag("fmod", False) else "mod", call[0], call[1])


def where(call: Call) -> Node:
    return Where(call[0], call[1], call[2])


def cast(x: Node, to: str) -> Node:
    return x if x.dtype == to else Cast(x, to)


def cast_to(call: Call) -> Node:
    return cast(call[0], carried(call.integer("to", 0)))


def cast_like(call: Call) -> Node:
    return cast(call[0], call[1].dtype)


def is_inf(call: Call) -> Node:
    found: Node = Broadcast(scalar(False, "bool"), call[0].shape)
    for name, value in (("detect_positive", np.inf), ("detect_negative", -np.inf)):
        if call.flag(name, True):
            found = Binary("or", found, Binary("equal", call[0], scalar(value, call[0])))
    return found


def shrink(call: Call) -> Node:
    """x - bias above lambd, x + bias below -lambd, else 0."""
    x, bias, limit = call[0], call.real("bias", 0.0), call.real("lambd", 0.5)
    if x.dtype != "float32":
        raise UnsupportedError("only float32 is supported")
    inner = Where(Binary("less", x, scalar(-limit, x)), Binary("add", x, scalar(bias, x)), scalar(0, x))
    return Where(Binary("greater", x, scalar(limit, x)), Binary("sub", x, scalar(bias, x)), inner)


OPERATORS: dict[str, Callable[[Call], Node]] = dict(
    itertools.chain(
        ((name, partial(plain, fn)) for name, fn in PLAIN.items()),
        ((name, partial(with_parameters, *how)) for name, how in WITH_PARAMETERS.items()),
        ((name, partial(two_arguments, fn)) for name, fn in TWO_ARGUMENTS.items()),
        ((name, partial(any_number, fn)) for name, fn in ANY_NUMBER.items()),
    )
) | {
    "Gelu": gelu, "Clip": clip, "PRelu": prelu, "Mean": mean, "Pow": power, "Mod": modulo, "Where": where,
    "Cast": cast_to, "CastLike": cast_like, "IsInf": is_inf, "Shrink": shrink,
}  # fmt: skip
