"""Is Winograd right in types of 2 bytes, with products on tensor cores and without? Its kernels run on the shim: exact
where the factors are, else within the bound, which says something; finite for large numbers; free of spills."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_shim import needs_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_cuda_algorithms import machine, needs_nvcc, usages
from test_cuda_tensor_core import run
from test_cuda_winograd import SAMPLE, problems

from convc.algorithm import Choice, Config, algorithms
from convc.dtypes import HALVES, LIMITS, ROUNDING
from convc.plan.epilogue import EPILOGUES
from convc.plan.offers import within
from convc.problem import Problem
from convc.target import GpuTarget
from convc.tune.workload import Data, Workload

WINOGRAD = algorithms("cuda")["winograd"]
SM80 = machine("cuda/sm_80")
FORMS = {"tensor cores": None, "three kernels": 0, "one kernel": 1}
CASES = [(dtype, form) for dtype in HALVES for form in FORMS]
OLDER = [("float16", "three kernels", "cuda/sm_75"), ("float16", "one kernel", "cuda/sm_75")]


def configs_of(p: Problem, target: GpuTarget, form: str) -> list[Config]:
    return [c for c in WINOGRAD.space(p, target) if c.get("fused") == FORMS[form]]


def choice_of(p: Problem, m: int, form: str, blocks: int = 8) -> Choice:
    """The first with tiles of m outputs along every axis, between layouts of these blocks."""
    for c in configs_of(p, SM80, form):
        if {c[f"m{a}"] for a in range(p.rank)} == {m} and c["xb"] == c["yb"] == blocks:
            return WINOGRAD.choice(c)
    raise AssertionError(f"no config with tiles of {m}")


def is_within(workload: Workload, choice: Choice, target: GpuTarget, data: Data) -> bool:
    asked = data.tolerance >= 0
    error = np.abs(run(workload, choice, target, data).astype(np.float64) - data.expected)[asked]
    return bool((error <= data.tolerance[asked]).all())


@needs_shim
@pytest.mark.parametrize(("dtype", "form", "label"), [*((*case, "cuda/sm_80") for case in CASES), *OLDER])
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.sampled_from(EPILOGUES))
def test_within_the_bound_on_drawn_problems(
    dtype: str, form: str, label: str, p: Problem, pick: int, epilogue: str
) -> None:
    p, target = replace(p, dtype=dtype), machine(label)
    assume(WINOGRAD.refuses(p, target) is None)
    configs = configs_of(p, target, form)
    assume(configs)
    choice, workload = WINOGRAD.choice(dict(configs[pick % len(configs)])), Workload(p, epilogue)
    assert is_within(workload, choice, target, workload.data(choice, exact=False)), f"{p} {choice}"


@needs_shim
@pytest.mark.parametrize(("dtype", "form"), CASES)
@pytest.mark.parametrize("blocks", [8, 1])
@pytest.mark.parametrize("epilogue", ["none", "residual"])
def test_exact_on_multiples_of_the_grain(dtype: str, form: str, blocks: int, epilogue: str) -> None:
    """F(2, 3): sums are exact, and the result is the nearest number of the type."""
    p = Problem.parse(f"mb2_ic9ih11_oc10_kh3ph1_{dtype}")
    choice, workload = choice_of(p, 2, form, blocks), Workload(p, epilogue)
    assert WINOGRAD.grain(p, choice.config) > 1
    data = workload.data(choice, exact=True)
    found, asked = run(workload, choice, SM80, data), data.tolerance >= 0
    assert np.array_equal(found[asked], data.expected.astype(found.dtype)[asked])


@pytest.mark.parametrize("form", FORMS)
def test_larger_tiles_have_no_grain(form: str) -> None:
    """11 bits do not hold their factors."""
    p = Problem.parse("mb1_ic32ih14_oc16_kh3ph1_float16")
    assert [WINOGRAD.grain(p, choice_of(p, m, form).config) for m in (4, 6)] == [0, 0]


@needs_shim
@pytest.mark.parametrize(("dtype", "form"), CASES)
@pytest.mark.parametrize("m", [2, 4, 6])
def test_the_bound_holds_and_says_something(m: int, dtype: str, form: str) -> None:
    """Of normal data the error relative to the largest |y| is below it and above a tenth of it."""
    p = Problem.parse(f"mb1_ic32ih14_oc16_kh3ph1_{dtype}")
    choice, workload = choice_of(p, m, form), Workload(p)
    data = workload.data(choice, exact=False)
    asked = data.tolerance >= 0
    error = np.abs(run(workload, choice, SM80, data).astype(np.float64) - data.expected)[asked].max()
    bound = WINOGRAD.error(p, choice.config) * ROUNDING[dtype]
    assert bound / 10 < error / np.abs(data.expected[asked]).max() < bound


@needs_shim
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m", [2, 4, 6])
def test_large_numbers_stay_finite(m: int, form: str) -> None:
    p = Problem.parse("mb1_ic16ih12_oc16_kh3ph1_float16")
    choice, workload = choice_of(p, m, form), Workload(p)
    data = workload.data(choice, exact=False)
    x, w = data.reads
    large = np.where(np.isnan(x), x, np.sign(x) * np.float16(1000))
    found = run(workload, choice, SM80, replace(data, reads=(large, w)))
    assert np.isfinite(found[data.tolerance >= 0]).all()


def test_only_who_allows_the_error_gets_it() -> None:
    """Beside what the type itself rounds F(2, 3) is off by three times as much: 2e-3 of the largest |y| allow it."""
    p = Problem.parse("mb32_ic256ih14_oc256_kh3ph1_float16")
    config = choice_of(p, 2, "tensor cores").config
    assert not within(WINOGRAD, p, config, LIMITS["f16"])
    assert within(WINOGRAD, p, config, 2e-3)
    assert not within(WINOGRAD, p, choice_of(p, 4, "tensor cores").config, 2e-3)


def test_older_gpus_have_it_without_tensor_cores_and_wider_types_are_refused() -> None:
    text = "mb1_ic64ih14_oc64_kh3ph1"
    p = Problem.parse(f"{text}_float16")
    assert WINOGRAD.refuses(p, machine("cuda/sm_75")) is None
    assert not configs_of(p, machine("cuda/sm_75"), "tensor cores")
    assert "float64" in (WINOGRAD.refuses(Problem.parse(f"{text}_float64"), SM80) or "")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["mb1_ic20ih13_oc36_kh3ph1", "mb2_ic64ih28_oc64_kh3ph1", "g2mb1_ic64iw90_oc64_kw5pw2"])
def test_its_memory_is_what_its_kernels_share(text: str, form: str) -> None:
    from convc.launch import ALIGNMENT
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    p = Problem.parse(f"{text}_float16")
    config = configs_of(p, SM80, form)[0]
    source = source_of(lower(Workload(p).kernel(WINOGRAD.choice(config)), SM80), "kernel", SM80)
    assert len(source.launches) == (1 if FORMS[form] else 3)
    assert 0 <= source.scratch - WINOGRAD.memory(p, config) < 2 * ALIGNMENT


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("target", ["cuda/sm_75", "cuda/sm_80", "cuda/sm_90a"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", SAMPLE)
def test_no_kernel_of_its_space_spills(text: str, form: str, target: str) -> None:
    """A sample from best to worst, with the epilogues that take most."""
    p, gpu = Problem.parse(f"{text}_float16"), machine(target)
    configs = configs_of(p, gpu, form)
    for i, config in enumerate(configs[:: max(1, len(configs) // 2)]):
        found = usages(p, config, gpu, ("residual", "long")[i % 2], WINOGRAD)
        assert not [u for u in found if u.spills or u.stack], config
