"""Do warpgroups compute convolutions? The emitted kernels run on the shim, every access checked: exact on whole
numbers, with every epilogue and tail, and within the bound, which is not vacuous, on others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import test_cuda_int8 as integers
from cuda_shim import needs_shim, on_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx_models import model, node
from test_algorithms import problems
from test_cuda_algorithms import needs_nvcc, usages
from test_cuda_tensor_core import LARGE, check_exact, machine, run

import convc
from convc.algorithm import Algorithm, Config
from convc.dtypes import LIMITS, ROUNDING
from convc.frontend import import_onnx
from convc.plan.epilogue import EPILOGUES
from convc.plan.offers import within
from convc.problem import Problem
from convc.schedules import _mma, warpgroup
from convc.schedules.warpgroup import ON_CUDA
from convc.tune.workload import Workload

HALVES, BYTES = ["float16", "bfloat16"], ["int8", "uint8"]
TARGET = machine("cuda/sm_90a")


def check(p: Problem, config: Config, epilogue: str, algorithm: Algorithm = ON_CUDA) -> None:
    if p.dtype in HALVES:
        check_exact(p, config, TARGET, epilogue, algorithm)
        return
    workload, choice = Workload(p, epilogue), algorithm.choice(config)
    data = workload.data(choice, exact=True)
    found, mask = integers.run(workload, choice, TARGET, data), data.tolerance >= 0
    assert np.array_equal(found[mask], data.expected[mask]), f"{p} {choice}"


@needs_shim
@pytest.mark.parametrize("dtype", HALVES + BYTES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), wide=st.integers(1, 40), pick=st.integers(0, 1000), epilogue=st.sampled_from(EPILOGUES))
def test_exact_on_whole_numbers(dtype: str, p: Problem, wide: int, pick: int, epilogue: str) -> None:
    """Channels of groups in whole accesses, as warpgroups want them."""
    p = replace(p, dtype=dtype)
    each = wide if p.g == 1 and dtype in HALVES else p.g * _mma.chunk(p) * (wide % 3 + 1)
    p = replace(p, ic=each, oc=max(p.oc, p.g * 8)).canonical if p.kind == "conv" else p.canonical
    assume(ON_CUDA.refuses(p, TARGET) is None)
    configs = ON_CUDA.space(p, TARGET)
    check(p, configs[pick % len(configs)], epilogue)


# Both counts of warpgroups, several products a warp, parts, tails of pixels and channels, strides and dilation, groups,
# three axes, rows of matrices.
LAYERS = [
    ("mb1_ic64ih10_oc64oh10_kh3ph1_float16", {"wm": 8, "tm": 1, "tn": 8, "bk": 2, "st": 3, "sk": 1}),
    ("mb1_ic64ih10_oc64oh10_kh3ph1_float16", {"wm": 4, "tm": 2, "tn": 8, "bk": 1, "st": 4, "sk": 3}),
    ("mb2_ic40ih11_oc36oh6_kh3sh2ph1_bfloat16", {"wm": 4, "tm": 1, "tn": 6, "bk": 1, "st": 2, "sk": 1}),
    ("mb1_ic32ih12_oc64oh12_kh3ph2dh1_float16", {"wm": 4, "tm": 1, "tn": 8, "bk": 1, "st": 3, "sk": 1}),
    ("g2mb1_ic64ih9_oc64oh9_kh3ph1_bfloat16", {"wm": 4, "tm": 1, "tn": 4, "bk": 2, "st": 2, "sk": 1}),
    ("mb1_ic16id5ih6iw7_oc32_kd3kh3kw3pd1ph1pw1_float16", {"wm": 4, "tm": 1, "tn": 4, "bk": 1, "st": 3, "sk": 1}),
    ("mb2_ic3ih20_oc40oh10_kh7sh2ph3_float16", {"wm": 4, "tm": 2, "tn": 6, "bk": 1, "st": 4, "sk": 2}),
    ("matmul_ic72iw50_oc104_float16", {"wm": 4, "tm": 1, "tn": 8, "bk": 1, "st": 3, "sk": 1}),
    ("mb1_ic64ih10_oc37oh10_kh3ph1_int8", {"wm": 8, "tm": 1, "tn": 6, "bk": 2, "st": 3, "sk": 1}),
    ("mb1_ic80ih8_oc64oh8_kh3ph1_uint8", {"wm": 4, "tm": 1, "tn": 8, "bk": 1, "st": 2, "sk": 2}),
]  # fmt: skip


@needs_shim
@pytest.mark.parametrize(("text", "tile"), LAYERS)
def test_layers_with_a_residual(text: str, tile: dict[str, int]) -> None:
    p = Problem.parse(text).canonical
    block = _mma.chunk(p)
    blocks = (p.ic, p.oc) if p.kind == "matmul" else (block, block)
    config = {"xb": blocks[0], "yb": blocks[1], "wn": 1, **tile}
    assert config in [dict(c) for c in warpgroup.configs(p, TARGET, blocks)]
    check(p, config, "residual")


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_copies_run_beside_the_products_of_a_step(stages: int) -> None:
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    p = Problem.parse("mb1_ic64ih10_oc64oh10_kh3ph1_float16").canonical
    config = {"xb": 8, "yb": 8, "wm": 4, "wn": 1, "tm": 2, "tn": 8, "bk": 1, "st": stages, "sk": 1}
    text = source_of(lower(Workload(p).kernel(ON_CUDA.choice(config)), TARGET), "k", TARGET).text
    body = text[text.rindex("__global__") :]
    (step,) = (loop for loop in re.split(r"\n  (?=for |#pragma)", body) if "convc_copy(" in loop and "_add_" in loop)
    names = "wait_group_async|convc_wgmma_order|__syncthreads|convc_copy|_start|_add_|wgmma_commit|_finish_"
    order = [found[0] for found in re.finditer(names, step[: step.index("\n  }")])]
    wait, fence, barrier, start, add, commit, copy, finish = (
        "wait_group_async", "convc_wgmma_order", "__syncthreads", "_start", "_add_", "wgmma_commit", "convc_copy",
        "_finish_",
    )  # fmt: skip
    assert order == [wait, fence, barrier, start, *[add] * 4, commit, copy, finish, finish]


@needs_shim
@pytest.mark.parametrize("dtype", HALVES)
def test_the_bound_holds_and_is_not_vacuous(dtype: str) -> None:
    p = Problem.parse(f"mb1_ic64ih7_oc64oh7_kh3ph1_{dtype}").canonical
    workload, choice = Workload(p), ON_CUDA.choice(ON_CUDA.space(p, TARGET)[0])
    data = workload.data(choice, exact=False)
    found, mask = run(workload, choice, TARGET, data), data.tolerance >= 0
    used = (np.abs(found.astype(np.float64) - data.expected)[mask] / data.tolerance[mask]).max()
    assert 0.02 < used <= 1
    assert within(ON_CUDA, p, choice.config, LIMITS[{"float16": "f16", "bfloat16": "bf16"}[dtype]])


@needs_shim
def test_a_network_in_float16_runs_on_warpgroups() -> None:
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((256, 64, 1, 1)) / 8).astype(np.float32)
    source = model([node("Conv", "x w", "c"), node("Relu", "c", "y")], {"x": (2, 64, 56, 56)}, {"w": w})
    x = rng.standard_normal((2, 64, 56, 56)).astype(np.float32)
    exact = import_onnx(source.SerializeToString(), shapes={}).evaluate({"x": x.astype(np.float64)})["y"]
    with on_shim(capability=(9, 0)):
        artifact = convc.compile(source.SerializeToString(), target="cuda/sm_90a", dtype="f16")
        found = convc.load(artifact).run({"x": x})["y"]
    assert "warpgroup" in [layer.algorithm for layer in artifact.layers]
    assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 3 * ROUNDING["float16"]


@pytest.mark.parametrize(
    ("text", "target", "reason"),
    [
        ("mb1_ic64ih9_oc64oh9_kh3ph1_float16", "cuda/sm_90", "not sm_90a alone"),
        ("mb1_ic64ih9_oc64oh9_kh3ph1_float16", "cuda/sm_80,sm_90a", "not sm_90a alone"),
        ("mb1_ic64ih9_oc64oh9_kh3ph1", "cuda/sm_90a,tf32=1", "do not multiply float32"),
        ("transposed_mb1_ic64ih9_oc64_kh3_float16", "cuda/sm_90a", "transposed"),
        ("g2mb1_ic6ih32_oc64_kh7_float16", "cuda/sm_90a", "do not fill accesses"),
    ],
)
def test_what_it_cannot_do_is_said(text: str, target: str, reason: str) -> None:
    assert reason in (ON_CUDA.refuses(Problem.parse(text).canonical, machine(target)) or "")


def _largest(p: Problem) -> Iterator[Config]:
    """A config of each tile and count of warps, the steps as deep as they can be."""
    seen = set()
    for config in warpgroup.configs(p, TARGET, (_mma.chunk(p),) * 2):
        key = tuple(config[name] for name in ("wm", "tm", "tn"))
        if config["sk"] == 1 and key not in seen:
            seen.add(key)
            yield config


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize(("text", "dtype"), [(LARGE[1], "float16"), ("mb8_ic256ih56_oc512oh28_kh1sh2", "uint8")])
def test_nothing_spills_and_registers_are_as_reckoned(text: str, dtype: str) -> None:
    p = Problem.parse(f"{text}_{dtype}").canonical
    for i, config in enumerate(_largest(p)):
        for usage in usages(p, config, TARGET, ("residual", "long")[i % 2], ON_CUDA):
            assert not usage.spills and not usage.stack, (config, usage)
            assert 0.6 < usage.registers / warpgroup.registers(p, config) < 1.3, (config, usage)
