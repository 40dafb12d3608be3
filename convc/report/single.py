"""The ONNX model of a single convolution, for verbs that are given a problem instead of a model."""

from __future__ import annotations

import math

import numpy as np

from convc.errors import UnsupportedError
from convc.ir.node import Array
from convc.problem import Problem

OPSET, IR_VERSION = 17, 8
OPERATORS = {"conv": "Conv", "transposed": "ConvTranspose", "matmul": "MatMul"}


def single_convolution(problem: Problem, *, seed: int = 0) -> bytes:
    """ONNX bytes with input "x", output "y" and random weights of He's scale, so that outputs are about as large as x.

    Raises UnsupportedError for types that ONNX's convolution lacks and for outputs that ONNX's rule would not give.
    """
    from onnx import TensorProto, helper, numpy_helper

    if problem.dtype != "float32":
        raise UnsupportedError(f"'{problem}': only float32 problems can be run, not {problem.dtype}")
    node = helper.make_node(OPERATORS[problem.kind], ["x", "w"], ["y"], name="conv", **_attributes(problem))
    graph = helper.make_graph(
        [node], "problem",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape(problem))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y_shape(problem))],
        [numpy_helper.from_array(weights(problem, seed=seed), "w")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())


def x_shape(p: Problem) -> tuple[int, ...]:
    return (p.i[0], p.ic) if p.kind == "matmul" else (p.mb, p.ic, *p.i)


def y_shape(p: Problem) -> tuple[int, ...]:
    return (p.o[0], p.oc) if p.kind == "matmul" else (p.mb, p.oc, *p.o)


def w_shape(p: Problem) -> tuple[int, ...]:
    forms = {"conv": (p.oc, p.icg, *p.k), "transposed": (p.ic, p.ocg, *p.k), "matmul": (p.ic, p.oc)}
    return forms[p.kind]


def weights(p: Problem, *, seed: int) -> Array:
    """Normal with variance 2 / (products per output)."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(w_shape(p)) * math.sqrt(2 / p.reduction)).astype(np.float32)


def pads(p: Problem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and behind each axis; behind it is 0 where the windows do not use the last elements."""
    return p.p, tuple(max(a, 0) for a in p.after)


def _attributes(p: Problem) -> dict[str, list[int] | int]:
    if p.kind == "matmul":
        return {}
    before, behind = pads(p)
    found: dict[str, list[int] | int] = {
        "kernel_shape": list(p.k), "strides": list(p.s), "dilations": list(p.d), "pads": [*before, *behind],
        "group": p.g,
    }  # fmt: skip
    if p.kind == "transposed":
        return found | {"output_padding": _output_padding(p)}
    _check_extents(p, behind)
    return found


def _check_extents(p: Problem, behind: tuple[int, ...]) -> None:
    axes = zip(p.i, p.p, behind, p.k, p.d, p.s, strict=True)
    natural = tuple((i + a + b - (k - 1) * d - 1) // s + 1 for i, a, b, k, d, s in axes)
    if natural != p.o:
        raise UnsupportedError(f"'{p}': its output is {p.o}, a convolution of these extents has {natural}")


def _output_padding(p: Problem) -> list[int]:
    axes = zip(p.o, p.i, p.s, p.k, p.d, p.p, strict=True)
    found = [o - ((i - 1) * s + (k - 1) * d + 1 - 2 * pad) for o, i, s, k, d, pad in axes]
    if any(not 0 <= extra < max(s, d) for extra, s, d in zip(found, p.s, p.d, strict=True)):
        raise UnsupportedError(f"'{p}': its output {p.o} is not one that a transposed convolution of these extents has")
    return found
