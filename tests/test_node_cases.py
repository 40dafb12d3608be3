"""Do we agree with ONNX's own test cases for the corners of each operator? Here up to the graph and its reference."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from convc.errors import UnsupportedError
from convc.frontend import import_onnx, operators
from convc.frontend.operators import OPERATORS
from convc.ir import Graph

# The only reasons for which a case of a supported operator may be refused: what the message says, and the row of
# `convc ops` that tells it. A wrong result has no place here.
REFUSALS = (
    (r"dtype \w+ is not supported|u?int16 is|uint32 is|uint64 is|float64 is", ""),
    (r"is empty; a tensor must have an element|a result with no elements", ""),
    (r"only tensors are supported", "Identity"),
    (r"opset 1; supported are", ""),
    (r"training mode is not supported", "Dropout"),
    (r"only inference with one mean", "BatchNormalization"),
    (r"result 1 is used, it is not supported", "MaxPool"),
    (r"quantization to u?int16 is not supported", "QuantizeLinear"),
)  # fmt: skip


def array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def supported_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    return [c for c in cases if all(n.domain == "" and n.op_type in OPERATORS for n in c.model.graph.node)]


def frozen(case: Any, kept: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The case's model with all inputs but the first `kept` made constant, and the inputs that are left."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    names = [value.name for value in model.graph.input]
    values = dict(zip(names, map(array, case.data_sets[0][0]), strict=False))
    for name in names[kept:]:
        model.graph.initializer.append(numpy_helper.from_array(values[name], name))
    return model, {name: values[name] for name in names[:kept]}


def graph_of(case: Any) -> tuple[Graph, dict[str, Any]]:
    """As little made constant as the operator needs: nothing, all inputs but the first, all."""
    for kept in (len(case.model.graph.input), 1):
        model, inputs = frozen(case, kept)
        try:
            return import_onnx(model), inputs
        except UnsupportedError as error:
            if "known when compiling" not in str(error):
                raise
    model, inputs = frozen(case, 0)
    return import_onnx(model), inputs


def check(case: Any) -> None:
    graph, inputs = graph_of(case)
    results = graph.evaluate(inputs)
    for got, expected in zip(results.values(), case.data_sets[0][1], strict=True):
        want = array(expected)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(got, want, rtol=case.rtol, atol=case.atol)


def verdict(case: Any) -> str:
    """"pass", the operator in whose row of `convc ops` the refusal stands, or what went wrong."""
    try:
        check(case)
    except UnsupportedError as error:
        rows = [row or "dtypes and empty tensors" for words, row in REFUSALS if re.search(words, str(error))]
        return f"refused: {rows[0]}" if rows else f"WRONG {case.name}: {error}"
    except AssertionError as error:
        return f"WRONG {case.name}: {error}"
    return "pass"


def test_node_cases(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = Counter(map(verdict, supported_cases()))
    wrong = [v for v in verdicts if v.startswith("WRONG")]
    with capsys.disabled():
        total = verdicts.total()
        print(f"\nonnx node cases of supported operators: {verdicts['pass']} of {total} pass; "
              + ", ".join(f"{n} {v}" for v, n in verdicts.most_common() if v != "pass"))  # fmt: skip
    assert not wrong, "\n".join(wrong)
    assert verdicts["pass"] >= 0.7 * total


def test_every_refusal_is_told_by_the_table_of_operators() -> None:
    told = {row.name for row in operators() if row.limitation}
    assert {row for _, row in REFUSALS} <= told
