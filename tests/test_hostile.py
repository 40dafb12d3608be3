"""Does a broken or hostile model get a clear refusal, quickly, and without a file opened outside its folder?"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_models import MODELS, conv_model, model, needs_models, node, ramp

from convc.errors import BadInputError, ConvcError, UnsupportedError
from convc.frontend import UnsupportedModelError, import_onnx

_watchers: list[list[str]] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _watchers:
        _watchers[-1].append(os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else "")


sys.addaudithook(_audit)


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """The paths, as they are given, of all files opened meanwhile."""
    _watchers.append([])
    try:
        yield _watchers[-1]
    finally:
        _watchers.pop()


@needs_models
def test_each_hostile_model_gets_its_verdict() -> None:
    for name, entry in json.loads((MODELS / "hostile/MANIFEST.json").read_text()).items():
        folder = MODELS / "hostile" / name
        started = time.monotonic()
        with opened_files() as opened:
            try:
                import_onnx(folder / "model.onnx")
                code = 0
            except ConvcError as error:
                code = error.exit_code
                assert str(error).replace("\n", "").isprintable(), name
        allowed = {"reject": (3, 4), "accept": (0,), "accept_nonfinite": (0,)}.get(entry["expect"], (0, 3, 4))
        assert code in allowed, name
        assert time.monotonic() - started < 5, name
        strangers = [p for p in opened if os.path.isabs(p) and not Path(p).resolve().is_relative_to(folder.resolve())]
        assert not [p for p in strangers if not p.startswith(sys.prefix)], name


def broken(change: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = conv_model(pads=[1, 1, 1, 1])
    change(proto)
    return bytes(proto.SerializeToString())


def weights(proto: onnx.ModelProto) -> TensorProto:
    return proto.graph.initializer[0]


def dims(proto: onnx.ModelProto) -> Any:
    return proto.graph.input[0].type.tensor_type.shape.dim


def add_node(proto: onnx.ModelProto, operator: str, inputs: str, outputs: str) -> None:
    proto.graph.node.append(node(operator, inputs, outputs))


def nest(proto: onnx.ModelProto, depth: int) -> None:
    graph = proto.graph
    for i in range(depth):
        inner = graph.node.add(op_type="If", name=f"if{i}", output=[f"if{i}"]).attribute.add(name="then_branch", type=5)
        graph = inner.g


BAD: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "no ir_version": (lambda m: m.ClearField("ir_version"), "no ir_version"),
    "no opset": (lambda m: m.ClearField("opset_import"), "imports no opset"),
    "opset twice": (lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 12)), "twice"),
    "no graph": (lambda m: m.ClearField("graph"), "no graph"),
    "no output": (lambda m: m.graph.ClearField("output"), "no output"),
    "undefined": (lambda m: add_node(m, "Relu", "nothing", "z"), "nothing defines"),
    "order": (lambda m: m.graph.node.insert(0, node("Relu", "y", "z")), "out of order"),
    "defined twice": (lambda m: add_node(m, "Relu", "x", "y"), "defined already"),
    "name of a constant": (lambda m: add_node(m, "Relu", "x", "w"), "defined already"),
    "two constants": (lambda m: m.graph.initializer.append(weights(m)), "two initializers"),
    "no bytes": (lambda m: weights(m).ClearField("raw_data"), "0 entries in float_data"),
    "too few bytes": (lambda m: setattr(weights(m), "raw_data", weights(m).raw_data[:-1]), "dimensions"),
    "two payloads": (lambda m: weights(m).float_data.append(1), "data twice"),
    "negative extent of a constant": (lambda m: weights(m).dims.__setitem__(0, -4), "negative"),
    "negative extent": (lambda m: setattr(dims(m)[2], "dim_value", -5), "negative"),
    "wrong output dtype": (lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 7), "declared int64"),
    "no argument": (lambda m: m.graph.node[0].input.__setitem__(1, ""), "left out"),
    "too many arguments": (lambda m: m.graph.node[0].input.extend("xxx"), "5 arguments"),
    "wrong argument dtype": (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 6), "dtype"),
    "unknown attribute": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("padz", 1)), "no attribute"),
    "attribute twice": (lambda m: m.graph.node[0].attribute.append(m.graph.node[0].attribute[0]), "twice"),
}
UNSUPPORTED: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "future opset": (lambda m: setattr(m.opset_import[0], "version", 99), "opset 99"),
    "ancient opset": (lambda m: setattr(m.opset_import[0], "version", 6), "opset 6"),
    "future ir": (lambda m: setattr(m, "ir_version", 99), "ir_version 99"),
    "more elements than int32 counts": (lambda m: setattr(dims(m)[3], "dim_value", 2**31), "elements; the limit"),
    "product beyond int64": (lambda m: [setattr(d, "dim_value", 2**40) for d in dims(m)], "elements; the limit"),
    "huge constant": (lambda m: weights(m).dims.__setitem__(0, 2**60), "elements; the limit"),
    "empty batch": (lambda m: setattr(dims(m)[0], "dim_value", 0), "is empty"),
    "no rank": (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "--shape 'x=...'"),
    "string": (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8), "STRING"),
    "unknown operator": (lambda m: setattr(m.graph.node[0], "op_type", "Convv"), "Convv"),
    "unknown domain": (lambda m: setattr(m.graph.node[0], "domain", "org.example"), "org.example"),
    "deep graphs": (lambda m: nest(m, 24), "deep"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_the_rules_is_bad_input(name: str) -> None:
    change, words = BAD[name]
    with pytest.raises(BadInputError, match=words):
        import_onnx(broken(change))


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_valid_but_out_of_bounds_is_unsupported(name: str) -> None:
    change, words = UNSUPPORTED[name]
    with pytest.raises(UnsupportedError, match=words):
        import_onnx(broken(change))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"strides": [0, 1]}, "strides"),
        ({"strides": [-1, 1]}, "strides"),
        ({"strides": [1]}, "strides has 1 entries"),
        ({"dilations": [2**31, 2**31]}, "dilations"),
        ({"dilations": [100, 100]}, "spans 201"),
        ({"pads": [1, 1, 1]}, "pads has 3 entries"),
        ({"pads": [-1, 0, 0, 0]}, "pads"),
        ({"pads": [2**40, 0, 0, 0]}, "pads"),
        ({"kernel_shape": [0, 0]}, "kernel_shape"),
        ({"kernel_shape": [5, 5]}, "kernel_shape"),
        ({"kernel_shape": "abc"}, "STRING"),
        ({"auto_pad": "SAME_SIDEWAYS"}, "SAME_SIDEWAYS"),
        ({"group": 0}, "group"),
        ({"group": -1}, "group"),
        ({"group": 10**9}, "groups"),
        ({"group": 3}, "groups"),
    ],
)  # fmt: skip
def test_bad_attributes_of_a_convolution(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=f"'c0'.*{words}"):
        import_onnx(conv_model(**attributes))


@pytest.mark.parametrize("shape", [(), (4,), (4, 3, 3), (4, 3, 3, 3, 3), (4, 2, 3, 3), (0, 3, 3, 3)])
def test_bad_weights_of_a_convolution(shape: tuple[int, ...]) -> None:
    proto = model(node("Conv", "x w", "y"), {"x": (1, 3, 8, 8)}, {"w": ramp(*shape)})
    with pytest.raises(ConvcError):
        import_onnx(proto)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x1f\x8b\x08junk", b"PK\x03\x04junk", b"junk" * 100, np.random.default_rng(0).bytes(4096),
        conv_model().SerializeToString()[:90],
    ],
    ids=["empty", "gzip", "zip", "text", "noise", "torn"],
)
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(BadInputError):
        import_onnx(data)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(BadInputError, match=path.name):
            import_onnx(path)


def external(folder: Path, **entries: object) -> Path:
    """A model beside which w's data lies in w.bin, with the given external_data entries."""
    proto = conv_model()
    data = weights(proto).raw_data
    weights(proto).ClearField("raw_data")
    weights(proto).data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weights(proto).external_data.add(key=key, value=str(value))
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(data)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


def test_external_data_in_the_models_folder_is_read(tmp_path: Path) -> None:
    path = external(tmp_path / "m", location="./w.bin", offset=0, length=432)
    inside = import_onnx(conv_model())
    x = {"x": ramp(1, 3, 8, 8)}
    np.testing.assert_array_equal(import_onnx(path).evaluate(x)["y"], inside.evaluate(x)["y"])


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "/etc/passwd"}, {"location": "../w.bin"}, {"location": "a/../../w.bin"}, {"location": ""},
        {"location": "w.bin/"}, {"location": "none.bin"}, {"location": "."}, {"location": "w.bin\0x"}, {"offset": 0},
        {"location": "w.bin", "offset": 1}, {"location": "w.bin", "offset": -1}, {"location": "w.bin", "length": 2**50},
        {"location": "w.bin", "offset": 10**30}, {"location": "w.bin", "length": "0x10"},
        {"location": "w.bin", "__class__": "x"}, {"location": "link.bin"}, {"location": "hard.bin"},
        {"location": "linked/w.bin"}, {"location": "pipe"}, {"location": "inner"},
    ],
    ids=str,
)  # fmt: skip
def test_external_data_anywhere_else_is_refused(tmp_path: Path, entries: dict[str, object]) -> None:
    path = external(tmp_path / "m", **entries)
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "w.bin").write_bytes(b"\0" * 432)
    (path.parent / "link.bin").symlink_to(outside / "w.bin")
    (path.parent / "linked").symlink_to(outside)
    (path.parent / "hard.bin").hardlink_to(outside / "w.bin")
    (path.parent / "inner").mkdir()
    os.mkfifo(path.parent / "pipe")
    with opened_files() as opened, pytest.raises(BadInputError, match="external data|entries in"):
        import_onnx(path)
    assert not [p for p in opened if "passwd" in p or "secret" in p or ".." in p]


def test_external_data_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="give its path"):
        import_onnx(external(tmp_path / "m", location="w.bin").read_bytes())


def test_names_are_escaped_and_shortened() -> None:
    evil = "\x1b[31m\u202e'; rm -rf /\n" + "A" * 10**6
    with pytest.raises(UnsupportedModelError) as caught:
        import_onnx(model(node("Nope", "x", "y", name=evil), {"x": (1, 2)}))
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value) and "\\x1b" in str(caught.value)


def test_names_never_change_what_is_computed() -> None:
    x = ramp(1, 3, 8, 8)
    for name in ("../../x", "void", "$(touch /tmp/x)", "x" * 10**5, "%s%n", "\u202e"):
        proto = model(node("Relu", "in", "out", name=name), {"in": (1, 3, 8, 8)}, outputs=("out",))
        proto.graph.input[0].name = proto.graph.node[0].input[0] = name
        graph = import_onnx(proto)
        np.testing.assert_array_equal(graph.evaluate({name: x})["out"], np.maximum(x, 0))


def test_a_name_that_is_not_utf8() -> None:
    data = conv_model().SerializeToString().replace(b"c0", b"c\xff")
    with pytest.raises(BadInputError, match="UTF-8"):
        import_onnx(data)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_bad_scales_are_refused(scale: float) -> None:
    kinds = {"y": TensorProto.UINT8}
    proto = model(node("QuantizeLinear", "x s", "y"), {"x": (1, 4)}, {"s": np.float32(scale)}, kinds=kinds)
    with pytest.raises(BadInputError, match="scale"):
        import_onnx(proto)


def test_an_accumulator_that_can_overflow_is_refused() -> None:
    def conv(channels: int) -> onnx.ModelProto:
        w = np.full((1, channels, 1, 1), 127, np.int8)
        return model(node("ConvInteger", "x w", "y"), {"x": (1, channels, 1, 1)}, {"w": w},
                     kinds={"x": TensorProto.UINT8, "y": TensorProto.INT32})  # fmt: skip

    most = (2**31 - 1) // (255 * 127)
    import_onnx(conv(most))
    with pytest.raises(UnsupportedError, match="more than int32 holds"):
        import_onnx(conv(most + 1))


@pytest.mark.parametrize("constant", [False, True])
def test_long_graphs_take_linear_time(constant: bool) -> None:
    """Also with constants, which are computed as the graph is read."""
    count = 20_000
    nodes = [node("Add", f"t{i} t0", f"t{i + 1}") for i in range(count)]
    inputs, constants = ({}, {"t0": ramp(4)}) if constant else ({"t0": (4,)}, {})
    started = time.monotonic()
    graph = import_onnx(model(nodes, inputs, constants, outputs=(f"t{count}",)))
    assert len(graph.nodes) == (1 if constant else count + 1)
    assert time.monotonic() - started < 30


def test_constants_do_not_grow_without_bound() -> None:
    """Ten nodes that would each make 2 GB stay nodes; one of more than 2^31 elements is refused."""
    nodes = [node("ConstantOfShape", "s", f"t{i}") for i in range(10)]
    graph = import_onnx(model(nodes, {}, {"s": np.array([2**29], np.int64)}, outputs=("t9",)))
    assert graph.outputs[0][1].shape == (2**29,)
    with pytest.raises(UnsupportedError, match="elements; the limit"):
        import_onnx(model(nodes, {}, {"s": np.array([2**31], np.int64)}, outputs=("t9",)))


@pytest.mark.parametrize(
    "proto",
    [
        model(node("Hardmax", "x", "y"), {"x": (1, 2**31 - 1)}),
        model(node("GatherElements", "x i", "y"), {"x": (2**15, 2**15), "i": (2**15, 2**15)}, kinds={"i": 7}),
        model(
            node("DequantizeLinear", "x s", "y", axis=1, block_size=2**29), {"x": (2, 2**29)}, {"s": ramp(2, 1) + 9},
            opset=21, kinds={"x": TensorProto.INT8},
        ),
    ],
    ids=lambda proto: proto.graph.node[0].op_type,
)  # fmt: skip
def test_tables_made_from_extents_are_bounded(proto: onnx.ModelProto) -> None:
    with pytest.raises(UnsupportedError, match="needs a table"):
        import_onnx(proto)


VALUES = st.sampled_from([0, 1, 2, 3, 7, -1, 127, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63)])
SEEDS = [
    conv_model(pads=[1, 1, 1, 1], strides=[2, 2], dilations=[1, 1], group=1),
    model(node("MaxPool", "x", "y", kernel_shape=[3, 3], pads=[1] * 4, ceil_mode=1), {"x": (1, 3, 9, 9)}),
    model(node("Resize", "x - - n", "y", mode="linear"), {"x": (1, 3, 4, 4)}, {"n": np.array([1, 3, 8, 8])}),
    model(node("Slice", "x b e b b", "y"), {"x": (4, 5, 6)}, {"b": np.array([1, 2]), "e": np.array([3, 4])}),
    model(node("Pad", "x p", "y"), {"x": (2, 3)}, {"p": np.array([1, 1, 1, 1])}),
    model(node("Reshape", "x s", "y"), {"x": (2, 3, 4)}, {"s": np.array([0, -1, 2])}),
    model(node("Tile", "x r", "y"), {"x": (2, 3)}, {"r": np.array([2, 2])}),
]  # fmt: skip


@settings(max_examples=300, deadline=5000, suppress_health_check=list(HealthCheck))
@given(seed=st.sampled_from(SEEDS), value=VALUES, place=st.integers(0, 30))
def test_no_number_crashes_the_importer(seed: onnx.ModelProto, value: int, place: int) -> None:
    """Any one number of a valid model - an attribute, an extent, a constant - replaced by any other."""
    proto = onnx.ModelProto()
    proto.CopyFrom(seed)
    numbers: list[Callable[[], object]] = []
    for attribute in proto.graph.node[0].attribute:
        numbers += [lambda a=attribute, i=i: a.ints.__setitem__(i, value) for i in range(len(attribute.ints))]
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        numbers.append(lambda d=dim: setattr(d, "dim_value", value))
    for tensor in proto.graph.initializer:
        numbers += [lambda t=tensor, i=i: t.dims.__setitem__(i, value) for i in range(len(tensor.dims))]
        for i in range(np.prod(tensor.dims, dtype=int) if tensor.data_type == TensorProto.INT64 else 0):
            numbers.append(lambda t=tensor, i=i: setattr(t, "raw_data", with_number(t.raw_data, i, value)))
    numbers[place % len(numbers)]()
    try:
        import_onnx(proto)
    except ConvcError as error:
        assert error.exit_code in (3, 4)


def with_number(raw: bytes, index: int, value: int) -> bytes:
    numbers = np.frombuffer(raw, np.int64).copy()
    numbers[index] = value
    return numbers.tobytes()
