"""The image operators that ONNX listed as experimental and never published; converters of 2018 wrote them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convc.errors import BadInputError
from convc.frontend.call import Call, scalar
from convc.ir import Binary, Const, Node, Slice


def image_scaler(call: Call) -> Node:
    """x * scale + bias, one bias for each channel of x [N, C, H, W]."""
    x, bias = image(call), call.floats("bias") or ()
    if len(bias) != x.shape[1]:
        raise BadInputError(f"{len(bias)} biases for {x.shape[1]} channels")
    scaled = Binary("mul", x, scalar(call.real("scale", 1.0), x))
    return Binary("add", scaled, Const(np.array(bias, x.dtype).reshape(1, -1, 1, 1)))


def crop(call: Call) -> Node:
    """border: left, top, right, bottom. With scale (height, width) the extents are given and the border only begins."""
    x, border, extents = image(call), call.ints("border") or (), call.ints("scale")
    if len(border) != 4 or min(border) < 0 or (extents is not None and len(extents) != 2):
        raise BadInputError(f"border {list(border)} must be four numbers, 0 or more, and scale two")
    left, top, right, bottom = border
    height, width = extents or (x.shape[2] - top - bottom, x.shape[3] - left - right)
    return Slice(x, (0, 0, top, left), (*x.shape[:2], height, width), (1, 1, 1, 1))


def affine(call: Call) -> Node:
    x = call[0]
    scaled = Binary("mul", x, scalar(call.real("alpha", 1.0), x))
    return Binary("add", scaled, scalar(call.real("beta", 0.0), x))


def image(call: Call) -> Node:
    if call[0].type.rank != 4:
        raise BadInputError(f"x is {call[0].type}; it must have rank 4")
    return call[0]


OPERATORS: dict[str, Callable[[Call], Node]] = {"ImageScaler": image_scaler, "Crop": crop, "Affine": affine}
