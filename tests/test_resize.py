"""Does Resize read and weigh what ONNX says, for every mode and map of coordinates?"""

from __future__ import annotations

import numpy as np
import pytest
from onnx_reference import const, integers, onnx_value, value

from convc.ir import (
    Resize,
)
from convc.ir.resize import COORDINATES, resize_matrix


@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("to", [(5, 9), (3, 2), (8, 1), (4, 6)])
def test_resize_is_onnx(mode: str, coordinate: str, to: tuple[int, int]) -> None:
    if coordinate == "pytorch_half_pixel" and mode != "nearest" and 1 in to:
        pytest.skip("ONNX's reference evaluator departs from ONNX's text for one output element")
    x = const(1, 1, 4, 6)
    whole = (1, 1, *to)
    scale = tuple(t / i for t, i in zip(whole, x.shape, strict=True))
    roi = (0.0, 0.0, 0.2, -0.1, 1.0, 1.0, 1.3, 0.6) if coordinate == "tf_crop_and_resize" else ()
    for exclude, antialias in [(False, False), (True, False), (False, True), (True, True)]:
        if mode == "nearest" and (exclude or antialias):
            continue
        node = Resize(
            x, whole, scale, mode, coordinate, "floor", roi, -0.5, exclude, extrapolation=2.5, antialias=antialias
        )
        expected = onnx_value(
            "Resize",
            x.value,
            np.array(roi) if roi else None,
            None,
            np.array(whole),
            mode=mode,
            coordinate_transformation_mode=coordinate,
            nearest_mode="floor",
            cubic_coeff_a=-0.5,
            exclude_outside=int(exclude),
            extrapolation_value=2.5,
            antialias=int(antialias),
        )
        np.testing.assert_allclose(value(node), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("scale", [2.0, 0.5, 1.5, 0.6015625, 3.0])
def test_nearest_is_onnx(rounding: str, scale: float) -> None:
    x = integers(1, 1, 5, 7, dtype="int32")
    scales = (1.0, 1.0, scale, scale)
    to = tuple(int(s * e) for s, e in zip(scales, x.shape, strict=True))
    node = Resize(x, to, scales, "nearest", "half_pixel", rounding)
    expected = onnx_value("Resize", x.value, None, np.array(scales, np.float32), mode="nearest", nearest_mode=rounding)
    np.testing.assert_array_equal(value(node), expected)


def test_resize_matrix_is_the_taps() -> None:
    x = const(6)
    node = Resize(x, (11,), (11 / 6,), "cubic", "half_pixel")
    np.testing.assert_allclose(resize_matrix(*node.taps(0), 6) @ x.value, value(node), rtol=1e-12)
