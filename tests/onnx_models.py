"""Small ONNX models for tests, built in one line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
MODELS = Path(os.environ.get("CONVC_MODELS", "/nonexistent"))
needs_models = pytest.mark.skipif(not MODELS.is_dir(), reason="CONVC_MODELS names no folder of test models")


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Arguments and results are names with spaces in between; "-" leaves one out."""
    names = [[("" if n == "-" else n) for n in text.split()] for text in (inputs, outputs)]
    return helper.make_node(operator, *names, **attributes)


def model(
    nodes: onnx.NodeProto | Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 13,
    outputs: Sequence[str] = ("y",),
    kinds: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """`inputs`: name to shape, None or a text for an open dimension; `kinds`: ONNX dtypes other than float by name."""
    nodes = [nodes] if isinstance(nodes, onnx.NodeProto) else list(nodes)
    kinds = kinds or {}

    def value(name: str, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)

    graph = helper.make_graph(
        nodes,
        "test",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def conv_model(**attributes: Any) -> onnx.ModelProto:
    """A convolution of x [1, 3, 8, 8] with w [4, 3, 3, 3]."""
    return model(node("Conv", "x w", "y", name="c0", **attributes), {"x": (1, 3, 8, 8)}, {"w": ramp(4, 3, 3, 3)})


def ramp(*shape: int, dtype: str = "float32") -> Array:
    """Small integers, none alike in a row, so that float sums are exact and a shifted index shows."""
    count = int(np.prod(shape))
    return (np.arange(count) * 7 % 11 - 5).astype(dtype).reshape(shape)
