"""Do scales, shifts and zero padding end up in the weights beside them, and only where that is exact?"""

from __future__ import annotations

import numpy as np
import pytest
from graphs import C1, X, const, conv, image, kinds, number, simplified
from hypothesis import given, settings
from hypothesis import strategies as st

from convc.ir import (
    Binary,
    Cast,
    Const,
    Conv,
    ConvTranspose,
    Graph,
    MatMul,
    Node,
    Pad,
    Pool,
    Unary,
)
from convc.passes import simplify
from convc.passes.constants import rounded_product


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.lists(st.sampled_from(["mul", "add", "sub", "rsub", "neg"]), min_size=1, max_size=4),
    st.sampled_from([Conv, ConvTranspose]),
)
def test_scales_after_go_into_weights(rank: int, group: int, bias: bool, steps: list[str], kind: type[Node]) -> None:
    x = image(2, 4, *(5,) * rank)
    y: Node = conv(x, 8, group=group, bias=bias, pad=1)
    if kind is ConvTranspose:
        w = const(4, 8 // group, *(3,) * rank)
        ones = (1,) * rank
        y = ConvTranspose(x, w, const(8) if bias else None, ones, ((1, 0),) * rank, ones, (0,) * rank, group)
    for step in steps:
        c = const(1, 8, *(1,) * rank) if step != "add" else const()
        y = {
            "neg": lambda y, c: Unary("neg", y),
            "rsub": lambda y, c: Binary("sub", c, y),
        }.get(step, lambda y, c, step=step: Binary(step, y, c))(y, c)
    assert kinds(simplified(y)) == {kind.__name__: 1}


def test_scales_after_matmul() -> None:
    x = image(3, 5, 7)
    product = MatMul(x, const(7, 4))
    y = Binary("mul", Binary("add", Binary("mul", product, const(4)), const(4)), const(1, 4))
    assert kinds(simplified(y)) == {"MatMul": 1, "add": 1}
    across = Binary("mul", MatMul(x, const(7, 4)), const(5, 1))
    assert kinds(simplified(across)) == {"MatMul": 1, "mul": 1}


def test_a_convolution_that_others_read_keeps_its_weights() -> None:
    first = conv(X, 4)
    graph = simplified(Unary("relu", Binary("mul", first, const(*C1))), Unary("tanh", first))
    assert kinds(graph) == {"Conv": 1, "mul": 1, "relu": 1, "tanh": 1}


def test_scales_along_other_axes_stay() -> None:
    assert kinds(simplified(Binary("mul", conv(X, 4), const(6, 1)))) == {"Conv": 1, "mul": 1}


def test_scales_that_are_not_finite_stay() -> None:
    weights = Const(np.full((4, 1, 1), 1e38, np.float32))
    x = image(1, 2, 3, 3, dtype="float32")
    w = Const(np.full((4, 2, 1, 1), 100, np.float32))
    node = Binary("mul", Conv(x, w, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1), weights)
    assert kinds(simplify(Graph((x,), (("y", node),)))) == {"Conv": 1, "mul": 1}


def test_quotients_to_be_rounded_stay_exact() -> None:
    """Half of all ties would go the other way if 1/c were taken into the weights."""
    y = Unary("round", Binary("div", conv(X, 4), number(0.3)))
    assert kinds(simplified(y, tolerance=0)) == {"Conv": 1, "div": 1, "round": 1}


def test_dequantized_values_keep_their_form() -> None:
    q = image(2, 4, 6, 6, dtype="uint8")
    x = Binary("mul", Cast(Binary("sub", Cast(q, "int32"), Const(np.array(7, np.int32))), "float64"), number(0.1))
    assert kinds(simplified(conv(Binary("mul", x, const(*C1)), 4, pad=0))) == {"Cast": 2, "sub": 1, "mul": 1, "Conv": 1}


@pytest.mark.parametrize("group", [1, 2, 4])
def test_scales_before_go_into_weights(group: int) -> None:
    scaled, both = Binary("mul", X, const(*C1)), Binary("add", Binary("mul", X, const(*C1)), const(*C1))
    assert kinds(simplified(conv(scaled, 8, group=group))) == {"Conv": 1}
    assert kinds(simplified(conv(both, 8, group=group, pad=0, bias=False))) == {"Conv": 1}
    assert kinds(simplified(conv(both, 8, group=group, pad=1))) == {"add": 1, "Conv": 1}
    assert kinds(simplified(conv(Binary("add", X, const(*C1)), 8, group=group, pad=1))) == {"add": 1, "Conv": 1}


def test_scales_before_matmul() -> None:
    x = image(3, 5, 7)
    y = Binary("add", MatMul(Binary("add", Binary("mul", x, const(7)), const(7)), const(7, 4)), const(4))
    assert kinds(simplified(y)) == {"MatMul": 1, "add": 1}


def test_names_of_merged_nodes_are_kept() -> None:
    first = conv(X, 4, origin=("conv1",))
    scale = Binary("mul", first, const(*C1), origin=("bn1/mul",))
    graph = simplified(Binary("add", scale, const(*C1), origin=("bn1/add",)))
    assert graph.outputs[0][1].origin == ("conv1", "bn1/mul", "bn1/add")


def test_zero_padding_goes_into_convolutions_and_averages() -> None:
    padded = Pad(X, ((0, 0), (0, 0), (1, 0), (2, 1)))
    graph = simplified(conv(padded, 4, pad=1))
    assert kinds(graph) == {"Conv": 1}
    window = ((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), (0, 0))
    assert kinds(simplified(Pool("average", padded, *window))) == {"Pool": 1}
    assert kinds(simplified(Pool("max", padded, *window))) == {"Pool": 1, "Pad": 1}
    inside = Pool("average", padded, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (0, 0))
    assert kinds(simplified(inside)) == {"Pool": 1, "Pad": 1}


@pytest.mark.parametrize(
    "pad",
    [
        Pad(X, ((0, 0), (0, 1), (1, 0), (0, 0))),
        Pad(X, ((0, 0), (0, 0), (-1, 0), (0, 0))),
        Pad(X, ((0, 0), (0, 0), (1, 0), (0, 0)), "edge"),
        Pad(X, ((0, 0), (0, 0), (1, 0), (0, 0)), "constant", 1.0),
    ],
)
def test_other_padding_stays(pad: Pad) -> None:
    assert kinds(simplified(conv(pad, 4))) == {"Pad": 1, "Conv": 1}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_products_are_rounded_once_from_float64(dtype: str) -> None:
    random = np.random.default_rng(0)
    value = (random.standard_normal((7, 3, 5)) * 2.0 ** random.integers(-20, 6, (7, 3, 5))).astype(np.dtype(dtype))
    factor = random.standard_normal((7, 1, 1)) * np.array([1e-3, 1.0, 300.0])[:, None]
    value[0, 0, 0] = -0.0
    wide = (value.astype(np.float64) * factor).astype(np.dtype(dtype))
    for stored in (value, np.asfortranarray(value)):
        found = rounded_product(stored, factor, dtype)
        assert found is not None and found.dtype == dtype and found.value.tobytes() == wide.tobytes()
    assert rounded_product(value, np.full((7, 1, 1), 1e308), dtype) is None
