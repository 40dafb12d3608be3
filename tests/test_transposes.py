"""Are islands of another layout computed in the layout around them, and never at the price of more transposes?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graphs import NCHW, NHWC, RNG, X, const, conv, image, kinds, simplified
from hypothesis import given, settings
from hypothesis import strategies as st

from convc.ir import (
    Binary,
    Cast,
    Concat,
    Const,
    Graph,
    Input,
    MatMul,
    Node,
    Normalize,
    Pad,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Softmax,
    TensorType,
    Transpose,
    Unary,
    Where,
)
from convc.ir.text import show


def linear(x: Node, outs: int) -> Node:
    return Binary("add", MatMul(x, const(x.shape[-1], outs)), const(outs))


def layer_norm(x: Node) -> Node:
    last = x.type.rank - 1
    return Binary("add", Binary("mul", Normalize(x, (last,), 1e-5), const(x.shape[-1])), const(x.shape[-1]))


def test_convnext_block_is_computed_channels_first() -> None:
    y = Transpose(conv(X, 4, 7, group=4), NHWC)
    y = linear(Unary("gelu", linear(layer_norm(y), 16)), 4)
    y = Binary("add", Transpose(Binary("mul", y, const(4)), NCHW), X)
    graph = simplified(y)
    assert kinds(graph) == {"Conv": 3, "Normalize": 1, "gelu": 1, "add": 1}
    assert [n.axes for n in graph.nodes if isinstance(n, Normalize)] == [(1,)]


def test_an_island_with_everything_that_can_be_flipped() -> None:
    a, b = Transpose(X, NHWC), Transpose(Unary("tanh", X), NHWC)
    y = Concat(
        (Binary("max", a, b), Where(Const(RNG.random((6, 1, 4)) > 0.5), a, b), Const(RNG.random((2, 6, 6, 1)))), 3
    )
    y = Softmax(Slice(y, (0, 1, 5, 8), (2, 5, 3, 9), (1, 1, -2, -1)), 3)
    y = Pad(y, ((0, 0), (1, 2), (0, 3), (0, 0)), "constant", 0.5)
    y = Resize(y, (2, 16, 9, 9), (1.0, 2.0, 1.5, 1.0), "linear", "half_pixel")
    y = Binary("mul", y, Reduce("mean", y, (1, 2)))
    y = Binary("prelu", Cast(y, "float64"), const(9))
    graph = simplified(Transpose(y, NCHW), Reduce("max", y, (1, 2), keepdims=False))
    assert "Transpose" not in kinds(graph)


def test_residual_network_in_channels_last() -> None:
    """As exporters of channels-last frameworks write it: a pair of transposes around every convolution."""

    def block(x: Node) -> Node:
        y = Transpose(conv(Transpose(x, NCHW), 4), NHWC)
        y = Unary("relu", Binary("add", Binary("mul", y, const(4)), const(4)))
        y = Transpose(conv(Transpose(y, NCHW), 4), NHWC)
        return Unary("relu", Binary("add", y, x))

    x = image(1, 6, 6, 4)
    y = block(block(block(x)))
    graph = simplified(Reduce("mean", y, (1, 2), keepdims=False))
    assert kinds(graph) == {"Transpose": 1, "Conv": 6, "relu": 6, "add": 3, "Reduce": 1}


@pytest.mark.parametrize(
    "made",
    [
        lambda x: Reshape(Unary("relu", Transpose(x, NHWC)), (2, 144)),
        lambda x: MatMul(Transpose(x, NHWC), const(4, 64)),
        lambda x: Unary("relu", Transpose(x, NHWC)),
        lambda x: Binary("max", Transpose(x, NHWC), Input("other", TensorType((2, 6, 6, 4), "float64"))),
        lambda x: Reduce("sum", Transpose(x, (0, 3, 2, 1)), (0,), keepdims=False),
    ],
)
def test_a_transpose_that_must_be_is_not_moved(made: Callable[[Node], Node]) -> None:
    y = made(X)
    graph = simplified(y)
    assert show(graph) == show(Graph(graph.inputs, (("y0", y),)))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_never_more_elements_transposed(data: st.DataObject) -> None:
    """Random graphs of elementwise nodes and transposes between the two layouts."""
    steps: dict[str, Callable[[Node, Node], Node]] = {
        "nhwc": lambda x, other: Transpose(x, NHWC),
        "nchw": lambda x, other: Transpose(x, NCHW),
        "own inverse": lambda x, other: Transpose(x, (0, 3, 2, 1)),
        "unary": lambda x, other: Unary("tanh", x),
        "binary": lambda x, other: Binary("max", x, other),
        "scale": lambda x, other: Binary("min", x, const(x.shape[-1])),
        "norm": lambda x, other: Normalize(x, (3,), 1e-3),
        "conv": lambda x, other: Unary("tanh", conv(x, x.shape[1], 1)),
        "linear": lambda x, other: Unary("tanh", MatMul(x, const(x.shape[3], 3))),
    }
    values: list[Node] = [image(1, 2, 3, 4)]
    for _ in range(data.draw(st.integers(3, 14))):
        x = data.draw(st.sampled_from(values))
        others = [v for v in values if v.shape == x.shape]
        choice = data.draw(st.sampled_from(sorted(steps)))
        values.append(steps[choice](x, data.draw(st.sampled_from(others))))
    outputs = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    before = Graph((), tuple((str(i), v) for i, v in enumerate(outputs)))
    assert moved(simplified(*outputs)) <= moved(before)


def moved(graph: Graph) -> int:
    return sum(n.type.elements for n in graph.nodes if isinstance(n, Transpose))
