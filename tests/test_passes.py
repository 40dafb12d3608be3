"""Does simplify keep what a graph computes, and leave exactly the nodes that are needed?"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import C1, NCHW, NHWC, X, check_same, const, image, in_float64, kinds, number, simplified

from convc.ir import (
    Binary,
    Broadcast,
    Cast,
    Concat,
    Const,
    Gather,
    Graph,
    Node,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Transpose,
    Unary,
    Where,
)
from convc.passes import simplify


def test_constants_are_folded_but_bombs_are_not() -> None:
    scale = Binary("mul", number(2.0, 3), number(4.0, 3))
    graph = simplified(Binary("max", image(5, 3), scale))
    assert kinds(graph) == {"max": 1}
    bomb = Broadcast(number(1.0), (2**20, 2**20))
    small = Slice(bomb, (0, 0), (1, 2), (1, 1))
    assert kinds(simplify(Graph((), (("y", small),)))) == {"Broadcast": 1, "Slice": 1}


def test_a_constant_index_out_of_range_is_left_for_the_runtime() -> None:
    node = Gather(number(1.0, 3), Const(np.array([[7]])), 0)
    assert kinds(simplify(Graph((), (("y", node),)))) == {"Gather": 1}


IDENTITIES: dict[str, Callable[[], Node]] = {
    "reshape to its shape": lambda: Reshape(X, X.shape),
    "two reshapes and back": lambda: Reshape(Reshape(X, (8, 36)), X.shape),
    "transpose in place": lambda: Transpose(X, (0, 1, 2, 3)),
    "transpose there and back": lambda: Transpose(Transpose(X, NHWC), NCHW),
    "slice of everything": lambda: Slice(X, (0,) * 4, X.shape, (1,) * 4),
    "concat of one": lambda: Concat((X,), 1),
    "concat with nothing": lambda: Concat((X, Const(np.zeros((2, 0, 6, 6)))), 1),
    "pad of nothing": lambda: Pad(X, ((0, 0),) * 4, "edge"),
    "cast to its dtype": lambda: Cast(X, "float64"),
    "broadcast to its shape": lambda: Broadcast(X, X.shape),
    "times 1": lambda: Binary("mul", number(1.0, 4, 1, 1), X),
    "plus 0": lambda: Binary("add", X, number(0.0)),
    "minus 0": lambda: Binary("sub", X, number(0.0)),
    "over 1": lambda: Binary("div", X, number(1.0)),
    "to the power 1": lambda: Binary("pow", X, number(1.0)),
    "minus, twice": lambda: Unary("neg", Unary("neg", X)),
    "clip to everything": lambda: Unary("clip", X, (-math.inf, math.inf)),
    "leaky relu with slope 1": lambda: Unary("leaky_relu", X, (1.0,)),
    "pool of one cell": lambda: Pool("max", X, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (0, 0)),
    "resize to its extents": lambda: Resize(X, X.shape, (1.0,) * 4, "linear", "half_pixel"),
    "where true": lambda: Where(Const(np.array(True)), X, number(0.0)),
    "reduce over one": lambda: Reshape(Reduce("mean", Reshape(X, (1, *X.shape)), (0,)), X.shape),
    "gather of everything": lambda: Gather(X, Const(np.arange(4)), 1),
    "x * 2 / 2 + 1 - 1": lambda: Binary(
        "sub", Binary("add", Binary("div", Binary("mul", X, number(2.0)), number(2.0)), number(1.0)), number(1.0)
    ),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity_disappears(name: str) -> None:
    assert kinds(simplified(Unary("relu", IDENTITIES[name]()))) == {"relu": 1}


ONE_FOR_TWO: dict[str, tuple[Callable[[], Node], dict[str, int]]] = {
    "relus": (lambda: Unary("relu", Unary("relu", X)), {"relu": 1}),
    "clip from 0": (lambda: Unary("clip", X, (0.0, math.inf)), {"relu": 1}),
    "clips": (lambda: Unary("clip", Unary("clip", X, (-1.0, 1.0)), (0.0, 6.0)), {"clip": 1}),
    "clips apart": (lambda: Unary("clip", Unary("clip", X, (-3.0, -1.0)), (0.0, 6.0)), {"clip": 1}),
    "clip of relu": (lambda: Unary("clip", Unary("relu", X), (-math.inf, 6.0)), {"clip": 1}),
    "max with 0": (lambda: Binary("max", number(0.0), X), {"relu": 1}),
    "min and max": (lambda: Binary("min", Binary("max", X, number(0.0)), number(0.5)), {"clip": 1}),
    "max(x, x/10)": (lambda: Binary("max", X, Binary("mul", number(0.1), X)), {"leaky_relu": 1}),
    "prelu by one slope": (lambda: Binary("prelu", X, number(0.2)), {"leaky_relu": 1}),
    "square": (lambda: Binary("pow", X, number(2.0)), {"mul": 1}),
    "slices": (
        lambda: Slice(Slice(X, (0, 3, 0, 5), (2, 4, 3, 6), (1, -1, 2, -1)), (0, 1, 1, 0), (2, 2, 2, 3), (1, 2, 1, 2)),
        {"Slice": 1},
    ),
    "concats": (lambda: Concat((X, Concat((X, Unary("relu", X)), 1)), 1), {"relu": 1, "Concat": 1}),
    "pads": (lambda: Pad(Pad(X, ((0, 0),) * 3 + ((1, 0),)), ((0, 0),) * 3 + ((0, 2),)), {"Pad": 1}),
    "transposes": (lambda: Transpose(Transpose(X, (1, 0, 3, 2)), (3, 1, 2, 0)), {"Transpose": 1}),
    "transpose of one row": (lambda: Transpose(image(1, 4, 1, 6), (0, 2, 1, 3)), {"Reshape": 1}),
    "casts": (lambda: Cast(Cast(image(3, dtype="float32"), "float64"), "float16"), {"Cast": 1}),
    "gather of one": (lambda: Gather(X, Const(np.array(-1)), 1), {"Slice": 1, "Reshape": 1}),
    "gather backwards": (lambda: Gather(X, Const(np.array([3, 1])), 1), {"Slice": 1}),
    "global average": (
        lambda: Pool("average", X, (6, 6), (1, 1), ((0, 0), (0, 0)), (1, 1), (0, 0)),
        {"Reduce": 1},
    ),
    "broadcast for nothing": (lambda: Binary("max", X, Broadcast(image(4, 1, 1, label="row"), X.shape)), {"max": 1}),
    "the same twice": (
        lambda: Binary("max", Unary("exp", X), Unary("neg", Unary("exp", X))),
        {"exp": 1, "neg": 1, "max": 1},
    ),
    "scales and shifts": (
        lambda: Binary(
            "mul", Binary("sub", number(3.0), Binary("div", Binary("add", X, const(*C1)), const(*C1))), const(*C1)
        ),
        {"mul": 1, "add": 1},
    ),
}


@pytest.mark.parametrize("name", ONE_FOR_TWO)
def test_two_become_one(name: str) -> None:
    made, expected = ONE_FOR_TWO[name]
    assert kinds(simplified(made())) == expected


def test_scales_that_would_grow_stay_apart() -> None:
    y = Binary("mul", Binary("add", X, const(1, 6, 6)), const(4, 1, 1))
    assert kinds(simplified(y)) == {"add": 1, "mul": 1}


def test_scales_that_others_read_stay() -> None:
    scaled = Binary("mul", X, number(2.0))
    graph = simplified(Binary("add", scaled, number(1.0)), scaled)
    assert kinds(graph) == {"mul": 1, "add": 1}


@pytest.mark.parametrize(
    "step",
    [
        lambda node: Unary("relu", node),
        lambda node: Binary("add", node, number(1.0)),
        lambda node: Binary("mul", node, node),
        lambda node: Transpose(Unary("tanh", node), (1, 0)),
    ],
)
def test_long_graphs_take_linear_time(step: Callable[[Node], Node]) -> None:
    x = image(2, 2)
    node: Node = x
    for _ in range(3000):
        node = step(node)
        _ = node.type
    graph = simplify(Graph((x,), (("y", node),)))
    assert len(graph.nodes) <= 6001


MODELS = Path(os.environ.get("CONVC_MODELS", "/nonexistent"))


@pytest.mark.parametrize("name", ["ultraface_rfb320", "yunet_s320", "mlperftiny_resnet8_fp32", "mnist_8"])
def test_real_networks_stay_what_they_are(name: str) -> None:
    path = MODELS / "real" / name / "model.onnx"
    if not path.exists():
        pytest.skip("CONVC_MODELS does not name the folder of models")
    from convc.frontend.onnx import import_onnx

    graph = in_float64(import_onnx(path))
    after = simplify(graph)
    check_same(graph, after, tolerance=1e-9)
    assert len(after.nodes) <= len(graph.nodes)
    assert simplify(after) is after
