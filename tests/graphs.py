"""Small graphs for tests of the passes, and the check that a pass keeps what a graph computes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from convc.ir import (
    Array,
    Binary,
    Cast,
    Const,
    Conv,
    Graph,
    Input,
    Node,
    TensorType,
    Unary,
)
from convc.passes import simplify

NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
RNG = np.random.default_rng(11)


def image(*shape: int, dtype: str = "float64", label: str = "x") -> Input:
    return Input(label, TensorType(shape, dtype))


def const(*shape: int) -> Const:
    return Const(RNG.uniform(0.5, 2, shape) * RNG.choice([-1, 1], shape))


def number(value: float, *shape: int) -> Const:
    return Const(np.full(shape, value))


def conv(x: Node, outs: int, kernel: int = 3, **given_: Any) -> Conv:
    """A convolution that keeps the extents unless told otherwise."""
    rank, group = x.type.rank - 2, given_.get("group", 1)
    d = given_.get("dilation", 1)
    before = given_.get("pad", (kernel - 1) * d // 2)
    w = const(outs, x.shape[1] // group, *(kernel,) * rank)
    b = const(outs) if given_.get("bias", True) else None
    stride = (given_.get("stride", 1),) * rank
    return Conv(x, w, b, stride, ((before, before),) * rank, (d,) * rank, group, origin=given_.get("origin", ()))


def kinds(graph: Graph) -> dict[str, int]:
    """How many nodes of each kind, elementwise ones by their function."""
    names = [n.fn if isinstance(n, Unary | Binary) else type(n).__name__ for n in graph.nodes]
    return {k: v for k, v in Counter(names).items() if k not in ("Const", "Input")}


def simplified(*ys: Node, tolerance: float = 1e-9) -> Graph:
    """simplify's result, after checking that it computes the same, keeps types, and is a fixed point."""
    outputs = tuple((f"y{i}", y) for i, y in enumerate(ys))
    inputs = tuple(n for n in Graph((), outputs).nodes if isinstance(n, Input))
    graph = Graph(inputs, outputs)
    after = simplify(graph)
    check_same(graph, after, tolerance=tolerance)
    assert simplify(after) is after
    return after


def check_same(before: Graph, after: Graph, *, tolerance: float) -> None:
    assert [(name, y.type) for name, y in before.outputs] == [(name, y.type) for name, y in after.outputs]
    feeds = {i.label: random_array(i.type) for i in before.inputs}
    expected, got = before.evaluate(feeds), after.evaluate(feeds)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_allclose(got[name], value, rtol=tolerance, atol=tolerance * np.abs(value).max(initial=0))


def random_array(kind: TensorType) -> Array:
    if kind.dtype.startswith("float"):
        return np.random.default_rng(3).standard_normal(kind.shape).astype(kind.dtype)
    return np.random.default_rng(3).integers(0, 2 if kind.dtype == "bool" else 100, kind.shape).astype(kind.dtype)


X = image(2, 4, 6, 6)
C1 = (4, 1, 1)


def f(fn: str, a: Node | float, b: Node | float) -> Node:
    return Binary(fn, a if isinstance(a, Node) else number(a), b if isinstance(b, Node) else number(b))


def in_float64(graph: Graph) -> Graph:
    """The same network with every float as wide as a reference needs."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        made = node.with_args(tuple(new[a] for a in node.args))
        match made:
            case Const(v) if v.dtype.kind == "f":
                made = Const(v.astype(np.float64))
            case Input(label, kind) if kind.dtype.startswith("float"):
                made = Input(label, TensorType(kind.shape, "float64"))
            case Cast(x, to) if to.startswith("float"):
                made = Cast(x, "float64")
        new[node] = made
        _ = made.type
    inputs = tuple(n for i in graph.inputs if isinstance(n := new.get(i, i), Input))
    return Graph(inputs, tuple((name, new[node]) for name, node in graph.outputs))
