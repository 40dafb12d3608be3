"""Resize: for every output element along an axis, the input elements it reads and their weights.

The axes are independent, so `resize_taps` of each axis is all that the reference, a lowering or a test needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from convc.ir.check import check_lengths, check_numbers, check_positive, refuse, wide_dtype
from convc.ir.node import Array, Node, TensorType

MODES = ("nearest", "linear", "cubic")
COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True, eq=False)
class Resize(Node):
    """ONNX Resize (opset 19 meaning) to `to` elements per axis.

    mode: nearest, linear, cubic. `scale` per axis as ONNX uses it in the coordinate maps (to / from where the model
    gives sizes). coordinate: half_pixel, half_pixel_symmetric, pytorch_half_pixel, align_corners, asymmetric,
    tf_crop_and_resize (with `roi`, starts then ends). nearest: round_prefer_floor, round_prefer_ceil, floor, ceil.
    """

    x: Node
    to: tuple[int, ...]
    scale: tuple[float, ...]
    mode: str
    coordinate: str
    nearest: str = "round_prefer_floor"
    roi: tuple[float, ...] = ()
    cubic_a: float = -0.75
    exclude_outside: bool = False
    extrapolation: float = 0.0
    antialias: bool = False

    def infer(self) -> TensorType:
        x = self.x.type
        check_numbers("x", x)
        check_positive(x=x.shape, to=self.to)
        check_lengths(x.rank, to=self.to, scale=self.scale)
        refuse(self.mode not in MODES, f"{self.mode} is not a mode of resizing")
        refuse(self.coordinate not in COORDINATES, f"{self.coordinate} is not a map of coordinates")
        refuse(self.nearest not in ROUNDINGS, f"{self.nearest} is not a way to round to the nearest")
        refuse(not all(0 < s < math.inf for s in self.scale), f"scale {self.scale} must be positive and finite")
        if self.coordinate == "tf_crop_and_resize":
            check_lengths(2 * x.rank, roi=self.roi)
            refuse(not all(map(math.isfinite, self.roi)), f"roi {self.roi} must be finite")
        return TensorType(self.to, x.dtype)

    @property
    def resized_axes(self) -> tuple[int, ...]:
        """The axes along which anything happens."""
        axes = range(len(self.to))
        return tuple(a for a in axes if not (self.to[a] == self.x.shape[a] and self.scale[a] == 1 and self._whole(a)))

    def _whole(self, axis: int) -> bool:
        return self.coordinate != "tf_crop_and_resize" or self._roi(axis) == (0, 1)

    def _roi(self, axis: int) -> tuple[float, float]:
        return (self.roi[axis], self.roi[axis + len(self.to)]) if self.roi else (0.0, 1.0)

    def positions(self, axis: int) -> Array:
        """Where along `axis` each output element lies, in input elements: float64 [to]."""
        return resize_positions(
            self.x.shape[axis],
            self.to[axis],
            scale=self.scale[axis],
            coordinate=self.coordinate,
            roi=self._roi(axis),
        )

    def taps(self, axis: int) -> tuple[Array, Array]:
        """Indices (int64) and weights (float64) along `axis`, both [to, taps]."""
        return resize_taps(
            self.positions(axis),
            self.x.shape[axis],
            scale=self.scale[axis],
            mode=self.mode,
            nearest=self.nearest,
            cubic_a=self.cubic_a,
            exclude_outside=self.exclude_outside,
            antialias=self.antialias,
        )

    def outside(self, axis: int) -> Array:
        """Which output elements along `axis` take the extrapolation value: bool [to]."""
        at = self.positions(axis)
        return (at < 0) | (at > self.x.shape[axis] - 1) & (self.coordinate == "tf_crop_and_resize")

    @property
    def flops(self) -> int:
        """2 x MAC of one axis after the other; nearest has none."""
        if self.mode == "nearest":
            return 0
        shape, total = list(self.x.shape), 0
        for axis in self.resized_axes:
            shape[axis] = self.to[axis]
            total += 2 * math.prod(shape) * resize_tap_count(self.mode, self.scale[axis], antialias=self.antialias)
        return total

    def reference(self, *args: Array) -> Array:
        (x,) = args
        if self.mode == "nearest":
            y = x
            for axis in self.resized_axes:
                y = np.take(y, self.taps(axis)[0][:, 0], axis=axis)
        else:
            y = x.astype(np.float64 if x.dtype.kind in "iu" else wide_dtype(x.dtype))
            for axis in self.resized_axes:
                y = _interpolate(y, *self.taps(axis), axis=axis)
            if x.dtype.kind in "iu":
                y = np.clip(np.rint(y), np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)
        return self._extrapolate(y.astype(x.dtype, copy=False))

    def _extrapolate(self, y: Array) -> Array:
        if self.coordinate != "tf_crop_and_resize":
            return y
        for axis in self.resized_axes:
            outside = self.outside(axis).reshape(-1, *(1,) * (y.ndim - axis - 1))
            y = np.where(outside, y.dtype.type(self.extrapolation), y)
        return y


def _interpolate(x: Array, index: Array, weight: Array, *, axis: int) -> Array:
    total: Array | None = None
    for t in range(index.shape[1]):
        scaled = np.take(x, index[:, t], axis=axis) * weight[:, t].astype(x.dtype).reshape(
            -1, *(1,) * (x.ndim - axis - 1)
        )
        total = scaled if total is None else total + scaled
    assert total is not None
    return total


def resize_positions(extent: int, to: int, *, scale: float, coordinate: str, roi: tuple[float, float]) -> Array:
    """Where each of `to` output elements lies along an axis of `extent` input elements: float64 [to]."""
    i, resized = np.arange(to, dtype=np.float64), scale * extent
    match coordinate:
        case "align_corners":
            return i * 0 if math.isclose(resized, 1) else i * (extent - 1) / (resized - 1)
        case "asymmetric":
            return i / scale
        case "tf_crop_and_resize":
            start, span = roi[0] * (extent - 1), (roi[1] - roi[0]) * (extent - 1)
            return start + (i * 0 + span / 2 if math.isclose(resized, 1) else i * span / (resized - 1))
        case "pytorch_half_pixel" if to == 1:
            return i * 0
        case "half_pixel_symmetric":
            return extent / 2 * (1 - to / resized) + (i + 0.5) / scale - 0.5
        case _:
            return (i + 0.5) / scale - 0.5


def resize_tap_count(mode: str, scale: float, *, antialias: bool) -> int:
    """How many input elements an output element reads along an axis."""
    if mode == "nearest":
        return 1
    reach = (1 if mode == "linear" else 2) / (min(scale, 1.0) if antialias else 1.0)
    return 2 * math.ceil(reach)


def resize_taps(
    positions: Array,
    extent: int,
    *,
    scale: float,
    mode: str,
    nearest: str = "round_prefer_floor",
    cubic_a: float = -0.75,
    exclude_outside: bool = False,
    antialias: bool = False,
) -> tuple[Array, Array]:
    """Indices (int64, inside the axis) and weights (float64), both [positions, taps].

    Outside the axis its last element stands, or with `exclude_outside` nothing, and the other weights sum to 1.
    """
    if mode == "nearest":
        index = np.clip(_round(positions, nearest), 0, extent - 1)
        return index[:, None], np.ones((len(positions), 1))
    squeeze = min(scale, 1.0) if antialias else 1.0
    count = resize_tap_count(mode, scale, antialias=antialias)
    index = np.floor(positions).astype(np.int64)[:, None] + np.arange(1 - count // 2, count // 2 + 1)
    distance = np.abs(index - positions[:, None]) * squeeze
    weight = np.maximum(1 - distance, 0) if mode == "linear" else _cubic(distance, cubic_a)
    if exclude_outside:
        weight = np.where((index >= 0) & (index < extent), weight, 0)
    if exclude_outside or antialias:
        total = weight.sum(axis=1, keepdims=True)
        weight = weight / np.where(total == 0, 1, total)
    return np.clip(index, 0, extent - 1), weight


def resize_matrix(index: Array, weight: Array, extent: int) -> Array:
    """The taps of an axis as one matrix, float64 [to, extent]: y = matrix @ x along the axis."""
    matrix = np.zeros((len(index), extent))
    np.add.at(matrix, (np.arange(len(index))[:, None], index), weight)
    return matrix


def _round(positions: Array, nearest: str) -> Array:
    match nearest:
        case "floor":
            rounded = np.floor(positions)
        case "ceil":
            rounded = np.ceil(positions)
        case "round_prefer_floor":
            rounded = np.ceil(positions - 0.5)
        case _:
            rounded = np.floor(positions + 0.5)
    return np.clip(rounded, -1, 2**62).astype(np.int64)


def _cubic(distance: Array, a: float) -> Array:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
