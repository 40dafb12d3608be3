"""Is Winograd right where its factors have 2 bytes? Its kernels run on the shim, products on tensor cores: exact where
the factors are, else within the bound, which says something; finite for large numbers; free of spills."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_shim import needs_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_cuda_algorithms import has_nvcc, machine
from test_cuda_tensor_core import run
from test_cuda_winograd import SAMPLE, problems

from convc.algorithm import Choice, algorithms
from convc.dtypes import HALVES, LIMITS, ROUNDING
from convc.plan.epilogue import EPILOGUES
from convc.plan.offers import within
from convc.problem import Problem
from convc.tune.workload import Data, Workload

WINOGRAD = algorithms("cuda")["winograd"]
SM80 = machine("cuda/sm_80")


def choice_of(p: Problem, m: int, blocks: int = 8) -> Choice:
    """The first with tiles of m outputs along every axis, between layouts of these blocks."""
    for c in WINOGRAD.space(p, SM80):
        if {c[f"m{a}"] for a in range(p.rank)} == {m} and c["xb"] == c["yb"] == blocks:
            return WINOGRAD.choice(c)
    raise AssertionError(f"no config with tiles of {m}")


def excess(workload: Workload, choice: Choice, data: Data) -> float:
    """The largest error, as a multiple of what is allowed."""
    asked = data.tolerance >= 0
    error = np.abs(run(workload, choice, SM80, data).astype(np.float64) - data.expected)[asked]
    return float((error / data.tolerance[asked]).max())


@needs_shim
@pytest.mark.parametrize("dtype", HALVES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.sampled_from(EPILOGUES))
def test_within_the_bound_on_drawn_problems(dtype: str, p: Problem, pick: int, epilogue: str) -> None:
    p = replace(p, dtype=dtype)
    assume(WINOGRAD.refuses(p, SM80) is None)
    configs = WINOGRAD.space(p, SM80)
    choice, workload = WINOGRAD.choice(dict(configs[pick % len(configs)])), Workload(p, epilogue)
    assert excess(workload, choice, workload.data(choice, exact=False)) <= 1, f"{p} {choice}"


@needs_shim
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("blocks", [8, 1])
@pytest.mark.parametrize("epilogue", ["none", "residual"])
def test_exact_on_multiples_of_the_grain(dtype: str, blocks: int, epilogue: str) -> None:
    """F(2, 3): sums are exact, and the result is the nearest number of the type."""
    p = Problem.parse(f"mb2_ic9ih11_oc10_kh3ph1_{dtype}")
    choice, workload = choice_of(p, 2, blocks), Workload(p, epilogue)
    assert WINOGRAD.grain(p, choice.config) > 1
    data = workload.data(choice, exact=True)
    found, asked = run(workload, choice, SM80, data), data.tolerance >= 0
    assert np.array_equal(found[asked], data.expected.astype(found.dtype)[asked])


def test_larger_tiles_have_no_grain() -> None:
    """11 bits do not hold their factors."""
    p = Problem.parse("mb1_ic32ih14_oc16_kh3ph1_float16")
    assert [WINOGRAD.grain(p, choice_of(p, m).config) for m in (4, 6)] == [0, 0]


@needs_shim
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("m", [2, 4, 6])
def test_the_bound_holds_and_says_something(m: int, dtype: str) -> None:
    """Of normal data the error relative to the largest |y| is below it and above a tenth of it."""
    p = Problem.parse(f"mb1_ic32ih14_oc16_kh3ph1_{dtype}")
    choice, workload = choice_of(p, m), Workload(p)
    data = workload.data(choice, exact=False)
    asked = data.tolerance >= 0
    error = np.abs(run(workload, choice, SM80, data).astype(np.float64) - data.expected)[asked].max()
    bound = WINOGRAD.error(p, choice.config) * ROUNDING[dtype]
    assert bound / 10 < error / np.abs(data.expected[asked]).max() < bound


@needs_shim
@pytest.mark.parametrize("m", [2, 4, 6])
def test_large_numbers_stay_finite(m: int) -> None:
    p = Problem.parse("mb1_ic16ih12_oc16_kh3ph1_float16")
    choice, workload = choice_of(p, m), Workload(p)
    data = workload.data(choice, exact=False)
    x, w = data.reads
    large = np.where(np.isnan(x), x, np.sign(x) * np.float16(1000))
    found = run(workload, choice, SM80, replace(data, reads=(large, w)))
    assert np.isfinite(found[data.tolerance >= 0]).all()


def test_only_who_allows_the_error_gets_it() -> None:
    """Beside what the type itself rounds F(2, 3) is off by three times as much: 2e-3 of the largest |y| allow it."""
    p = Problem.parse("mb32_ic256ih14_oc256_kh3ph1_float16")
    config = choice_of(p, 2).config
    assert not within(WINOGRAD, p, config, LIMITS["f16"])
    assert within(WINOGRAD, p, config, 2e-3)
    assert not within(WINOGRAD, p, choice_of(p, 4).config, 2e-3)


def test_older_gpus_and_wider_types_are_refused() -> None:
    text = "mb1_ic64ih14_oc64_kh3ph1"
    assert "older than sm_80" in (WINOGRAD.refuses(Problem.parse(f"{text}_float16"), machine("cuda/sm_75")) or "")
    assert "float64" in (WINOGRAD.refuses(Problem.parse(f"{text}_float64"), SM80) or "")


@pytest.mark.parametrize("text", ["mb1_ic20ih13_oc36_kh3ph1", "mb2_ic64ih28_oc64_kh3ph1", "g2mb1_ic64iw90_oc64_kw5pw2"])
def test_its_memory_is_what_its_kernels_share(text: str) -> None:
    from convc.launch import ALIGNMENT
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    p = Problem.parse(f"{text}_float16")
    config = WINOGRAD.space(p, SM80)[0]
    source = source_of(lower(Workload(p).kernel(WINOGRAD.choice(config)), SM80), "kernel", SM80)
    assert len(source.launches) == 3
    assert 0 <= source.scratch - WINOGRAD.memory(p, config) < 2 * ALIGNMENT


@pytest.mark.slow
@pytest.mark.skipif(not has_nvcc(), reason="nvcc is not installed")
@pytest.mark.parametrize("target", ["cuda/sm_80", "cuda/sm_90a"])
@pytest.mark.parametrize("text", SAMPLE)
def test_no_kernel_of_its_space_spills(text: str, target: str) -> None:
    """A sample from best to worst, with the epilogues that take most."""
    from convc.lower.kernel import lower
    from convc.lower.objects import compiled

    p, gpu = Problem.parse(f"{text}_float16"), machine(target)
    configs = WINOGRAD.space(p, gpu)
    for i, config in enumerate(configs[:: max(1, len(configs) // 4)]):
        kernel = Workload(p, ("residual", "long")[i % 2]).kernel(WINOGRAD.choice(config))
        for usages in compiled(lower(kernel, gpu), "kernel", gpu).usage.values():
            assert not [u for u in usages if u.spills or u.stack], config
