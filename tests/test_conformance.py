"""Do compiled kernels agree with ONNX's own test cases? Every case of a supported operator, through code and back."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from test_node_cases import REFUSALS, array, frozen, supported_cases

import convc
from convc.errors import UnsupportedError
from convc.target import available_threads

# What a convolutional network in float32 is made of: the share of these cases that pass is the figure that counts.
NETWORK = """
Conv ConvTranspose MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool BatchNormalization
LayerNormalization InstanceNormalization GroupNormalization LRN Gemm MatMul Pad Resize Upsample Concat Split Slice
Transpose Clip Softmax LogSoftmax Relu LeakyRelu PRelu Sigmoid HardSigmoid HardSwish Swish Gelu Tanh Softplus Softsign
Mish Elu Selu Celu ThresholdedRelu
"""


def compiled(case: Any) -> tuple[Any, dict[str, Any]]:
    """The case's artifact, with as little made constant as the operator needs, and the inputs that are left."""
    for kept in (len(case.model.graph.input), 1):
        model, inputs = frozen(case, kept)
        try:
            return convc.compile(model.SerializeToString()), inputs
        except UnsupportedError as error:
            if "known when compiling" not in str(error):
                raise
    model, inputs = frozen(case, 0)
    return convc.compile(model.SerializeToString()), inputs


def verdict(case: Any) -> str:
    try:
        artifact, inputs = compiled(case)
        results = convc.load(artifact, threads=1).run(inputs)
        for got, expected in zip(results.values(), case.data_sets[0][1], strict=True):
            want = array(expected)
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            np.testing.assert_allclose(got, want, rtol=case.rtol, atol=case.atol)
    except UnsupportedError as error:
        rows = [row or "dtypes and empty tensors" for words, row in REFUSALS if re.search(words, str(error))]
        return f"refused: {rows[0]}" if rows else f"WRONG {case.name}: {error}"
    except AssertionError as error:
        return f"WRONG {case.name}: {error}"
    return "pass"


def is_network(case: Any) -> bool:
    nodes, inputs = case.model.graph.node, case.model.graph.input
    floats = len(inputs) > 0 and inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    return len(nodes) == 1 and nodes[0].op_type in NETWORK.split() and floats


@pytest.mark.slow
def test_compiled_node_cases(capsys: pytest.CaptureFixture[str]) -> None:
    cases = supported_cases()
    with ThreadPoolExecutor(available_threads()) as pool:
        verdicts = dict(zip((c.name for c in cases), pool.map(verdict, cases), strict=True))
    network = Counter(verdicts[c.name] for c in cases if is_network(c))
    with capsys.disabled():
        for name, counts in (("network operators, float32", network), ("all", Counter(verdicts.values()))):
            shown = {v: n for v, n in counts.most_common() if not v.startswith("WRONG")}
            print(f"\ncompiled onnx node cases, {name}: {counts['pass']} of {counts.total()} pass: {shown}")
    wrong = [v for v in verdicts.values() if v.startswith("WRONG")]
    assert not wrong, "\n".join(wrong)
    assert network["pass"] >= 0.95 * network.total()
