"""Do windows on warpgroups compute convolutions? The emitted kernels run on the shim, every access checked: exact on
whole numbers, with every epilogue, padding and tail, and x is copied once for all taps."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from cuda_shim import needs_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_algorithms import problems
from test_cuda_algorithms import needs_nvcc, usages
from test_cuda_tensor_core import machine, run
from test_cuda_warpgroup import BYTES, HALVES, TARGET, check

from convc.algorithm import Config
from convc.plan.epilogue import EPILOGUES
from convc.problem import Problem
from convc.schedules import _mma, im2win_tensor
from convc.schedules.im2win_tensor import ON_CUDA
from convc.tune.workload import Workload


@needs_shim
@pytest.mark.parametrize("dtype", HALVES + BYTES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), wide=st.integers(1, 3), pick=st.integers(0, 1000), epilogue=st.sampled_from(EPILOGUES))
def test_exact_on_whole_numbers(dtype: str, p: Problem, wide: int, pick: int, epilogue: str) -> None:
    """Channels in whole steps and a stride of 1, as windows want them."""
    assume(p.kind == "conv" and p.taps > 1)
    p = replace(p, dtype=dtype, g=1, ic=4 * _mma.chunk(replace(p, dtype=dtype)) * wide, oc=max(p.oc, 8))
    assume(all(s == 1 for s in p.s))
    assume(ON_CUDA.refuses(p := p.canonical, TARGET) is None)
    configs = ON_CUDA.space(p, TARGET)
    check(p, configs[pick % len(configs)], epilogue, ON_CUDA)


# Both counts of warpgroups, several products a warp, steps of one and two groups, images that share a tile, one to
# three axes, dilation, no padding, channels of one step and of several.
LAYERS = [
    ("mb2_ic64ih10_oc64oh10_kh3ph1_float16", {"wm": 8, "tm": 1, "tn": 8, "bk": 2, "st": 3}),
    ("mb3_ic96ih9iw7_oc37oh9ow7_kh3ph1_bfloat16", {"wm": 4, "tm": 2, "tn": 6, "bk": 1, "st": 4}),
    ("mb1_ic64ih12_oc64oh12_kh3ph2dh1_float16", {"wm": 4, "tm": 1, "tn": 8, "bk": 2, "st": 2}),
    ("mb2_ic32ih12iw20_oc40oh10ow18_kh3_float16", {"wm": 4, "tm": 2, "tn": 6, "bk": 1, "st": 3}),
    ("mb2_ic64iw50_oc40ow50_kw5pw2_float16", {"wm": 4, "tm": 1, "tn": 6, "bk": 1, "st": 3}),
    ("mb1_ic32id5ih6iw7_oc32_kd3kh3kw3pd1ph1pw1_float16", {"wm": 4, "tm": 1, "tn": 4, "bk": 1, "st": 4}),
    ("mb1_ic64ih9_oc36oh9_kh3ph1_uint8", {"wm": 4, "tm": 1, "tn": 6, "bk": 1, "st": 3}),
]  # fmt: skip


@needs_shim
@pytest.mark.parametrize(("text", "tile"), LAYERS)
def test_layers_with_a_residual(text: str, tile: dict[str, int]) -> None:
    p = Problem.parse(text).canonical
    block = _mma.chunk(p)
    config = {"xb": block, "yb": block, "wn": 1, "sk": 1, **tile}
    assert config in [dict(c) for c in im2win_tensor.configs(p, TARGET, (block, block))]
    check(p, config, "residual", ON_CUDA)


def test_a_window_is_copied_once_and_steps_copy_weights() -> None:
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    p = Problem.parse("mb2_ic64ih10_oc64oh10_kh3ph1_float16").canonical
    config = {"xb": 8, "yb": 8, "wm": 4, "wn": 1, "tm": 1, "tn": 8, "bk": 2, "sk": 1, "st": 3}
    text = source_of(lower(Workload(p).kernel(ON_CUDA.choice(config)), TARGET), "k", TARGET).text
    body = text[text.rindex("__global__") :]
    found = [step[0] for step in re.finditer(r"convc_copy|ptx_cp_async_legacy|__syncthreads|_add_", body)]
    assert found.count("convc_copy") == 1 and found[0] == "convc_copy"
    steps = "".join({"ptx_cp_async_legacy": "w", "__syncthreads": "|", "_add_": "+"}.get(step, "x") for step in found)
    assert steps == "xw|++++w|++++"


@needs_shim
def test_the_bound_holds() -> None:
    p = Problem.parse("mb2_ic64ih7_oc64oh7_kh3ph1_float16").canonical
    workload, choice = Workload(p), ON_CUDA.choice(ON_CUDA.space(p, TARGET)[0])
    data = workload.data(choice, exact=False)
    found, mask = run(workload, choice, TARGET, data), data.tolerance >= 0
    assert (np.abs(found.astype(np.float64) - data.expected)[mask] / data.tolerance[mask]).max() <= 1


@pytest.mark.parametrize(
    ("text", "target", "reason"),
    [
        ("mb1_ic64ih9_oc64oh9_kh3ph1_float16", "cuda/sm_90", "not sm_90a alone"),
        ("mb1_ic64ih9_oc64oh9_kh3ph1", "cuda/sm_90a", "do not multiply float32"),
        ("mb1_ic64ih9_oc64oh9_kh1_float16", "cuda/sm_90a", "one tap"),
        ("mb1_ic64ih9_oc64oh5_kh3sh2ph1_float16", "cuda/sm_90a", "the stride is not 1"),
        ("mb1_ic64ih9_oc64oh11_kh3ph1_float16", "cuda/sm_90a", "more padding behind"),
        ("mb1_ic64ih9_oc64oh12iw9ow9_kh2kw1ph2_float16", "cuda/sm_90a", "than its taps reach"),
        ("g2mb1_ic64ih9_oc64oh9_kh3ph1_float16", "cuda/sm_90a", "one group"),
        ("mb1_ic20ih9_oc64oh9_kh3ph1_float16", "cuda/sm_90a", "do not fill accesses"),
        ("mb1_ic4096ih9_oc64oh9_kh3ph1_float16", "cuda/sm_90a", "no window fits"),
    ],
)
def test_what_it_cannot_do_is_said(text: str, target: str, reason: str) -> None:
    assert reason in (ON_CUDA.refuses(Problem.parse(text).canonical, machine(target)) or "")


@pytest.mark.slow
@needs_nvcc
def test_nothing_spills_and_registers_are_as_reckoned() -> None:
    p = Problem.parse("mb8_ic64ih56_oc192oh56_kh5ph2_float16").canonical
    seen: dict[tuple[int, ...], Config] = {}
    for config in im2win_tensor.configs(p, TARGET, (8, 8)):
        seen.setdefault(tuple(config[name] for name in ("wm", "tm", "tn")), config)
    for i, config in enumerate(seen.values()):
        for usage in usages(p, config, TARGET, ("residual", "long")[i % 2], ON_CUDA):
            assert not usage.spills and not usage.stack, (config, usage)
            assert 0.6 < usage.registers / im2win_tensor.registers(config) < 1.3, (config, usage)
