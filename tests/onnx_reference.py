"""One node's value by convc and by ONNX's reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.reference

from convc.ir import (
    Array,
    Const,
    Node,
)

RNG = np.random.default_rng(7)


def const(*shape: int, dtype: str = "float64") -> Const:
    return Const(RNG.standard_normal(shape).astype(dtype))


def integers(*shape: int, dtype: str = "float64", low: int = -4, high: int = 5) -> Const:
    return Const(RNG.integers(low, high, shape).astype(dtype))


def value(node: Node) -> Array:
    """The node's own reference on its arguments, with the promised type checked."""
    found = node.reference(*(a.reference() if isinstance(a, Const) else value(a) for a in node.args))
    assert (found.shape, found.dtype.name) == (node.shape, node.dtype)
    return found


def onnx_value(op: str, *arrays: Array | None, opset: int = 19, **attributes: Any) -> Array:
    """What ONNX's reference evaluator returns for one operator."""
    names = [f"i{i}" if a is not None else "" for i, a in enumerate(arrays)]
    node = onnx.helper.make_node(op, names, ["y"], **attributes)
    given_ = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, arrays, strict=True)
        if a is not None
    ]
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UNDEFINED, None)
    graph = onnx.helper.make_graph([node], "one", given_, [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feeds = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
    found: Array = onnx.reference.ReferenceEvaluator(model).run(None, feeds)[0]
    return found
