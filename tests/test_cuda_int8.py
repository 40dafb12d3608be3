"""Do tensor cores multiply 8-bit integers? The emitted kernels run on the shim, every access checked, and equal the
sums in int32 to the bit, with every epilogue and tail; so do quantized networks, whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from cuda_shim import needs_shim, on_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_models import model, node
from test_algorithms import aligned, problems
from test_cuda_algorithms import needs_nvcc, run_on_shim, usages
from test_cuda_tensor_core import SM80, machine

import convc
from convc.algorithm import Choice, Config, algorithms
from convc.frontend import import_onnx
from convc.ir import Binary, Cast, Const, Conv, Graph, Input, MatMul, Node, TensorType, Unary
from convc.lower.packed import packed_shape
from convc.passes.dequantized import sum_integers
from convc.passes.eight_bits import in_eight_bits
from convc.pipeline import run_until
from convc.plan.epilogue import EPILOGUES
from convc.plan.offers import explain_problem
from convc.problem import Problem
from convc.schedules import _mma, tensor_core
from convc.schedules.tensor_core import ON_CUDA
from convc.target import GpuTarget, parse_target
from convc.tune.workload import Data, Workload

DTYPES = ["int8", "uint8"]


def run(workload: Workload, choice: Choice, target: GpuTarget, data: Data) -> np.ndarray:
    """What the packed weights and then the kernel make of the data, in memory."""
    packing, kernel = workload.packing(choice), workload.kernel(choice)
    place = workload.group.reads.index(packing.weight)
    reads = []
    for given_ in data.reads:
        reads.append(aligned(given_.shape, given_.dtype.name))
        reads[-1][...] = given_
    packed = aligned(packed_shape(packing), "int8")
    run_on_shim(packing, target, reads[place], packed)
    reads[place] = packed
    out = aligned(data.expected.shape, workload.group.result.dtype)
    run_on_shim(kernel, target, *reads, out)
    return out


def check_exact(p: Problem, choice: Choice, epilogue: str) -> None:
    workload = Workload(p, epilogue)
    data = workload.data(choice, exact=True)
    found, mask = run(workload, choice, SM80, data), data.tolerance >= 0
    assert found.dtype == (p.dtype if epilogue == "long" else "int32")
    assert np.array_equal(found[mask], data.expected[mask]), f"{p} {choice}"


@needs_shim
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.sampled_from(EPILOGUES))
def test_exact_with_every_epilogue(dtype: str, p: Problem, pick: int, epilogue: str) -> None:
    p = replace(p, dtype=dtype).canonical
    assume(ON_CUDA.refuses(p, SM80) is None)
    configs = ON_CUDA.space(p, SM80)
    check_exact(p, ON_CUDA.choice(configs[pick % len(configs)]), epilogue)


# Layouts, tails of pixels and channels, channels that fill no chunk, groups of 8 and 16, three axes, rows of matrices.
LAYERS = [
    ("mb1_ic64ih10_oc64oh10_kh3ph1_int8", {"wm": 2, "wn": 2, "tm": 2, "tn": 4, "bk": 1, "st": 3, "sk": 1}),
    ("mb1_ic64ih10_oc64oh10_kh3ph1_uint8", {"wm": 2, "wn": 2, "tm": 2, "tn": 4, "bk": 1, "st": 2, "sk": 2}),
    ("mb2_ic48ih7_oc36oh4_kh3sh2ph1_uint8", {"wm": 2, "wn": 1, "tm": 1, "tn": 4, "bk": 2, "st": 2, "sk": 1}),
    ("mb1_ic20ih9_oc37oh9_kh3ph1_int8", {"wm": 1, "wn": 2, "tm": 4, "tn": 4, "bk": 1, "st": 2, "sk": 1}),
    ("g4mb1_ic64ih9_oc32oh9_kh3ph1dh1_uint8", {"wm": 4, "wn": 1, "tm": 2, "tn": 1, "bk": 1, "st": 2, "sk": 1}),
    ("mb1_ic16id5ih6iw7_oc16_kd3kh3kw3pd1ph1pw1_int8", {"wm": 2, "wn": 1, "tm": 2, "tn": 2, "bk": 1, "st": 3, "sk": 1}),
    ("matmul_ic144iw5_oc100_int8", {"wm": 1, "wn": 4, "tm": 1, "tn": 2, "bk": 1, "st": 3, "sk": 1}),
    ("matmul_ic70iw5_oc99_uint8", {"wm": 2, "wn": 2, "tm": 1, "tn": 2, "bk": 1, "st": 2, "sk": 1}),
]  # fmt: skip


@needs_shim
@pytest.mark.parametrize(("text", "tile"), LAYERS)
def test_layers_with_a_residual(text: str, tile: dict[str, int]) -> None:
    p = Problem.parse(text).canonical
    blocks = (p.ic, p.oc) if p.kind == "matmul" else (_mma.chunk(p), _mma.chunk(p))
    config: Config = {"xb": blocks[0], "yb": blocks[1], **tile}
    assert config in [dict(c) for c in tensor_core.configs(p, SM80, blocks)]
    check_exact(p, ON_CUDA.choice(config), "residual")


@needs_shim
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sk", [1, 2])
def test_extremes_do_not_saturate(dtype: str, sk: int) -> None:
    p = Problem.parse(f"mb1_ic64ih4_oc16oh4_kh3ph1_{dtype}").canonical
    tile = {"wm": 2, "wn": 1, "tm": 1, "tn": 2, "bk": 1, "st": 2, "sk": sk}
    choice, workload = ON_CUDA.choice({"xb": 16, "yb": 16, **tile}), Workload(p)
    data = workload.data(choice, exact=True)
    x, w = data.reads
    x[...] = 255 if dtype == "uint8" else -128
    w[:8], w[8:] = -128, 127
    assert abs(run(workload, choice, SM80, data)).max() == 64 * 9 * int(abs(int(x.max()))) * 128


@needs_shim
@pytest.mark.parametrize("text", ["g6mb1_ic6ih7_oc6_kh3ph1", "mb2_ic5ih6_oc3_kh3sh2", "transposed_mb1_ic3ih4_oc5_kh3"])
def test_what_tensor_cores_refuse_another_algorithm_takes(text: str) -> None:
    p = Problem.parse(f"{text}_uint8").canonical
    taken = [a for a in algorithms("cuda").values() if a.refuses(p, SM80) is None]
    assert [a.name for a in taken] == ["fallback"]
    for config in taken[0].space(p, SM80)[:2]:
        check_exact(p, taken[0].choice(config), "long")


def quantized_conv(dtype: str, zero: int, w: np.ndarray) -> tuple[Graph, np.ndarray]:
    """Two convolutions of q - zero in int32, and values of all of q's range."""
    q = Input("q", TensorType((1, 4, 8, 8), dtype))
    wide = Cast(q, "int32")
    x = Binary("sub", wide, Const(np.array(zero, np.int32))) if zero else wide
    ones, pad = (1, 1), ((1, 1), (1, 1))
    conv = Conv(x, Const(w.astype(np.int32)), Const(np.arange(2, dtype=np.int32)), ones, pad, ones, 1)
    graph = Graph((q,), (("y", conv), ("z", MatMul(x, Const(np.full((8, 3), -5, np.int32))))))
    span = np.iinfo(dtype)
    return graph, np.arange(span.min, span.max + 1).astype(dtype).reshape(1, 4, 8, 8)


@pytest.mark.parametrize(
    ("dtype", "zero", "most", "found"),
    [
        ("int8", 0, 127, "int8"), ("uint8", 0, -128, "uint8"), ("uint8", 128, 127, "int8"),
        ("uint8", 114, 127, "uint8"), ("int8", -1, -128, "int8"), ("uint8", 0, 128, "int32"),
        ("uint8", 256, 127, "int32"), ("uint8", 114, -129, "int32"),
    ],
)  # fmt: skip
def test_what_fits_8_bits_is_handed_over(dtype: str, zero: int, most: int, found: str) -> None:
    graph, q = quantized_conv(dtype, zero, np.linspace(0, most, 2 * 4 * 9).astype(int).reshape(2, 4, 3, 3))
    passed = in_eight_bits(graph)
    (conv,) = (node for node in passed.nodes if isinstance(node, Conv))
    (product,) = (node for node in passed.nodes if isinstance(node, MatMul))
    assert conv.x.dtype == found and conv.dtype == product.dtype == "int32"
    assert product.a.dtype == (dtype if zero < 128 else found)
    assert zero not in (0, 128) or found == "int32" or product.a is conv.x
    before, after = graph.evaluate({"q": q}), passed.evaluate({"q": q})
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("target", "dtype"), [("cuda/sm_75", "int32"), ("cuda/sm_80", "uint8"), ("native", "int32")])
def test_only_gpus_that_multiply_8_bits_get_them(target: str, dtype: str) -> None:
    graph = run_until("simple", qlinear_model(0).SerializeToString(), target=target)
    assert {node.args[0].dtype for node in graph.nodes if isinstance(node, Conv | MatMul)} == {dtype}


@pytest.mark.parametrize(
    ("text", "target", "reason"),
    [
        ("mb1_ic64ih9_oc64oh9_kh3ph1_int8", "cuda/sm_75", "older than sm_80"),
        ("mb1_ic64ih9_oc64oh9_kh3ph1_int32", "cuda/sm_80", "do not multiply int32"),
        ("transposed_mb1_ic64ih9_oc64_kh3_uint8", "cuda/sm_80", "transposed"),
        ("g32mb1_ic32ih9_oc32oh9_kh3ph1_int8", "cuda/sm_80", "1 output channels a group"),
    ],
)
def test_what_it_cannot_do_is_said(text: str, target: str, reason: str) -> None:
    p = Problem.parse(text)
    assert str(p).endswith(p.dtype) and Problem.of(p.node()) == p
    assert reason in (ON_CUDA.refuses(p, machine(target)) or "")


def test_cpus_compute_8_bits_without_algorithms() -> None:
    p, target = Problem.parse("mb1_ic8ih4_oc8oh4_kh1_uint8"), parse_target("native")
    assert {row.refusal for row in explain_problem(p, target)} == {"CPUs compute uint8 without algorithms"}


def qlinear_model(zero: int, *, wide: bool = False) -> onnx.ModelProto:
    """Two convolutions and a matrix product in QOperator form, activations in uint8 around `zero`; the first weights of
    9 bits (`wide`)."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return rng.integers(-128, 128, shape).astype(np.int8)

    scales = {name: np.float32(v) for name, v in (("sx", 0.02), ("sc", 0.11), ("sd", 0.23), ("sy", 0.31), ("sw", 0.01))}
    constants = {
        **scales, "z": np.uint8(zero), "zw": np.int8(0), "w": weights(32, 16, 3, 3), "v": weights(64, 32, 1, 1),
        "sv": rng.uniform(0.005, 0.02, 64).astype(np.float32), "zv": np.zeros(64, np.int8), "m": weights(64, 48),
        "b": rng.integers(-3000, 3000, 32).astype(np.int32),
    }  # fmt: skip
    if wide:
        constants |= {"w": constants["w"].view(np.uint8), "zu": np.uint8(100)}
    nodes = [
        node("QuantizeLinear", "x sx z", "q"),
        node("QLinearConv", f"q sx z w sw {'zu' if wide else 'zw'} sc z b", "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("QLinearConv", "c sc z v sv zv sd z", "d"),
        node("Transpose", "d", "t", perm=[0, 2, 3, 1]),
        node("QLinearMatMul", "t sd z m sw zw sy z", "y"),
    ]
    return model(nodes, {"x": (1, 16, 9, 9)}, constants, kinds={"y": TensorProto.UINT8})


def compiled(source: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Its output on the shim, and the algorithms of its layers."""
    with on_shim():
        artifact = convc.compile(source.SerializeToString(), target="cuda/sm_80")
        found = convc.load(artifact).run({"x": x})["y"]
    return found, [layer.algorithm for layer in artifact.layers if layer.algorithm]


@needs_shim
@pytest.mark.parametrize(("zero", "wide"), [(0, False), (128, False), (114, False), (114, True)])
def test_a_quantized_network_is_equal_to_the_bit(zero: int, wide: bool) -> None:
    source, rng = qlinear_model(zero, wide=wide), np.random.default_rng(1)
    x = rng.standard_normal((1, 16, 9, 9)).astype(np.float32)
    found, algorithms = compiled(source, x)
    expected = import_onnx(source.SerializeToString(), shapes={}).evaluate({"x": x})["y"]
    assert found.dtype == np.uint8 and len(np.unique(expected)) > 30
    assert np.array_equal(found, expected)
    assert algorithms == ["tensor_core"] * (2 if wide else 3)


def qdq_model(zero: int) -> onnx.ModelProto:
    """Two convolutions and a Gemm of dequantized tensors, weights by channel, activations of x around `zero`."""
    rng = np.random.default_rng(2)

    def weights(*shape: int) -> np.ndarray:
        return rng.integers(-128, 128, shape).astype(np.int8)

    scales = {name: np.float32(v) for name, v in (("sx", 0.02), ("sc", 0.11), ("sd", 0.23), ("sy", 2.0), ("sb", 2e-4))}
    constants = {
        **scales, "z": np.uint8(zero), "zc": np.uint8(0), "w": weights(32, 16, 3, 3), "v": weights(16, 32, 1, 1),
        "m": weights(24, 16 * 25), "sw": rng.uniform(0.005, 0.02, 32).astype(np.float32), "zw": np.zeros(32, np.int8),
        "sv": np.float32(0.01), "zv": np.int8(0), "sm": rng.uniform(0.005, 0.02, 24).astype(np.float32),
        "zm": np.zeros(24, np.int8), "b": rng.integers(-30000, 30000, 32).astype(np.int32), "zb": np.int32(0),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x sx z", "qx"), node("DequantizeLinear", "qx sx z", "dx"),
        node("DequantizeLinear", "w sw zw", "dw", axis=0), node("DequantizeLinear", "b sb zb", "db"),
        node("Conv", "dx dw db", "c", pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", "c", "r"),
        node("QuantizeLinear", "r sc zc", "qc"), node("DequantizeLinear", "qc sc zc", "dc"),
        node("DequantizeLinear", "v sv zv", "dv"), node("Conv", "dc dv", "d"), node("Flatten", "d", "f"),
        node("QuantizeLinear", "f sd z", "qf"), node("DequantizeLinear", "qf sd z", "df"),
        node("DequantizeLinear", "m sm zm", "dm", axis=0), node("Gemm", "df dm", "e", transB=1),
        node("QuantizeLinear", "e sy z", "y"),
    ]  # fmt: skip
    return model(nodes, {"x": (1, 16, 9, 9)}, constants, kinds={"y": TensorProto.UINT8})


@needs_shim
@pytest.mark.parametrize("zero", [128, 114])
def test_dequantized_tensors_are_multiplied_as_integers(zero: int) -> None:
    """The kernels equal the graph that they are of to the bit; that graph rounds less than the model in float32."""
    source, rng = qdq_model(zero), np.random.default_rng(1)
    x = rng.standard_normal((1, 16, 9, 9)).astype(np.float32)
    found, algorithms = compiled(source, x)
    graph = run_until("simple", source.SerializeToString(), target="cuda/sm_80")
    assert {n.dtype for n in graph.nodes if isinstance(n, Conv | MatMul)} == {"int32"}
    assert "tensor_core" in algorithms and np.array_equal(found, graph.evaluate({"x": x})["y"])
    floats = import_onnx(source.SerializeToString(), shapes={}).evaluate({"x": x})["y"]
    assert np.abs(found.astype(int) - floats).max() <= 1 and (found != floats).mean() < 0.1
    assert len(np.unique(found)) > 12


def test_only_what_was_quantized_is_multiplied_as_integers() -> None:
    x = Binary("mul", Cast(Input("q", TensorType((2, 16), "int8")), "float32"), Const(np.array(0.5, np.float32)))
    w = np.arange(16 * 8, dtype=np.int8).reshape(16, 8)

    def product(a: Node, w: np.ndarray, scale: np.ndarray) -> str:
        b = Binary("mul", Cast(Const(w), "float32"), Const(scale.astype(np.float32)))
        ((_, y),) = sum_integers(Graph((), (("y", MatMul(a, b)),))).outputs
        return "float32" if isinstance(y, MatMul) else y.args[0].args[0].dtype

    assert product(x, w, np.ones(8)) == product(x, w, np.array(2.0)) == "int32"
    assert product(x, w, np.ones((16, 1))) == "float32"  # a scale for each input
    assert product(x, w.astype(np.int32) * 2, np.ones(8)) == "float32"
    assert product(x, w[:, :4], np.ones(4)) == "float32"
    assert product(Unary("relu", x), w, np.ones(8)) == "float32"


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_spills_and_registers_are_as_reckoned(dtype: str) -> None:
    """nvcc's own report of each kind of tile that ends in 8 bits again, on both architectures."""
    target = machine("cuda/sm_80,sm_90a")
    p = Problem.parse(f"mb32_ic256ih14_oc256oh14_kh3ph1_{dtype}").canonical
    seen: dict[tuple[int, int], Config] = {}
    for config in tensor_core.configs(p, target, (16, 16)):
        if config["sk"] == 1 and config["st"] == 3:
            seen.setdefault((config["tm"], config["tn"]), config)
    assert len(seen) == len(tensor_core.TILES)
    for config in seen.values():
        for usage in usages(p, config, target, "long", ON_CUDA):
            assert not usage.spill_stores and not usage.stack, config
            assert 0.65 < usage.registers / tensor_core.registers(p, config) < 1.3, (config, usage)
