"""ONNX Resize in its five versions, and Upsample before it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import Call, normal_axes
from convc.frontend.limits import MAX_ELEMENTS
from convc.ir import Node, Resize

MODES = ("nearest", "linear", "cubic")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
)  # fmt: skip
POLICIES = ("stretch", "not_larger", "not_smaller")


def upsample(call: Call) -> Node:
    """Opset 7: scales are an attribute; 9: an argument."""
    found = call.floats("scales") if call.version < 9 else real_numbers(call, 1, "the scales")
    return first_resize(call, found or ())


def resize(call: Call) -> Node:
    if call.version < 11:
        return first_resize(call, real_numbers(call, 1, "the scales") or ())
    x = call[0]
    axes = normal_axes(call.ints("axes") or tuple(range(x.type.rank)), x.type.rank)
    coordinate = call.text("coordinate_transformation_mode", "half_pixel", COORDINATES)
    if coordinate == "tf_half_pixel_for_nn":
        raise UnsupportedError("coordinate_transformation_mode tf_half_pixel_for_nn is not supported")
    roi = full_roi(call, axes) if coordinate == "tf_crop_and_resize" else ()
    to, scale = extents(call, axes, roi)
    return Resize(
        x, to, scale, call.text("mode", "nearest", MODES), coordinate,
        nearest=call.text("nearest_mode", "round_prefer_floor", NEAREST), roi=roi,
        cubic_a=call.real("cubic_coeff_a", -0.75), exclude_outside=call.flag("exclude_outside", False),
        extrapolation=call.real("extrapolation_value", 0.0), antialias=call.flag("antialias", False),
    )  # fmt: skip


def first_resize(call: Call, scales: tuple[float, ...]) -> Node:
    """Opset 7 to 10 fix no coordinate map; usual is asymmetric; nearest takes the floor, or to shrink the ceiling."""
    x = call[0]
    check_scales(scales, x.type.rank)
    shrinks, grows = any(s < 1 for s in scales), any(s > 1 for s in scales)
    mode = call.text("mode", "nearest", ("nearest", "linear", "bilinear"))
    if mode == "nearest" and shrinks and grows:
        raise UnsupportedError("nearest that shrinks one axis and stretches another; export with opset 11 or newer")
    to = tuple(scaled_extent(e, s) for e, s in zip(x.shape, scales, strict=True))
    name = "nearest" if mode == "nearest" else "linear"
    return Resize(x, to, scales, name, "asymmetric", nearest="ceil" if shrinks else "floor")


def scaled_extent(extent: int, scale: float, part: float = 1.0) -> int:
    """`scale` times `part` of `extent`, in float32 as the scales are: 10 * 0.7 is 7."""
    found = np.float32(extent) * np.float32(part) * np.float32(scale)
    if not 1 <= found <= MAX_ELEMENTS:
        raise BadInputError(f"an axis of {extent} times {scale} has no extent between 1 and {MAX_ELEMENTS}")
    return math.floor(found)


def real_numbers(call: Call, index: int, what: str) -> tuple[float, ...] | None:
    """None where the argument is left out or empty."""
    value = call.constant_or_none(index, what)
    if value is None or value.size == 0:
        return None
    if value.ndim != 1 or value.dtype.kind != "f":
        raise BadInputError(f"{what} must be a list of floats")
    return tuple(float(v) for v in value)


def check_scales(scales: tuple[float, ...], count: int) -> None:
    if len(scales) != count:
        raise BadInputError(f"{len(scales)} scales for {count} axes")
    if not all(0 < s < 2**31 for s in scales):
        raise BadInputError(f"scales {list(scales)} must be positive and finite")


def extents(call: Call, axes: tuple[int, ...], roi: tuple[float, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Extents of the result and scales, per axis of x. The model gives one and the other follows."""
    x = call[0]
    scales, sizes = real_numbers(call, 2, "the scales"), call.constant_ints(3, "the sizes")
    if (scales is None) == (not sizes):
        raise BadInputError("one of scales and sizes must be given, not both")
    if scales is None:
        return sized(call, axes, sizes or ())
    check_scales(scales, len(axes))
    to, scale, rank = list(x.shape), [1.0] * x.type.rank, x.type.rank
    for axis, factor in zip(axes, scales, strict=True):
        part = roi[rank + axis] - roi[axis] if roi else 1.0
        to[axis], scale[axis] = scaled_extent(x.shape[axis], factor, part), factor
    return tuple(to), tuple(scale)


def sized(call: Call, axes: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    x, policy = call[0], call.text("keep_aspect_ratio_policy", "stretch", POLICIES)
    if len(sizes) != len(axes) or min(sizes) < 1:
        raise BadInputError(f"sizes {list(sizes)} must be one for each of {len(axes)} axes, 1 or more")
    ratios = [n / x.shape[a] for a, n in zip(axes, sizes, strict=True)]
    to, scale = list(x.shape), [1.0] * x.type.rank
    for axis, size, ratio in zip(axes, sizes, ratios, strict=True):
        if policy == "stretch":
            to[axis], scale[axis] = size, ratio
        else:
            scale[axis] = min(ratios) if policy == "not_larger" else max(ratios)
            to[axis] = math.floor(scale[axis] * x.shape[axis] + 0.5)
    return tuple(to), tuple(scale)


def full_roi(call: Call, axes: tuple[int, ...]) -> tuple[float, ...]:
    """Starts, then ends, one for each axis of x; an axis that the node leaves alone runs from 0 to 1."""
    given, rank = real_numbers(call, 1, "the roi"), call[0].type.rank
    if given is None or len(given) != 2 * len(axes) or not all(math.isfinite(v) for v in given):
        raise BadInputError(f"the roi must hold a start and an end for each of {len(axes)} axes")
    starts, ends = [0.0] * rank, [1.0] * rank
    for i, axis in enumerate(axes):
        starts[axis], ends[axis] = given[i], given[len(axes) + i]
    return (*starts, *ends)


OPERATORS: dict[str, Callable[[Call], Node]] = {"Resize": resize, "Upsample": upsample}
