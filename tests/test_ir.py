"""Does every node compute what ONNX says, in the shape it promised?"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_reference import RNG, const, integers, onnx_value, value

from convc.ir import (
    LRN,
    ArgReduce,
    Array,
    Broadcast,
    Cast,
    Concat,
    Const,
    Conv,
    ConvTranspose,
    Gather,
    Graph,
    Input,
    MatMul,
    Node,
    Normalize,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    TensorType,
    Transpose,
    Unary,
    Where,
)
from convc.ir.reduction import REDUCTIONS


def direct_conv(x: Array, w: Array, stride: Any, pad: Any, dilation: Any, group: int) -> Array:
    """The definition of Conv, one multiplication at a time."""
    x = np.pad(x, ((0, 0), (0, 0), *pad))
    outs, per_group, *kernel = w.shape
    extents = [(i - (k - 1) * d - 1) // s + 1 for i, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    y = np.zeros((x.shape[0], outs, *extents), x.dtype)
    for n, o, c in itertools.product(range(x.shape[0]), range(outs), range(per_group)):
        channel = o // (outs // group) * per_group + c
        for at, tap in itertools.product(np.ndindex(*extents), np.ndindex(*kernel)):
            cell = tuple(i * s + u * d for i, s, u, d in zip(at, stride, tap, dilation, strict=True))
            y[(n, o, *at)] += x[(n, channel, *cell)] * w[(o, c, *tap)]
    return y


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """Extents and parameters of a window operation whose kernel fits."""
    rank = draw(st.integers(1, 3))
    some = st.integers(1, 3)
    each = [st.lists(some, min_size=rank, max_size=rank) for _ in range(3)]
    kernel, stride, dilation = (tuple(draw(e)) for e in each)
    pad = tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in kernel)
    extents = tuple((k - 1) * d + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True))
    return {"extents": extents, "kernel": kernel, "stride": stride, "dilation": dilation, "pad": pad}


@settings(max_examples=30, deadline=None)
@given(windows(), st.sampled_from([(1, 2, 3), (2, 2, 1), (3, 1, 2), (2, 1, 1)]), st.sampled_from(["float64", "int32"]))
def test_conv_is_its_definition(window: dict[str, Any], channels: tuple[int, int, int], dtype: str) -> None:
    group, per_group, per_out = channels
    x = integers(2, group * per_group, *window["extents"], dtype=dtype)
    w = integers(group * per_out, per_group, *window["kernel"], dtype=dtype)
    b = integers(group * per_out, dtype=dtype)
    rest = window["stride"], window["pad"], window["dilation"], group
    got = value(Conv(x, w, b, *rest))
    expected = direct_conv(x.value, w.value, *rest) + b.value.reshape(-1, *(1,) * len(window["extents"]))
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=30, deadline=None)
@given(windows(), st.sampled_from([(1, 2, 3), (2, 2, 1), (3, 1, 2)]))
def test_conv_transpose_is_the_adjoint_of_conv(window: dict[str, Any], channels: tuple[int, int, int]) -> None:
    """<conv(x, w), y> == <x, conv_transpose(y, w)> exactly, for every x and y."""
    group, per_group, per_out = channels
    x = integers(1, group * per_group, *window["extents"])
    w = integers(group * per_out, per_group, *window["kernel"])
    rest = window["stride"], window["pad"], window["dilation"]
    conv = Conv(x, w, None, *rest, group)
    y = integers(*conv.shape)
    reach = ConvTranspose(y, w, None, *rest, (0,) * len(window["extents"]), group)
    missing = tuple(a - b for a, b in zip(x.shape[2:], reach.shape[2:], strict=True))
    back = ConvTranspose(y, w, None, *rest, missing, group)
    assert back.shape == x.shape
    assert np.vdot(value(conv), y.value) == np.vdot(x.value, value(back))


@settings(max_examples=40, deadline=None)
@given(windows(), st.sampled_from(["max", "average", "lp"]), st.booleans(), st.booleans())
def test_pool_is_onnx(window: dict[str, Any], kind: str, count_pad: bool, ceil: bool) -> None:
    axes = list(zip(*(window[k] for k in ("extents", "kernel", "stride", "dilation", "pad")), strict=True))
    overhang = []
    for i, k, s, d, (before, after) in axes:
        over = -(i + before + after - (k - 1) * d - 1) % s if ceil else 0
        starts_inside = i + before + after + over - ((k - 1) * d + 1) < i + before
        overhang.append(over if starts_inside else 0)
    if ceil and not any(overhang) and any(-(i + sum(p) - (k - 1) * d - 1) % s for i, k, s, d, p in axes):
        return
    if kind == "lp" and any(overhang):
        return
    x = const(2, 3, *window["extents"])
    node = Pool(
        kind,
        x,
        window["kernel"],
        window["stride"],
        window["pad"],
        window["dilation"],
        tuple(overhang),
        count_pad,
    )
    got = value(node)
    np.testing.assert_allclose(got, direct_pool(node, x.value), rtol=1e-12)


def direct_pool(node: Pool, x: Array) -> Array:
    """The definition of Pool, one window at a time."""
    y = np.zeros(node.shape)
    for at in np.ndindex(*node.shape):
        starts = [i * s - p[0] for i, s, p in zip(at[2:], node.stride, node.pad, strict=True)]
        cells = [
            tuple(b + u * d for b, u, d in zip(starts, tap, node.dilation, strict=True))
            for tap in np.ndindex(*node.kernel)
        ]
        inside = [c for c in cells if all(0 <= i < e for i, e in zip(c, x.shape[2:], strict=True))]
        counted = [
            c for c in cells if all(-p[0] <= i < e + p[1] for i, e, p in zip(c, x.shape[2:], node.pad, strict=True))
        ]
        values = [x[(*at[:2], *c)] for c in inside]
        match node.kind:
            case "max":
                y[at] = max(values, default=-math.inf)
            case "lp":
                y[at] = math.sqrt(sum(v * v for v in values))
            case _:
                y[at] = sum(values) / max(1, len(counted if node.count_pad else inside))
    return y


@pytest.mark.parametrize("count_pad", [0, 1])
@pytest.mark.parametrize(("kind", "op"), [("max", "MaxPool"), ("average", "AveragePool"), ("lp", "LpPool")])
def test_pools_agree_with_onnx(kind: str, op: str, count_pad: int) -> None:
    x = const(1, 2, 7, 8)
    node = Pool(kind, x, (3, 2), (2, 2), ((1, 1), (0, 1)), (1, 1), (0, 0), bool(count_pad))
    more = {"count_include_pad": count_pad} if kind == "average" else {}
    expected = onnx_value(op, x.value, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], **more)
    np.testing.assert_allclose(value(node), expected, rtol=1e-12)


@pytest.mark.parametrize("fn", sorted(REDUCTIONS))
@pytest.mark.parametrize("axes", [(1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("keepdims", [True, False])
def test_reduce_is_onnx(fn: str, axes: tuple[int, ...], keepdims: bool) -> None:
    x = Const(RNG.uniform(0.5, 2, (2, 3, 4)))
    op = "Reduce" + "".join(p.capitalize() for p in fn.split("_"))
    expected = onnx_value(op, x.value, np.array(axes), opset=18, keepdims=int(keepdims))
    np.testing.assert_allclose(value(Reduce(fn, x, axes, keepdims)), expected, rtol=1e-12)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("fn", ["max", "min"])
def test_arg_reduce_is_onnx(fn: str, last: bool) -> None:
    x = integers(3, 9, 4, low=0, high=3)
    for keepdims in (True, False):
        expected = onnx_value(
            f"Arg{fn.capitalize()}", x.value, axis=1, keepdims=int(keepdims), select_last_index=int(last)
        )
        np.testing.assert_array_equal(value(ArgReduce(fn, x, 1, keepdims, last)), expected)


def test_normalisations_are_onnx() -> None:
    x = const(2, 6, 5, 4)
    np.testing.assert_allclose(value(Softmax(x, 1)), onnx_value("Softmax", x.value, axis=1), rtol=1e-12)
    np.testing.assert_allclose(value(Softmax(x, 3, log=True)), onnx_value("LogSoftmax", x.value, axis=3), rtol=1e-12)
    one, zero = np.ones(6), np.zeros(6)
    instance = onnx_value("InstanceNormalization", x.value, one, zero, epsilon=0.0625)
    np.testing.assert_allclose(value(Normalize(x, (2, 3), 0.0625)), instance, rtol=1e-5, atol=1e-6)
    layer = onnx_value("LayerNormalization", x.value, np.ones(4), np.zeros(4), axis=-1, epsilon=0.0625)
    np.testing.assert_allclose(value(Normalize(x, (3,), 0.0625)), layer, rtol=1e-5, atol=1e-6)
    square = const(6, 6, 2, 3)  # ONNX's evaluator takes the batch for the number of channels.
    for size in (1, 3, 4, 5, 9):
        lrn = onnx_value("LRN", square.value, size=size, alpha=0.5, beta=0.75, bias=2.0)
        np.testing.assert_allclose(value(LRN(square, size, 0.5, 0.75, 2.0)), lrn, rtol=1e-5, atol=1e-6)


def test_matmul_broadcasts_and_is_exact_on_integers() -> None:
    for a, b in [((3, 4), (4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((2, 3, 1), (1, 4))]:
        x, y = integers(*a, dtype="int64"), integers(*b, dtype="int64")
        np.testing.assert_array_equal(value(MatMul(x, y)), np.matmul(x.value, y.value))
    big = Const(np.full((1, 4), 2**31 - 1, np.int64))
    assert value(MatMul(big, Const(np.full((4, 1), 2**29 + 1, np.int64)))).item() == 4 * (2**31 - 1) * (2**29 + 1)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_products_of_bytes_are_summed_in_int32(dtype: str) -> None:
    span, at = np.iinfo(dtype), ((1,), ((0, 0),), (1,))
    x = np.array([[[span.min, span.max, span.max, span.min]]], dtype)
    w, b = np.array([[[-128, -128]], [[127, 127]]], np.int8), Const(np.array([1, -1], np.int32))

    def each(x: Array, w: Array) -> list[Node]:
        turned = ConvTranspose(Const(x), Const(w.swapaxes(0, 1)), b, *at, (0,), 1)
        return [Conv(Const(x), Const(w), b, *at, 1), turned, MatMul(Const(x.swapaxes(1, 2)), Const(w[0]))]

    for narrow, wide in zip(each(x, w), each(x.astype(np.int32), w.astype(np.int32)), strict=True):
        assert narrow.dtype == value(narrow).dtype == "int32"
        assert np.array_equal(value(narrow), value(wide))


def test_movement() -> None:
    x = const(3, 4, 5)
    np.testing.assert_array_equal(value(Reshape(x, (6, 10))), x.value.reshape(6, 10))
    np.testing.assert_array_equal(value(Transpose(x, (2, 0, 1))), x.value.transpose(2, 0, 1))
    np.testing.assert_array_equal(value(Slice(x, (0, 3, 1), (3, 4, 2), (1, -1, 2))), x.value[:, ::-1, 1:4:2])
    np.testing.assert_array_equal(value(Slice(x, (2, 0, 4), (2, 0, 3), (-2, 1, -2))), x.value[2::-2, 0:0, 4::-2])
    np.testing.assert_array_equal(value(Concat((x, x), 1)), np.concatenate([x.value] * 2, 1))
    np.testing.assert_array_equal(value(Broadcast(x, (2, 3, 4, 5))), np.broadcast_to(x.value, (2, 3, 4, 5)))
    indices = Const(np.array([[0, -1], [2, 1]]))
    np.testing.assert_array_equal(value(Gather(x, indices, 1)), onnx_value("Gather", x.value, indices.value, axis=1))
    np.testing.assert_array_equal(value(Where(Const(x.value > 0), x, Unary("neg", x))), np.abs(x.value))
    np.testing.assert_array_equal(value(Cast(Const(np.array([-1.7, 1.7])), "int32")), [-1, 1])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad_is_onnx(mode: str) -> None:
    x, pad = const(2, 4, 5), ((0, 0), (2, 1), (3, 2))
    flat = np.array([0, 2, 3, 0, 1, 2])
    expected = onnx_value("Pad", x.value, flat, np.array(1.5), mode=mode)
    np.testing.assert_array_equal(value(Pad(x, pad, mode, 1.5)), expected)
    cropped = value(Pad(x, ((0, 0), (-1, 0), (1, -2)), "constant", 1.5))
    np.testing.assert_array_equal(cropped, np.pad(x.value[:, 1:, :3], ((0, 0), (0, 0), (1, 0)), constant_values=1.5))


X4 = Input("x", TensorType((1, 4, 5, 5)))
W = Const(np.zeros((4, 2, 3, 3), np.float32))
TWO, ONE, NO_PAD = (2, 2), (1, 1), ((0, 0), (0, 0))


def test_huge_extents_are_typed_without_memory() -> None:
    x = Input("x", TensorType((1, 1, 2**40, 2**40)))
    node = Pad(Conv(x, Const(np.zeros((1, 1, 1, 1), np.float32)), None, TWO, NO_PAD, ONE, 1), ((2**40, 0),) * 4)
    assert node.shape[2] == 2**40 + 2**39
    assert node.type.elements > 2**160


def test_half_precision_sums_in_single() -> None:
    ones = Const(np.ones((1, 4096), np.float16))
    got = value(MatMul(ones, Const(np.full((4096, 1), 1.001, np.float16))))
    assert got.dtype == np.float16
    assert abs(float(got.item()) - 4096 * 1.001) < 4


def test_flops_are_twice_the_multiplications() -> None:
    conv = Conv(X4, W, None, ONE, NO_PAD, ONE, 2)
    assert conv.flops == 2 * (4 * 3 * 3) * (2 * 3 * 3)
    assert ConvTranspose(X4, W, None, ONE, NO_PAD, ONE, (0, 0), 2).flops == 2 * (4 * 5 * 5) * (2 * 3 * 3)
    assert MatMul(const(7, 3), const(3, 5)).flops == 2 * 7 * 3 * 5


def test_a_graph_a_hundred_thousand_deep() -> None:
    x: Node = Input("x", TensorType((2,), "float64"))
    node = x
    for _ in range(100_000):
        node = Unary("relu", node)
    assert isinstance(x, Input)
    graph = Graph((x,), (("y", node),))
    assert len(graph.nodes) == 100_001
    np.testing.assert_array_equal(graph.evaluate({"x": np.array([-1.0, 2.0])})["y"], [0, 2])


def test_evaluate_keeps_outputs_that_others_read() -> None:
    x = Input("x", TensorType((2,), "float64"))
    a = Unary("neg", x)
    b = Unary("abs", a)
    got = Graph((x,), (("a", a), ("b", b), ("again", a))).evaluate({"x": np.array([1.0, -2.0])})
    assert {k: v.tolist() for k, v in got.items()} == {"a": [-1, 2], "b": [1, 2], "again": [-1, 2]}
