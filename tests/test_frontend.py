"""Does an ONNX model become the graph that it means? Compared with numpy, and with ONNX Runtime where that is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx_models import MODELS, Array, conv_model, model, needs_models, node, ramp

from convc.errors import BadInputError, UnsupportedError, UsageError
from convc.frontend import OpenBatchWarning, UnsupportedModelError, import_onnx, operators, summary
from convc.frontend.limits import LIMITATIONS, OPSETS
from convc.frontend.operators import OPERATORS
from convc.ir import Binary, Cast, Const, Conv, Graph, Input, MatMul, Node, Reshape, Slice, Unary

C = {"c": ramp(3) + 7}


def result(proto: onnx.ModelProto, **inputs: Array) -> Array:
    return import_onnx(proto).evaluate(inputs)["y"]


def runtime(proto: onnx.ModelProto | str, inputs: dict[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime makes of it, with its optimisations off."""
    ort = pytest.importorskip("onnxruntime")
    ort.disable_telemetry_events()
    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto if isinstance(proto, str) else proto.SerializeToString(), options)
    return dict(zip([out.name for out in session.get_outputs()], session.run(None, inputs), strict=True))


IMAGE = {"x": (2, 6, 7, 9)}
W, V = ramp(4, 6, 3, 3), ramp(6, 2, 3, 3)
S2 = np.array([1, 1, 2, 2], np.float32)
PLACES = np.arange(24).reshape(2, 3, 2, 2) % 12 - 6
S3 = np.array([1, 1, 0.8, 0.35], np.float32)
CASES: dict[str, tuple[onnx.NodeProto, dict[str, Any], tuple[int, ...]]] = {
    "Conv": (node("Conv", "x w b", "y", pads=[1, 0, 2, 1], strides=[2, 1]), {"w": W, "b": ramp(4)}, (7, 11, 13)),
    "Conv group": (node("Conv", "x w", "y", group=2, dilations=[2, 1]), {"w": ramp(4, 3, 3, 3)}, (7, 13)),
    "Conv SAME_UPPER": (node("Conv", "x w", "y", auto_pad="SAME_UPPER", strides=[2, 3]), {"w": W}, (7, 13)),
    "Conv SAME_LOWER": (node("Conv", "x w", "y", auto_pad="SAME_LOWER", strides=[2, 3]), {"w": W}, (7, 13)),
    "Conv VALID": (node("Conv", "x w", "y", auto_pad="VALID"), {"w": W}, (7, 13)),
    "ConvTranspose": (node("ConvTranspose", "x w", "y", strides=[2, 3], output_padding=[1, 2]), {"w": V}, (7, 11)),
    "ConvTranspose pads": (node("ConvTranspose", "x w", "y", strides=[2, 2], pads=[1, 0, 1, 1]), {"w": V}, (7, 11)),
    "ConvTranspose shape": (
        node("ConvTranspose", "x w", "y", strides=[2, 2], output_shape=[14, 18], auto_pad="SAME_UPPER"), {"w": V}, (11,)
    ),
    "MaxPool": (node("MaxPool", "x", "y", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]), {}, (7, 8, 12)),
    "MaxPool ceil": (node("MaxPool", "x", "y", kernel_shape=[3, 2], strides=[3, 2], ceil_mode=1), {}, (10, 12)),
    "MaxPool dilated": (node("MaxPool", "x", "y", kernel_shape=[2, 2], dilations=[2, 3]), {}, (10, 12)),
    "AveragePool": (node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}, (7, 10, 11)),
    "AveragePool all": (
        node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1), {}, (7, 11)
    ),
    "AveragePool same": (
        node("AveragePool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"), {}, (7, 11)
    ),
    "LpPool": (node("LpPool", "x", "y", kernel_shape=[3, 2], p=3), {}, (7, 11)),
    "GlobalLpPool": (node("GlobalLpPool", "x", "y", p=3), {}, (7,)),
    "GlobalAveragePool": (node("GlobalAveragePool", "x", "y"), {}, (7,)),
    "GlobalMaxPool": (node("GlobalMaxPool", "x", "y"), {}, (7,)),
    "BatchNormalization": (
        node("BatchNormalization", "x s b m v", "y", epsilon=1e-3),
        {"s": ramp(6), "b": ramp(6) + 2, "m": ramp(6) * 3, "v": np.abs(ramp(6)) + 1}, (7, 9, 14, 15),
    ),
    "InstanceNormalization": (node("InstanceNormalization", "x s b", "y"), {"s": ramp(6), "b": ramp(6)}, (7,)),
    "LRN": (node("LRN", "x", "y", size=3, alpha=0.5, bias=2.0), {}, (7, 13)),
    "Softmax": (node("Softmax", "x", "y", axis=1), {}, (7, 11, 13)),
    "LogSoftmax": (node("LogSoftmax", "x", "y", axis=2), {}, (7, 11, 13)),
    "Hardmax": (node("Hardmax", "x", "y", axis=1), {}, (7, 11, 13)),
    "Flatten": (node("Flatten", "x", "y", axis=2), {}, (7, 11, 13)),
    "Concat": (node("Concat", "x x x", "y", axis=3), {}, (7, 11, 13)),
    "Clip attributes": (node("Clip", "x", "y", min=-0.5, max=0.25), {}, (7,)),
    "Clip arguments": (node("Clip", "x - h", "y"), {"h": np.float32(0.25)}, (11, 12, 13)),
    "Pad attributes": (node("Pad", "x", "y", pads=[0, 1, -1, 2, 0, 0, 1, 0], value=3.0), {}, (7, 10)),
    "Pad arguments": (
        node("Pad", "x p v", "y"), {"p": np.array([0, 1, -1, 2, 0, 0, 1, 0]), "v": np.float32(3)}, (11, 13, 18)
    ),
    "Pad reflect": (node("Pad", "x p", "y", mode="reflect"), {"p": np.array([0, 0, 2, 1, 0, 0, 1, 3])}, (11, 13)),
    "Pad edge": (node("Pad", "x p", "y", mode="edge"), {"p": np.array([0, 0, 2, 1, 0, 0, 1, 3])}, (11, 13)),
    "Slice attributes": (node("Slice", "x", "y", starts=[1, -4], ends=[9999, -1], axes=[1, 3]), {}, (7, 9)),
    "Slice arguments": (
        node("Slice", "x b e a s", "y"),
        {"b": np.array([5, -1]), "e": np.array([-9999, 0]), "a": np.array([1, -1]), "s": np.array([-2, -3])},
        (10, 11, 13),
    ),
    "Squeeze": (node("Squeeze", "t", "y", axes=[0]), {}, (7, 11)),
    "Unsqueeze": (node("Unsqueeze", "x", "y", axes=[0, 4]), {}, (7, 11)),
    "Unsqueeze argument": (node("Unsqueeze", "x a", "y"), {"a": np.array([-1, 0])}, (13,)),
    "ReduceMean": (node("ReduceMean", "x", "y", axes=[1, -1], keepdims=0), {}, (11, 13)),
    "ReduceMean argument": (node("ReduceMean", "x a", "y"), {"a": np.array([1, -1])}, (18,)),
    "ReduceSum": (node("ReduceSum", "x a", "y", noop_with_empty_axes=1), {"a": np.array([], np.int64)}, (13,)),
    "ReduceL2": (node("ReduceL2", "x", "y"), {}, (7, 13)),
    "Upsample attribute": (node("Upsample", "x", "y", scales=S2.tolist()), {}, (7,)),
    "Upsample argument": (node("Upsample", "x s", "y", mode="linear"), {"s": S2}, (9,)),
    "Resize 10": (node("Resize", "x s", "y"), {"s": S2 * np.array([1, 1, 1, 1.5], np.float32)}, (10,)),
    "Resize 10 linear": (node("Resize", "x s", "y", mode="linear"), {"s": S2}, (10,)),
    "Resize scales": (node("Resize", "x - s", "y", mode="linear"), {"s": S2 * S3}, (13,)),
    "Resize sizes": (node("Resize", "x - - n", "y", mode="cubic"), {"n": np.array([2, 6, 5, 20])}, (13, 18)),
    "Resize corners": (
        node("Resize", "x - - n", "y", mode="linear", coordinate_transformation_mode="align_corners"),
        {"n": np.array([2, 6, 5, 20])}, (13,),
    ),
    "DepthToSpace": (node("DepthToSpace", "f", "y", blocksize=2), {}, (7, 11)),
    "DepthToSpace CRD": (node("DepthToSpace", "f", "y", blocksize=2, mode="CRD"), {}, (11, 13)),
    "Gemm": (node("Gemm", "q w b", "y", transB=1, alpha=0.5, beta=2.0), {"w": ramp(5, 9), "b": ramp(5)}, (7, 11, 13)),
    "MatMul vector": (node("MatMul", "x w", "y"), {"w": ramp(9)}, (7, 13)),
    "PRelu": (node("PRelu", "x s", "y"), {"s": ramp(6, 1, 1)}, (7, 9)),
    "Pow": (node("Pow", "x e", "y"), {"e": np.float32(2)}, (7, 13)),
    "Gather": (node("Gather", "x i", "y", axis=1), {"i": np.array([[5, -6], [0, 2]])}, (7, 11)),
    "GatherND": (node("GatherND", "x i", "y"), {"i": np.array([-1, 2, 0])}, (11, 13)),
    "GatherND batches": (node("GatherND", "x i", "y", batch_dims=1), {"i": np.array([[[5, 6]], [[-1, 0]]])}, (12, 13)),
    "GatherElements": (node("GatherElements", "x i", "y", axis=1), {"i": PLACES}, (11, 13)),
    "Tile": (node("Tile", "x r", "y"), {"r": np.array([1, 2, 1, 3])}, (7, 13)),
    "Expand": (node("Expand", "x s", "y"), {"s": np.array([2, 2, 1, 1, 1])}, (8, 13)),
    "Sum": (node("Sum", "x x x", "y"), {}, (8, 13)),
    "Mean": (node("Mean", "x x x", "y"), {}, (8, 13)),
    "Dropout": (node("Dropout", "x", "y -"), {}, (7, 10, 13)),
}  # fmt: skip
SHAPES = {"x": (2, 6, 7, 9), "t": (1, 3, 4), "q": (4, 9), "f": (1, 8, 3, 2)}


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name, case in CASES.items() for opset in case[2]])
def test_every_opset_means_what_the_runtime_takes_it_for(name: str, opset: int) -> None:
    operator, constants, _ = CASES[name]
    inputs = {n: s for n, s in SHAPES.items() if n in operator.input}
    proto = model(operator, inputs, constants, opset=opset)
    rng = np.random.default_rng(0)
    x = {n: rng.standard_normal(s).astype(np.float32) for n, s in inputs.items()}
    np.testing.assert_allclose(result(proto, **x), runtime(proto, x)["y"], rtol=2e-5, atol=2e-5)


def test_parameters_that_the_model_computes_are_constants() -> None:
    """The usual flatten: shape, slice, concatenate, reshape; what is left is one reshape."""
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n", "n1", axes=[0]),
        node("Concat", "n1 minus", "to", axis=0), node("Reshape", "x to", "y"),
    ]  # fmt: skip
    constants = {"zero": np.array(0), "minus": np.array([-1])}
    graph = import_onnx(model(nodes, {"x": (2, 3, 4)}, constants, opset=11))
    (name, found), = graph.outputs
    assert name == "y" and isinstance(found, Reshape) and isinstance(found.x, Input) and found.to == (2, 12)


def test_a_shape_that_depends_on_the_input_is_unsupported() -> None:
    proto = model(node("Reshape", "x s", "y"), {"x": (2, 3), "s": (1,)}, kinds={"s": TensorProto.INT64})
    with pytest.raises(UnsupportedModelError, match="must be known when compiling"):
        import_onnx(proto)


def test_every_failing_node_is_told_and_nothing_behind_it() -> None:
    nodes = [
        node("Nope", "x", "a", name="first"), node("Relu", "a", "b", name="behind"), node("Relu", "x", "c"),
        node("Nada", "c", "d", name="second"), node("Nix", "b", "e", name="third"), node("Add", "b d", "y"),
    ]  # fmt: skip
    with pytest.raises(UnsupportedModelError) as caught:
        import_onnx(model(nodes, {"x": (1, 2)}))
    assert [f.where for f in caught.value.failures] == ["node 'first'", "node 'second'", "node 'third'"]
    assert "'second' (Nada, opset 13, arguments float32[1x2]): the operator is not supported" in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_second_result_matters_only_where_it_is_used() -> None:
    pool = node("MaxPool", "x", "y i", kernel_shape=[2, 2])
    assert result(model(pool, {"x": (1, 1, 2, 2)}), x=ramp(1, 1, 2, 2)).shape == (1, 1, 1, 1)
    with pytest.raises(UnsupportedModelError, match="result 1 is used"):
        import_onnx(model(pool, {"x": (1, 1, 2, 2)}, outputs=("y", "i"), kinds={"i": TensorProto.INT64}))


def test_initializers_that_are_listed_as_inputs_are_constants() -> None:
    proto = conv_model()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))
    assert [i.label for i in import_onnx(proto).inputs] == ["x"]


def test_an_open_batch_is_one_and_says_so() -> None:
    proto = model(node("Relu", "x", "y"), {"x": ("batch", 3)})
    with pytest.warns(OpenBatchWarning, match="batch of 1"):
        graph = import_onnx(proto)
    assert graph.inputs[0].shape == (1, 3)
    assert import_onnx(proto, shapes={"x": (5, 3)}).outputs[0][1].shape == (5, 3)


def test_open_dimensions_name_the_shape_to_give() -> None:
    proto = model(node("Relu", "x", "y"), {"x": (1, 3, "h", None)})
    with pytest.raises(UnsupportedError, match="--shape 'x=1,3,.,.'"):
        import_onnx(proto)
    assert import_onnx(proto, shapes={"x": (1, 3, 4, 5)}).inputs[0].shape == (1, 3, 4, 5)


def test_one_name_is_one_extent() -> None:
    proto = model(node("Add", "x z", "y"), {"x": ("n", 3), "z": ("n", 3)})
    assert import_onnx(proto, shapes={"x": (4, 3)}).inputs[1].shape == (4, 3)
    with pytest.raises(UsageError, match="both"):
        import_onnx(proto, shapes={"x": (4, 3), "z": (5, 3)})


@pytest.mark.parametrize("shapes", [{"nothing": (1, 3)}, {"x": (1, 4)}, {"x": (1, 3, 1)}, {"x": (0, 3)}])
def test_shapes_that_do_not_fit_the_model(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError):
        import_onnx(model(node("Relu", "x", "y"), {"x": ("n", 3)}), shapes=shapes)


def test_float16_is_computed_in_float32_and_returned_as_float16() -> None:
    w = ramp(4, 3, 3, 3).astype(np.float16)
    half = {"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16}
    graph = import_onnx(model(node("Conv", "x w", "y"), {"x": (1, 3, 8, 8)}, {"w": w}, kinds=half))
    (conv,) = (n for n in graph.nodes if isinstance(n, Conv))
    assert (graph.inputs[0].dtype, conv.dtype, graph.outputs[0][1].dtype) == ("float16", "float32", "float16")
    x = ramp(1, 3, 8, 8)
    np.testing.assert_array_equal(graph.evaluate({"x": x.astype(np.float16)})["y"], result(conv_model(), x=x))


def test_double_constants_serve_as_parameters_and_double_tensors_are_refused() -> None:
    nodes = [node("Mul", "a b", "c"), node("Cast", "c", "n", to=TensorProto.INT64), node("Reshape", "x n", "y")]
    constants = {"a": np.array([1.5]), "b": np.array([4.0])}
    assert result(model(nodes, {"x": (2, 3)}, constants), x=ramp(2, 3)).shape == (6,)
    with pytest.raises(UnsupportedModelError, match="float64 is not supported"):
        import_onnx(model(node("Relu", "x", "y"), {"x": (2,)}, kinds=dict.fromkeys("xy", TensorProto.DOUBLE)))


def test_batch_norm_is_two_constants_worked_out_in_double() -> None:
    s, b, m, v = (np.array([value], np.float32) for value in (1.0, 0.0, 16777216.0, 1e-12))
    proto = model(node("BatchNormalization", "x s b m v", "y", epsilon=0.0), {"x": (1, 1, 1)}, dict(s=s, b=b, m=m, v=v))
    found = import_onnx(proto).outputs[0][1]
    assert isinstance(found, Binary) and isinstance(found.b, Const)
    assert found.b.value.item() == np.float32(-16777216.0 / np.sqrt(np.float64(v[0])))


def test_group_norm_has_parameters_for_groups_and_later_for_channels() -> None:
    x = ramp(2, 6, 4)
    per_group, per_channel = ramp(2) + 4, np.repeat(ramp(2) + 4, 3)
    operator = node("GroupNormalization", "x s s", "y", num_groups=2)
    first = result(model(operator, {"x": x.shape}, {"s": per_group}, opset=18), x=x)
    second = result(model(operator, {"x": x.shape}, {"s": per_channel}, opset=21), x=x)
    np.testing.assert_array_equal(first, second)
    groups = x.reshape(2, 2, 12).astype(np.float64)
    want = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    scaled = want.reshape(2, 6, 4) * per_channel[:, None] + per_channel[:, None]
    np.testing.assert_allclose(first, scaled, rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInputError):
        import_onnx(model(operator, {"x": x.shape}, {"s": per_channel}, opset=18))


@pytest.mark.parametrize(("opset", "sizes"), [(7, None), (11, [1, 4]), (13, [1, 4]), (18, None)])
def test_split_is_slices(opset: int, sizes: list[int] | None) -> None:
    extent = 5 if sizes or opset == 18 else 4
    attributes = {"split": sizes} if sizes and opset < 13 else {"num_outputs": 2} if opset == 18 else {}
    constants = {"n": np.array(sizes)} if sizes and opset >= 13 else {}
    operator = node("Split", "x n" if constants else "x", "y z", axis=1, **attributes)
    graph = import_onnx(model(operator, {"x": (2, extent)}, constants, opset=opset, outputs=("y", "z")))
    assert all(isinstance(out, Slice) for _, out in graph.outputs)
    x = ramp(2, extent)
    cut = sizes[0] if sizes else -(-extent // 2)
    for name, want in (("y", x[:, :cut]), ("z", x[:, cut:])):
        np.testing.assert_array_equal(graph.evaluate({"x": x})[name], want)


def test_reduction_of_an_unnormalised_axis_out_of_range() -> None:
    with pytest.raises(BadInputError, match="axis 4"):
        import_onnx(model(node("ReduceMean", "x", "y", axes=[4]), {"x": (2, 3)}))


def qlinear_conv(x_zero: int, w_zero: int, scales: tuple[float, float, float]) -> tuple[onnx.ModelProto, Array]:
    w = ramp(4, 3, 3, 3, dtype="int8") * np.int8(20)
    kinds = {"x": TensorProto.UINT8, "y": TensorProto.UINT8}
    names = ("xs", "ws", "ys")
    constants = dict(zip(names, np.array(scales, np.float32), strict=True)) | {
        "xz": np.uint8(x_zero), "wz": np.int8(w_zero), "yz": np.uint8(100), "w": w, "b": ramp(4, dtype="int32") * 1000,
    }  # fmt: skip
    operator = node("QLinearConv", "x xs xz w ws wz ys yz b", "y", pads=[1, 1, 1, 1])
    return model(operator, {"x": (1, 3, 5, 5)}, constants, kinds=kinds), w


@pytest.mark.parametrize(("x_zero", "w_zero"), [(0, 0), (128, 0), (7, -3)])
def test_qlinear_conv_is_exact(x_zero: int, w_zero: int) -> None:
    """Against 64-bit integers, with extremes in x, and padding that is the zero point."""
    proto, w = qlinear_conv(x_zero, w_zero, (0.5, 0.25, 64.0))
    x = (np.arange(75) * 37 % 256).astype(np.uint8).reshape(1, 3, 5, 5)
    padded = np.pad(x.astype(np.int64) - x_zero, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    total = np.einsum("ncijuv,ocuv->noij", windows, w.astype(np.int64) - w_zero) + ramp(4)[:, None, None] * 1000
    want = np.clip(np.rint(total * (0.5 * 0.25 / 64)) + 100, 0, 255)
    got = result(proto, x=x)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)


def test_a_scale_for_each_output_channel() -> None:
    proto, _ = qlinear_conv(3, 0, (0.5, 0.25, 64.0))
    by_channel = onnx.ModelProto()
    by_channel.CopyFrom(proto)
    for tensor in by_channel.graph.initializer:
        if tensor.name in ("ws", "wz"):
            tensor.CopyFrom(numpy_helper.from_array(np.repeat(numpy_helper.to_array(tensor), 4), tensor.name))
    x = (np.arange(75) * 37 % 256).astype(np.uint8).reshape(1, 3, 5, 5)
    np.testing.assert_array_equal(result(by_channel, x=x), result(proto, x=x))


def test_a_dequantized_constant_keeps_its_integers() -> None:
    """The passes look for mul(Cast(sub(Cast(q), zero)), scale)."""
    q, scale = ramp(4, 3, 3, 3, dtype="int8"), np.array([0.5, 1, 2, 4], np.float32)
    nodes = [node("DequantizeLinear", "q s z", "w", axis=0), node("Conv", "x w", "y")]
    graph = import_onnx(model(nodes, {"x": (1, 3, 8, 8)}, {"q": q, "s": scale, "z": np.array([0, 1, 0, 0], np.int8)}))
    match graph.outputs[0][1]:
        case Conv(_, Binary("mul", Cast(Binary("sub", Cast(Const(kept)), Const(zero)), "float32"), Const(factor))):
            np.testing.assert_array_equal(kept, q)
            assert kept.dtype == np.int8 and zero.reshape(-1).tolist() == [0, 1, 0, 0] and factor.shape == (4, 1, 1, 1)
        case other:
            pytest.fail(f"unexpected {other}")


def test_four_bit_weights() -> None:
    q = onnx.helper.make_tensor("q", TensorProto.INT4, [3], [-8, 7, 1])
    proto = model(node("DequantizeLinear", "q s", "w"), {}, {"s": np.float32(0.5)}, opset=21, outputs=("w",))
    proto.graph.initializer.append(q)
    assert import_onnx(proto).evaluate({})["w"].tolist() == [-4.0, 3.5, 0.5]


def test_quantization_rounds_half_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9], np.float32)
    proto = model(node("QuantizeLinear", "x s z", "y"), {"x": x.shape}, {"s": np.float32(1), "z": np.uint8(10)},
                  kinds={"y": TensorProto.UINT8})  # fmt: skip
    assert result(proto, x=x).tolist() == [10, 12, 12, 10, 255, 0]


def test_experimental_image_operators() -> None:
    x = ramp(1, 3, 6, 6)
    nodes = [
        node("ImageScaler", "x", "a", scale=2.0, bias=[1.0, 2.0, 3.0]), node("Crop", "a", "b", border=[1, 2, 0, 1]),
        node("Affine", "b", "y", alpha=0.5, beta=-1.0),
    ]  # fmt: skip
    want = (x * 2 + np.array([1, 2, 3], np.float32)[:, None, None])[:, :, 2:-1, 1:] * 0.5 - 1
    np.testing.assert_array_equal(result(model(nodes, {"x": x.shape}, opset=7), x=x), want)


def test_nodes_remember_where_they_come_from() -> None:
    graph = import_onnx(model([node("Gemm", "x w", "g", name="fc"), node("Relu", "g", "y", name="act")],
                              {"x": (2, 3)}, {"w": ramp(3, 4)}))  # fmt: skip
    origins = {type(n): n.origin for n in graph.nodes if isinstance(n, (MatMul, Unary))}
    assert origins == {MatMul: ("fc",), Unary: ("act",)}


def test_the_table_of_operators_is_complete() -> None:
    rows = {row.name: row for row in operators()}
    assert set(rows) == {"", *OPERATORS} and set(LIMITATIONS) <= set(rows)
    spans = {"Upsample": (7, 9), "Gelu": (20, OPSETS[1]), "GroupNormalization": (18, OPSETS[1]), "Conv": OPSETS}
    assert {name: rows[name].opsets for name in spans} == spans


def test_summary(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(conv_model(), path)
    found = summary(path)
    assert (found.opset, found.nodes, found.operators, found.parameters) == (13, 1, {"Conv": 1}, 108)
    assert found.inputs == {"x": "FLOAT[1x3x8x8]"}


def random_inputs(graph: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(0)

    def one(value: Node) -> Array:
        if value.dtype.startswith("float"):
            return rng.standard_normal(value.shape).astype(value.dtype)
        return rng.integers(-128, 128, value.shape).astype(value.dtype)

    return {value.label: one(value) for value in graph.inputs}


REAL = (
    "mnist_8", "super_resolution_10", "mlperftiny_resnet8_fp32", "mlperftiny_resnet8_int8", "mlperftiny_dscnn_kws_int8",
    "mlperftiny_vww_mobilenetv1_fp32", "squeezenet_fp16", "ultraface_rfb320", "yunet_s320",
)  # fmt: skip


@needs_models
@pytest.mark.filterwarnings("ignore::convc.frontend.OpenBatchWarning")
@pytest.mark.parametrize("name", REAL)
def test_real_models_compute_what_the_runtime_computes(name: str) -> None:
    """Quantized models too: unoptimised, the runtime computes them in float as well."""
    path = str(MODELS / "real" / name / "model.onnx")
    graph = import_onnx(path)
    inputs = random_inputs(graph)
    got = graph.evaluate(inputs)
    for label, want in runtime(path, inputs).items():
        assert got[label].dtype == want.dtype
        np.testing.assert_allclose(got[label].astype(np.float32), want.astype(np.float32), rtol=1e-3, atol=2e-5)


@needs_models
@pytest.mark.filterwarnings("ignore::convc.frontend.OpenBatchWarning")
def test_all_models_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(MODELS)
    rehydrate = __import__("rehydrate").rehydrate
    for path in sorted(MODELS.glob("real/*/model.onnx")):
        assert import_onnx(path).nodes
    for path in sorted(MODELS.glob("zoo/*.onnx")):
        assert import_onnx(rehydrate(path)).outputs[0][1].shape[0] == 1
