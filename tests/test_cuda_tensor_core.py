"""Do tensor cores compute convolutions? The emitted kernels run on the shim, every access checked: exact on whole
numbers, with every epilogue and tail, and within the bound, which is not vacuous, on others."""

from __future__ import annotations

import functools
import re
from dataclasses import replace

import numpy as np
import pytest
from cuda_shim import needs_shim, on_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx_models import model, node
from test_algorithms import aligned, problems
from test_cuda_algorithms import needs_nvcc, run_on_shim, usages

import convc
from convc.algorithm import Algorithm, Choice, Config
from convc.dtypes import LIMITS, ROUNDING
from convc.frontend import import_onnx
from convc.gpu import STATIC_SHARED
from convc.lower.packed import packed_shape
from convc.plan.epilogue import EPILOGUES
from convc.plan.offers import within
from convc.problem import Problem
from convc.schedules import _matrix, _mma, tensor_core
from convc.schedules.tensor_core import ON_CUDA
from convc.target import GpuTarget, parse_target
from convc.tune.workload import Data, Workload

DTYPES = ["float16", "bfloat16", "float32"]
SHORT = {"float16": "f16", "bfloat16": "bf16", "float32": "tf32"}


@functools.cache
def machine(name: str) -> GpuTarget:
    found = parse_target(name)
    assert isinstance(found, GpuTarget)
    return found


SM80, SM90 = machine("cuda/sm_80,tf32=1"), machine("cuda/sm_90,tf32=1")


def run(workload: Workload, choice: Choice, target: GpuTarget, data: Data) -> np.ndarray:
    """What the packed weights and then the kernel make of the data, in memory."""
    dtype = workload.problem.dtype
    packing, kernel = workload.packing(choice), workload.kernel(choice)
    place = workload.group.reads.index(packing.weight)
    reads = [aligned(r.shape, dtype) for r in data.reads]
    for to, given_ in zip(reads, data.reads, strict=True):
        to[...] = given_
    packed = aligned(packed_shape(packing), dtype)
    run_on_shim(packing, target, reads[place], packed)
    reads[place] = packed
    out = aligned(data.expected.shape, dtype)
    run_on_shim(kernel, target, *reads, out)
    return out


def check_exact(
    p: Problem, config: Config, target: GpuTarget, epilogue: str, algorithm: Algorithm = ON_CUDA
) -> None:
    """Whole numbers: all sums are exact, and the result is the nearest number of the type."""
    workload, choice = Workload(p, epilogue), algorithm.choice(config)
    data = workload.data(choice, exact=True)
    found, mask = run(workload, choice, target, data), data.tolerance >= 0
    if epilogue != "long":
        assert np.array_equal(found[mask], data.expected.astype(found.dtype)[mask]), f"{p} {choice}"
        return
    allowed = data.tolerance + ROUNDING[p.dtype] * np.abs(data.expected)
    assert (np.abs(found.astype(np.float64) - data.expected) <= allowed)[mask].all(), f"{p} {choice}"


@needs_shim
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.sampled_from(EPILOGUES))
def test_exact_on_whole_numbers(dtype: str, p: Problem, pick: int, epilogue: str) -> None:
    p = replace(p, dtype=dtype).canonical
    assume(ON_CUDA.refuses(p, SM80) is None)
    configs = ON_CUDA.space(p, SM80)
    check_exact(p, configs[pick % len(configs)], SM80, epilogue)


# Layouts, tails of pixels and channels, channels that fill no chunk, groups of 8 and 16, three axes, rows of matrices.
LAYERS = [
    ("mb1_ic64ih10_oc64oh10_kh3ph1_float16", {"wm": 2, "wn": 2, "tm": 2, "tn": 4, "bk": 1, "st": 3, "sk": 1}),
    ("mb1_ic64ih10_oc64oh10_kh3ph1_float16", {"wm": 2, "wn": 2, "tm": 2, "tn": 4, "bk": 1, "st": 3, "sk": 2}),
    ("mb2_ic40ih7_oc36oh4_kh3sh2ph1_bfloat16", {"wm": 2, "wn": 1, "tm": 1, "tn": 4, "bk": 2, "st": 4, "sk": 1}),
    ("mb1_ic20ih9_oc37oh9_kh3ph1_float16", {"wm": 1, "wn": 2, "tm": 4, "tn": 4, "bk": 1, "st": 3, "sk": 1}),
    ("mb1_ic20ih9_oc37oh9_kh3ph1_float16", {"xb": 1, "wm": 1, "wn": 2, "tm": 4, "tn": 4, "bk": 1, "st": 2, "sk": 1}),
    ("mb2_ic3ih20_oc40oh10_kh7sh2ph3_bfloat16", {"wm": 2, "wn": 2, "tm": 2, "tn": 2, "bk": 1, "st": 4, "sk": 2}),
    ("mb1_ic3ih9_oc40_kh7sh2_float16", {"xb": 1, "wm": 1, "wn": 2, "tm": 1, "tn": 2, "bk": 1, "st": 2, "sk": 1}),
    ("mb1_ic32ih8_oc24oh8_kh3ph1", {"wm": 2, "wn": 1, "tm": 2, "tn": 2, "bk": 2, "st": 4, "sk": 2}),
    ("g4mb1_ic32ih9_oc32oh9_kh3ph1_float16", {"wm": 4, "wn": 1, "tm": 2, "tn": 1, "bk": 1, "st": 3, "sk": 1}),
    ("g2mb1_ic32ih9_oc32oh9_kh3ph1_bfloat16", {"wm": 2, "wn": 2, "tm": 2, "tn": 1, "bk": 2, "st": 2, "sk": 1}),
    ("mb1_ic16id5ih6iw7_oc16_kd3kh3kw3pd1ph1pw1", {"wm": 2, "wn": 1, "tm": 2, "tn": 2, "bk": 1, "st": 3, "sk": 1}),
    ("matmul_ic72iw5_oc100_float16", {"wm": 1, "wn": 4, "tm": 1, "tn": 2, "bk": 1, "st": 3, "sk": 1}),
    ("matmul_ic70iw5_oc99_float16", {"wm": 2, "wn": 2, "tm": 1, "tn": 2, "bk": 1, "st": 2, "sk": 1}),
]  # fmt: skip


@needs_shim
@pytest.mark.parametrize(("text", "tile"), LAYERS)
def test_layers_with_a_residual(text: str, tile: dict[str, int]) -> None:
    p = Problem.parse(text).canonical
    block = _mma.chunk(p)
    blocks = (p.ic, p.oc) if p.kind == "matmul" else (block, block)
    config = {"xb": blocks[0], "yb": blocks[1], **tile}
    assert config in [dict(c) for c in tensor_core.configs(p, SM80, (config["xb"], config["yb"]))]
    check_exact(p, config, SM80, "residual")


@pytest.mark.parametrize("stages", [2, 3, 4, 6])
def test_a_step_has_one_barrier_and_its_copies_are_ahead(stages: int) -> None:
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    p = Problem.parse("mb1_ic64ih10_oc64oh10_kh3ph1_float16").canonical
    config = {"xb": 8, "yb": 8, "wm": 2, "wn": 2, "tm": 2, "tn": 4, "bk": 1, "st": stages, "sk": 1}
    text = source_of(lower(Workload(p).kernel(ON_CUDA.choice(config)), SM80), "k", SM80).text
    body = text[text.rindex("__global__") :]
    loops = re.split(r"\n  (?=for |#pragma)", body)
    (step,) = (loop for loop in loops if "cp_async_legacy" in loop and "convc_mma" in loop)
    step = step[: step.index("\n  }")]
    waits = re.findall(r"wait_group_async_wait_group_(\d)", step)
    assert waits == [str(stages - 2)]
    assert step.count("__syncthreads()") == 1 and step.index("__syncthreads()") < step.index("cp_async_legacy")
    assert body.count("__syncthreads()") == 2


@pytest.mark.parametrize(("rows", "conditional"), [(1, True), (64, False)])
def test_rows_that_fill_an_only_tile_are_not_read(rows: int, conditional: bool) -> None:
    """Of an image's dense layer, 31 of 32: on an H200 they cost three quarters of the time."""
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    p = Problem.parse(f"matmul_ic512iw{rows}_oc128_float16").canonical
    config = {"xb": 512, "yb": 128, "wm": 2, "wn": 2, "tm": 1, "tn": 2, "bk": 2, "st": 3, "sk": 1}
    text = source_of(lower(Workload(p).kernel(ON_CUDA.choice(config)), SM80), "k", SM80).text
    assert ("convc_copy(" in text) == conditional


@needs_shim
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_holds_and_is_not_vacuous(dtype: str) -> None:
    p = Problem.parse(f"mb1_ic64ih7_oc64oh7_kh3ph1_{dtype}").canonical
    workload, choice = Workload(p), ON_CUDA.choice(ON_CUDA.space(p, SM90)[0])
    data = workload.data(choice, exact=False)
    found, mask = run(workload, choice, SM90, data), data.tolerance >= 0
    used = (np.abs(found.astype(np.float64) - data.expected)[mask] / data.tolerance[mask]).max()
    assert 0.02 < used <= 1
    assert within(ON_CUDA, p, choice.config, LIMITS[SHORT[dtype]])


@needs_shim
def test_a_network_in_float16_runs_on_tensor_cores() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (64, 64, 3, 3), "v": (64, 64, 1, 1), "b": (64,)}
    scale = {"w": 24.0, "v": 8.0, "b": 1.0}
    constants = {n: (rng.standard_normal(s) / scale[n]).astype(np.float32) for n, s in shapes.items()}
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r v", "d"),
        node("Add", "d r", "y"),
    ]
    source = model(nodes, {"x": (1, 64, 28, 28)}, constants)
    x = rng.standard_normal((1, 64, 28, 28)).astype(np.float32)
    exact = import_onnx(source.SerializeToString(), shapes={}).evaluate({"x": x.astype(np.float64)})["y"]
    with on_shim():
        artifact = convc.compile(source.SerializeToString(), target="cuda/sm_80", dtype="f16")
        found = convc.load(artifact).run({"x": x})["y"]
    assert "tensor_core" in [layer.algorithm for layer in artifact.layers]
    # Input, weights, two results and the output are rounded once each.
    assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 3 * ROUNDING["float16"]


@pytest.mark.parametrize(
    ("text", "target", "reason"),
    [
        ("mb1_ic64ih9_oc64oh9_kh3ph1_float16", "cuda/sm_75", "older than sm_80"),
        ("mb1_ic64ih9_oc64oh9_kh3ph1", "cuda/sm_80", "may not be rounded to tf32"),
        ("mb1_ic64ih9_oc64oh9_kh3ph1_float64", "cuda/sm_80", "do not multiply float64"),
        ("transposed_mb1_ic64ih9_oc64_kh3_float16", "cuda/sm_80", "transposed"),
        ("g32mb1_ic32ih9_oc32oh9_kh3ph1_float16", "cuda/sm_80", "1 output channels a group"),
    ],
)
def test_what_it_cannot_do_is_said(text: str, target: str, reason: str) -> None:
    assert reason in (ON_CUDA.refuses(Problem.parse(text), machine(target)) or "")


LARGE = [
    "mb1_ic64ih56_oc64oh56_kh3ph1", "mb32_ic256ih14_oc256oh14_kh3ph1", "mb32_ic1024ih14_oc256oh14_kh1",
    "mb1_ic3ih224_oc64oh112_kh7sh2ph3", "g32mb8_ic1024ih14_oc1024oh14_kh3ph1", "matmul_ic2048iw32_oc1000",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [*DTYPES, "int8"])
@pytest.mark.parametrize("text", LARGE)
def test_spaces_keep_to_what_blocks_may_have(text: str, dtype: str) -> None:
    p = Problem.parse(f"{text}_{dtype}").canonical
    found = ON_CUDA.space(p, SM80)
    assert 8 <= len(found) <= 4 * _matrix.KEPT
    for config in found:
        threads = 32 * config["wm"] * config["wn"]
        assert tensor_core.shared_bytes(config) <= SM80.l1
        assert tensor_core.registers(p, config) * threads <= 64 << 10
    assert any(tensor_core.shared_bytes(c) > STATIC_SHARED for c in found) or p.icg < 8


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_spills_and_registers_are_as_reckoned(dtype: str) -> None:
    """nvcc's own report of each kind of tile, on both architectures. It takes up to a quarter more than a kernel needs
    where no further block would be resident: 168 for tf32's pieces of 4 x 4."""
    target = machine("cuda/sm_80,sm_90a,tf32=1")
    p = Problem.parse(f"mb32_ic256ih14_oc256oh14_kh3ph1_{dtype}").canonical
    block = _mma.chunk(p)
    seen: dict[tuple[int, int], Config] = {}
    for config in tensor_core.configs(p, target, (block, block)):
        if config["sk"] == 1 and config["st"] == 3:
            seen.setdefault((config["tm"], config["tn"]), config)
    assert len(seen) == len(tensor_core.TILES)
    for config in seen.values():
        for usage in usages(p, config, target, "residual", ON_CUDA):
            assert not usage.spill_stores and not usage.stack, config
            assert 0.75 < usage.registers / tensor_core.registers(p, config) < 1.3, (config, usage)


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("text", [LARGE[1], LARGE[3], "mb8_ic256ih56_oc512oh28_kh1sh2"])
def test_the_largest_tiles_do_not_spill(text: str, dtype: str) -> None:
    """Those with most accumulators, whatever warps, steps and parts are, with the epilogues that take most."""
    target = machine("cuda/sm_80,sm_90a,tf32=1")
    p = Problem.parse(f"{text}_{dtype}").canonical
    configs = list(tensor_core.configs(p, target, (_mma.chunk(p),) * 2))
    most = max(c["tm"] * c["tn"] for c in configs)
    largest = [c for c in configs if c["tm"] * c["tn"] == most]
    for i, config in enumerate(largest[:: max(1, len(largest) // 6)]):
        found = usages(p, config, target, ("residual", "long")[i % 2], ON_CUDA)
        assert not [u for u in found if u.spills or u.stack], config
