"""Do whole networks built for GPUs compute what ONNX Runtime computes? Their emitted CUDA, run on the shim without the
checks of every access, which test_cuda_algorithms.py makes: one of the onnx wheel's, and at 64 x 64 pixels, where
CONVC_MODELS names the folder, three of the zoo."""

from __future__ import annotations

import light
import onnx
import pytest
from cuda_shim import needs_shim, on_shim
from test_networks import MODELS, agree, zoo_model

SMALL = ["tv_resnet18", "tv_mobilenet_v2", "tv_convnext_tiny"] if MODELS else []


def at_64_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network for smaller images: none of these three has a layer that knows its extents."""
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = 64
    del model.graph.value_info[:]
    return model


@needs_shim
@pytest.mark.slow
def test_a_light_topology() -> None:
    with on_shim(checked=False):
        agree(light.load("squeezenet"), classes=True, target="cuda/sm_80")


@needs_shim
@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_at_64_pixels(name: str) -> None:
    with on_shim(checked=False):
        agree(at_64_pixels(zoo_model(name)), classes=True, target="cuda/sm_80")
