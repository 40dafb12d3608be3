"""What `convc inspect` tells of an ONNX file without compiling it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from convc.frontend.container import load
from convc.frontend.names import shown
from convc.frontend.shapes import given_inputs
from convc.frontend.structure import check_structure
from convc.frontend.tensor import count_elements, dtype_name


@dataclass(frozen=True)
class ModelSummary:
    """Counts of one file. `inputs` and `outputs` map names to types as text; `parameters` counts constant elements."""

    opset: int
    ir_version: int
    producer: str
    nodes: int
    operators: Mapping[str, int]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    parameters: int


def summary(path: str | Path) -> ModelSummary:
    """Raises BadInputError or UnsupportedError as import_onnx does, for the file's own rules only."""
    model, _ = load(path)
    opset, graph = check_structure(model), model.graph
    return ModelSummary(
        opset=opset,
        ir_version=int(model.ir_version),
        producer=shown(model.producer_name),
        nodes=len(graph.node),
        operators=dict(Counter(shown(node.op_type) for node in graph.node).most_common()),
        inputs={shown(v.name): type_text(v) for v in given_inputs(graph)},
        outputs={shown(v.name): type_text(v) for v in graph.output},
        parameters=sum(count_elements([int(d) for d in t.dims]) for t in graph.initializer),
    )


def type_text(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return dtype_name(tensor.elem_type) if tensor.elem_type else "not a tensor"
    dims = [str(d.dim_value) if d.HasField("dim_value") else shown(d.dim_param) or "?" for d in tensor.shape.dim]
    return f"{dtype_name(tensor.elem_type)}[{'x'.join(dims)}]"
