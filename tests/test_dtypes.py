"""Is a network computed in the type that was asked for, in between and nowhere else, and as exactly as that can be?"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from cli_calls import complaint, document, isolate, network
from cuda_shim import needs_shim, on_shim
from onnx_models import model, node

import convc
from convc.algorithm import algorithms
from convc.dtypes import DTYPES, HALVES, LIMITS, ROUNDING, computing
from convc.errors import UsageError
from convc.frontend import import_onnx
from convc.ir import Array, Binary, Cast, Const, Conv, Graph, Input, MatMul, Node, Softmax, TensorType, Unary
from convc.passes import simplify
from convc.passes.narrow import narrow
from convc.pipeline import run_until
from convc.plan import partition, select
from convc.plan.offers import explain_problem, offers
from convc.problem import Problem
from convc.target import parse_target

SM80 = parse_target("cuda/sm_80")
KINDS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
STEP = {name: 2 * ROUNDING[name] for name in HALVES}


def image(*shape: int) -> Input:
    return Input("x", TensorType(shape, "float32"))


def convolution(x: Node, out: int, seed: int) -> Node:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((out, x.shape[1], 3, 3)) / np.sqrt(9 * x.shape[1])
    b = Const(rng.standard_normal(out).astype(np.float32))
    return Conv(x, Const(w.astype(np.float32)), b, (1, 1), ((1, 1), (1, 1)), (1, 1), 1)


def small() -> Graph:
    """Two outputs, one of them a comparison; a residual, a softmax."""
    x = image(1, 8, 6, 6)
    first = Unary("relu", convolution(x, 8, 0))
    second = Binary("add", convolution(first, 8, 1), first)
    soft = Softmax(second, 1)
    above = Binary("greater", first, Const(np.array(0.25, np.float32)))
    return Graph((x,), (("soft", soft), ("above", above)))


@pytest.mark.parametrize("dtype", HALVES)
def test_everything_between_inputs_and_outputs_is_narrow(dtype: str) -> None:
    graph = small()
    made = narrow(graph, dtype)
    assert made.inputs == graph.inputs
    assert [(n, v.type) for n, v in made.outputs] == [(n, v.type) for n, v in graph.outputs]
    ends = {*made.inputs, *(v for _, v in made.outputs)}
    wide = [n for n in made.nodes if n.dtype == "float32" and n not in ends]
    assert not wide
    assert sum(isinstance(n, Cast) for n in made.nodes) == 2


@pytest.mark.parametrize("dtype", HALVES)
def test_constants_are_rounded_to_nearest_even(dtype: str) -> None:
    step = STEP[dtype]
    values = np.array([1 + step / 2, 1 + 1.5 * step, -1 - 0.51 * step, np.inf, 0.0], np.float32)
    x = image(5)
    made = narrow(Graph((x,), (("y", Binary("add", x, Const(values))),)), dtype)
    (const,) = (n.value for n in made.nodes if isinstance(n, Const))
    assert const.astype(np.float64).tolist() == [1, 1 + 2 * step, -1 - step, np.inf, 0]


def test_a_constant_beyond_float16_keeps_its_node_in_float32() -> None:
    x = image(4)
    scaled = Binary("mul", x, Const(np.full(4, 1e6, np.float32)))
    graph = Graph((x,), (("y", Binary("mul", scaled, Const(np.full(4, 1e-3, np.float32)))),))
    made = narrow(graph, "float16")
    wide = [n for n in made.nodes if isinstance(n, Binary) and n.dtype == "float32"]
    assert [n.args[1].value[0] for n in wide if isinstance(n.args[1], Const)] == [1e6]
    data = {"x": np.array([0.5, 1, 2, 3], np.float32) / 64}
    assert np.allclose(made.evaluate(data)["y"], graph.evaluate(data)["y"], rtol=2.0**-9)
    assert not any(n.dtype == "float32" for n in narrow(graph, "bfloat16").nodes if isinstance(n, Binary))


def test_integers_made_of_an_input_are_exact() -> None:
    x = image(3)
    made = narrow(Graph((x,), (("y", Cast(x, "int64")),)), "bfloat16")
    assert made.evaluate({"x": np.array([257, 1025, 100001], np.float32)})["y"].tolist() == [257, 1025, 100001]


@pytest.mark.parametrize("dtype", HALVES)
def test_convolutions_of_narrow_types_are_anchors_with_epilogues(dtype: str) -> None:
    plan = select(partition(narrow(simplify(small()), dtype)), SM80, max_rel_err=LIMITS["f16"])
    anchored = [g for g in plan.groups if g.anchor is not None]
    assert len(anchored) == 2
    assert all(g in plan.choices and len(g.nodes) > 1 and g.result.dtype == dtype for g in anchored)


@pytest.mark.parametrize("target", ["cpu/x86-64-v3", "cuda/sm_75"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_that_a_target_lacks_are_refused(target: str, dtype: str) -> None:
    lacking = dtype != "f32" if target.startswith("cpu") else dtype in ("tf32", "bf16")
    if not lacking:
        assert computing(parse_target(target), dtype) == parse_target(target)
        return
    with pytest.raises(UsageError, match=f"dtype {dtype} (is for GPUs|needs GPUs from sm_80 on)"):
        run_until("graph", network().SerializeToString(), target=target, dtype=dtype)


def test_tf32_is_a_setting_of_the_target() -> None:
    assert str(computing(SM80, "tf32")) == "cuda/sm_80,tf32=1"
    assert str(computing(SM80, "f32")) == "cuda/sm_80"


def test_the_command_line_takes_a_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    isolate(tmp_path, monkeypatch)
    path = tmp_path / "m.onnx"
    onnx.save(network(), str(path))
    refusal = complaint(capsys, "compile", path, "-o", tmp_path / "m.convc", "--dtype", "f16", code=2)
    assert "dtype f16 is for GPUs" in refusal
    flags = ("--target", "cuda/sm_80", "--stop-after", "simple")
    assert "float16[" in document(capsys, "compile", path, "--dtype", "f16", *flags)["text"]
    assert "float16[" not in document(capsys, "compile", path, *flags)["text"]


PROBLEMS = ["mb1_ic64ih14_oc64oh14_kh3ph1", "mb1_ic512ih7_oc512oh7_kh3ph1", "g32mb1_ic32ih9_oc32oh9_kh3ph1"]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("text", PROBLEMS)
def test_default_bounds_admit_algorithms_and_tight_ones_the_definition(text: str, dtype: str) -> None:
    p = Problem.parse(f"{text}_{dtype}")
    short = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    for limit in (LIMITS[short], 1e-4, 1e-9):
        found = offers(p, SM80, max_rel_err=limit)
        assert "fallback" in {o.choice.algorithm for o in found}
        assert all(o.error >= ROUNDING[dtype] for o in found)


def test_cpus_have_no_algorithm_for_narrow_types() -> None:
    rows = explain_problem(Problem.parse(f"{PROBLEMS[0]}_float16"), parse_target("cpu/x86-64-v3"))
    assert {r.refusal for r in rows} == {"CPUs compute float16 without algorithms"}
    assert len(rows) == len(algorithms("cpu"))


def deep() -> onnx.ModelProto:
    """Convolutions, one of them grouped and one without padding to lanes; pools, a long epilogue, a classifier."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "w0": weights(16, 3, 3, 3), "b0": weights(16), "w1": weights(32, 16, 3, 3), "w2": weights(32, 1, 3, 3),
        "w3": weights(20, 32, 1, 1), "w4": weights(10, 20), "b4": weights(10),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w0 b0", "c0", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c0", "r0"),
        node("Conv", "r0 w1", "c1", pads=[1, 1, 1, 1]),
        node("Sigmoid", "c1", "s1"),
        node("Mul", "c1 s1", "m1"),
        node("Conv", "m1 w2", "c2", pads=[1, 1, 1, 1], group=32),
        node("Add", "c2 m1", "a2"),
        node("MaxPool", "a2", "p2", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p2 w3", "c3"),
        node("GlobalAveragePool", "c3", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w4 b4", "y", transB=1),
    ]
    return model(nodes, {"x": (2, 3, 12, 12)}, constants)


@needs_shim
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_network_is_as_near_as_its_type_allows(dtype: str, tmp_path: Path) -> None:
    """Each of the eight values on the way is rounded once, and so are weights and input: about a unit of the type each,
    of values of size 1, which random signs let grow as the root of their number; sixteen roundings are 4 units."""
    source = deep().SerializeToString()
    x = np.random.default_rng(1).standard_normal((2, 3, 12, 12)).astype(np.float32)
    exact = import_onnx(source, shapes={}).evaluate({"x": x.astype(np.float64)})["y"]
    with on_shim():
        artifact = convc.compile(source, target="cuda/sm_80", dtype=dtype)
        artifact.save(tmp_path / "m.convc")
        module = convc.load(tmp_path / "m.convc")
        found = module.run({"x": x})["y"]
    stored = {"f16": "float16", "bf16": "bfloat16"}[dtype]
    assert artifact.manifest["options"]["dtype"] == dtype
    assert {p.type.dtype for p in (*module.inputs, *module.outputs)} == {"float32"} == {found.dtype.name}
    assert sum(str(layer.type.dtype) == stored for layer in artifact.layers) >= 7
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert ROUNDING[stored] / 8 < error < 4 * ROUNDING[stored]


@needs_shim
@pytest.mark.parametrize("dtype", HALVES)
def test_sums_and_epilogues_are_rounded_once(dtype: str) -> None:
    """1/step + 1 is no number of the type, and neither is the sum before it; what is left after the bias is."""
    big = int(2 / STEP[dtype])  # from here on only even numbers
    p = Problem.parse(f"mb1_ic8ih4_oc8oh4_kh1_{dtype}")
    x = Input("x", TensorType((1, 8, 4, 4), dtype))
    w = np.zeros((8, 8, 1, 1), KINDS[dtype])
    w[:, 0], w[:, 1] = 1, 1
    conv = Conv(x, Const(w), None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    bias = Const(np.full((1, 8, 1, 1), -big, KINDS[dtype]))
    plan = select(partition(Graph((x,), (("y", Binary("add", conv, bias)),))), SM80, max_rel_err=1.0)
    assert p.canonical == plan.groups[0].problem
    data = np.zeros((1, 8, 4, 4), KINDS[dtype])
    data[:, 0], data[:, 1] = big, 1
    with on_shim():
        found = _run(plan, data)
    assert (found.astype(np.float64) == 1).all()


def _run(plan: object, data: Array) -> Array:
    from convc.lower.objects import build
    from convc.plan import place
    from convc.plan.plan import Plan
    from convc.runtime.package import package

    assert isinstance(plan, Plan)
    placed = place(plan)
    artifact = package(build(placed, SM80), placed, SM80, b"")
    return convc.load(artifact).run({"x": data})["y"]


def test_matrices_are_narrow_too() -> None:
    x = image(4, 16)
    w = Const(np.eye(16, 8, dtype=np.float32))
    made = narrow(Graph((x,), (("y", MatMul(x, w)),)), "float16")
    assert [n.dtype for n in made.nodes if isinstance(n, MatMul)] == ["float16"]
