"""The onnx wheel's light topologies with weights refilled from a seed: as shipped, every weight is the same number."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
# Scale of the batch norms. At 1 the residual sums of these grow until the softmax is one-hot, which would hide errors.
GAIN = {"resnet50": 0.75, "shufflenet": 0.8}
BATCH_NORM = {1: "scale", 2: "shift", 3: "mean", 4: "variance"}


def topologies() -> list[str]:
    """Names for `load`."""
    return sorted(path.stem.removeprefix("light_") for path in FOLDER.glob("light_*.onnx"))


def load(name: str, *, seed: int = 0) -> onnx.ModelProto:
    """The topology with He-scaled normal weights and batch norms near the identity; the same for the same seed."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    rng = np.random.default_rng(seed)
    roles = _roles(model.graph)
    int64 = onnx.TensorProto.INT64
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == int64}
    gain = np.float32(GAIN.get(name, 1.0))
    kept = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in shapes:
            shape = tuple(int(d) for d in shapes[node.input[0]])
            values = _values(shape, roles.get(node.output[0], ""), rng, gain)
            model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name in roles and len(tensor.dims) > 0:
            values = _values(tuple(tensor.dims), roles[tensor.name], rng, gain)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    _drop_unused(model.graph)
    return model


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for field in (graph.initializer, graph.input):
        kept = [item for item in field if item.name in used]
        del field[:]
        field.extend(kept)


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """What each weight is for, by name."""
    roles: dict[str, str] = {}
    scales = {name for node in graph.node if node.op_type == "Mul" for name in node.input}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if node.op_type == "BatchNormalization" and place in BATCH_NORM:
                roles[name] = BATCH_NORM[place]
            elif node.op_type in ("Conv", "Gemm") and place in (1, 2):
                roles[name] = "weight" if place == 1 else "bias"
            elif node.op_type == "Unsqueeze" and place == 0:
                roles[name] = "scale" if node.output[0] in scales else "shift"
    return roles


def _values(shape: tuple[int, ...], role: str, rng: np.random.Generator, gain: np.float32) -> np.ndarray:
    noise = rng.standard_normal(shape, dtype=np.float32)
    match role:
        case "weight":
            return noise * np.float32(math.sqrt(2 / max(1, math.prod(shape[1:]))))
        case "scale":
            return gain * np.abs(1 + np.float32(0.1) * noise)
        case "variance":
            return np.abs(1 + np.float32(0.1) * noise)
        case _:
            return np.float32(0.05) * noise
