"""Is Winograd on GPUs right, in three kernels and in one: every tile, border, tail, stride, group and epilogue? Does
its bound say something, its memory hold what it says, do its kernels fit the registers?"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from cuda_shim import needs_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_algorithms import aligned, check
from test_cuda_algorithms import machine, needs_nvcc, run_on_shim, usages

from convc.algorithm import Config, algorithms
from convc.lower.packed import packed_shape
from convc.plan.epilogue import EPILOGUES
from convc.plan.offers import MAX_REL_ERR, within
from convc.problem import Problem
from convc.tune.workload import Workload

WINOGRAD = algorithms("cuda")["winograd"]
FORMS = {"three kernels": 0, "one kernel": 1}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Those that Winograd on GPUs is for, small: channels that fill no vector and no block, sizes that fill no tile."""
    rank, g = draw(st.sampled_from([1, 2, 2, 2])), draw(st.sampled_from([1, 1, 1, 2]))
    icg = draw(st.sampled_from([8, 9, 14, 20]))
    ocg = draw(st.sampled_from([16, 32] if g > 1 else [8, 11, 18, 33]))

    def each(values: list[int]) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(rank))

    k, p = each([1, 3, 3, 3, 5]), each([0, 1, 2])
    s, d = each([1, 1, 1, 2]), (1,) * rank
    i = tuple(draw(st.integers(1, 17)) for _ in range(rank))
    o = tuple((a + 2 * e - (b - 1) * f - 1) // c + 1 for a, b, c, e, f in zip(i, k, s, p, d, strict=True))
    assume(min(o) >= 1)
    return Problem(draw(st.sampled_from([1, 1, 2])), g, g * icg, g * ocg, i, o, k, s, p, d)


def configs_of(p: Problem, target: str, fused: int) -> list[Config]:
    if WINOGRAD.refuses(p, machine(target)) is not None:
        return []
    return [c for c in WINOGRAD.space(p, machine(target)) if c["fused"] == fused]


@needs_shim
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", ["cuda/sm_75", "cuda/sm_80"])
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.booleans())
def test_right_on_drawn_problems(target: str, form: str, p: Problem, pick: int, epilogue: bool) -> None:
    configs = configs_of(p, target, FORMS[form])
    assume(configs)
    check(p, WINOGRAD, dict(configs[pick % len(configs)]), machine(target), epilogue=epilogue, run=run_on_shim)


def config_of(p: Problem, m: int, fused: int, blocks: int = 4) -> Config:
    """The first with tiles of m outputs along every axis, between layouts of these blocks."""
    for c in configs_of(p, "cuda/sm_80", fused):
        if {c[f"m{a}"] for a in range(p.rank)} == {m} and c["xb"] == c["yb"] == blocks:
            return c
    raise AssertionError(f"no config with tiles of {m}")


def measured(p: Problem, epilogue: str, config: Config, *, exact: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the shim computes, what is expected, and by how much it may differ."""
    workload, choice = Workload(p, epilogue), WINOGRAD.choice(config)
    data, packing, target = workload.data(choice, exact=exact), workload.packing(choice), machine("cuda/sm_80")
    packed, out = aligned(packed_shape(packing)), aligned(data.expected.shape)
    at = workload.group.reads.index(packing.weight)
    run_on_shim(packing, target, data.reads[at], packed)
    reads = [packed if i == at else read for i, read in enumerate(data.reads)]
    run_on_shim(workload.kernel(choice), target, *reads, out)
    asked = data.tolerance >= 0
    return out[asked], data.expected[asked], data.tolerance[asked]


@needs_shim
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("blocks", [4, 1])
def test_exact_on_multiples_of_the_grain(form: str, epilogue: str, blocks: int) -> None:
    """F(2, 3) in float32; of the long epilogue only the activation rounds."""
    p = Problem.parse("mb2_ic9ih11_oc10_kh3ph1")
    config = config_of(p, 2, FORMS[form], blocks)
    assert WINOGRAD.grain(p, config) > 1
    found, expected, tolerance = measured(p, epilogue, config, exact=True)
    assert (np.abs(found - expected) <= tolerance).all()
    assert tolerance.any() == (epilogue == "long")


@needs_shim
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("m", [2, 4, 6])
def test_the_bound_holds_and_says_something(m: int, form: str) -> None:
    """Of normal data the error relative to the largest |y| is below it and above a hundredth of it."""
    p = Problem.parse("mb1_ic32ih14_oc16_kh3ph1")
    config = config_of(p, m, FORMS[form])
    found, expected, _ = measured(p, "none", config, exact=False)
    bound = WINOGRAD.error(p, config) * 2.0**-24
    assert bound / 100 < np.abs(found - expected).max() / np.abs(expected).max() < bound


@pytest.mark.parametrize("text", ["mb1_ic20ih13_oc36_kh3ph1", "mb2_ic64ih28_oc64_kh3ph1", "g2mb1_ic64iw90_oc64_kw5pw2"])
def test_its_memory_is_what_its_kernels_share(text: str) -> None:
    from convc.launch import ALIGNMENT
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    p, target = Problem.parse(text), machine("cuda/sm_80")
    for fused in FORMS.values():
        config = configs_of(p, "cuda/sm_80", fused)[0]
        source = source_of(lower(Workload(p).kernel(WINOGRAD.choice(config)), target), "kernel", target)
        assert len(source.launches) == (1 if fused else 3)
        assert 0 <= source.scratch - WINOGRAD.memory(p, config) < 2 * ALIGNMENT


@pytest.mark.parametrize("text", [
    "mb1_ic64ih40_oc64_kh7ph3", "mb3_ic8ih19iw37_oc33_kh3ph1", "mb1_ic20ih63iw21_oc64_kh5ph1_sh2",
    "mb2_ic8iw77_oc8_kw3",
])  # fmt: skip
def test_a_thread_of_the_one_kernel_holds_its_own_tiles_only(text: str) -> None:
    """Tiles of a block run on from row to row and image to image: what it computes must be known to be no more."""
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    p, target = Problem.parse(text), machine("cuda/sm_80")
    configs = configs_of(p, "cuda/sm_80", 1)
    for config in configs[:: max(1, len(configs) // 5)]:
        source = source_of(lower(Workload(p).kernel(WINOGRAD.choice(config)), target), "kernel", target).text
        held = {name: int(size) for name, size in re.findall(r"(\w+)_local_ptr\[(\d+)\];", source)}
        assert held["acc"] == config["tm"] * config["tn"]
        assert held["full"] == math.prod(config[f"m{a}"] for a in range(p.rank))


@pytest.mark.parametrize("target", ["cuda/sm_80", "cuda/sm_90"])
def test_chosen_where_it_pays(target: str) -> None:
    """By the models: for a batch of images, and not for one of 7 x 7 pixels, whose weights outweigh all else."""
    direct = algorithms("cuda")["direct"]

    def seconds(text: str) -> tuple[float, float]:
        p, gpu = Problem.parse(text), machine(target)
        spaces = [[c for c in a.space(p, gpu) if within(a, p, c, MAX_REL_ERR)] for a in (WINOGRAD, direct)]
        winograd, other = (a.seconds(p, gpu, s[0]) for a, s in zip((WINOGRAD, direct), spaces, strict=True))
        return winograd, other

    for channels, size in ((64, 56), (128, 28), (256, 14)):
        winograd, other = seconds(f"mb32_ic{channels}ih{size}_oc{channels}_kh3ph1")
        assert winograd < 0.6 * other
    winograd, other = seconds("mb1_ic512ih7_oc512_kh3ph1")
    assert winograd > other


SAMPLE = [
    "mb1_ic64ih56_oc64_kh3ph1", "mb32_ic128ih28_oc128_kh3ph1", "mb1_ic512ih7_oc512_kh3ph1", "mb4_ic96ih27_oc256_kh5ph2",
    "mb1_ic192ih17_oc192_kh1kw7ph0pw3", "mb2_ic64ih56_oc64_kh3ph1_sh2", "mb1_ic20ih33_oc36_kh3ph1",
    "mb1_ic64iw500_oc64_kw5pw2", "g4mb1_ic256ih28_oc256_kh3ph1",
    "mb1_ic64ih40_oc64_kh7ph3",
]  # fmt: skip


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("target", ["cuda/sm_75", "cuda/sm_80", "cuda/sm_90a"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", SAMPLE)
def test_no_kernel_of_its_space_spills(text: str, form: str, target: str) -> None:
    """A sample from best to worst, with the epilogues that take most."""
    p, gpu = Problem.parse(text), machine(target)
    configs = configs_of(p, target, FORMS[form])
    for i, config in enumerate(configs[:: max(1, len(configs) // 2)]):
        found = usages(p, config, gpu, ("residual", "long")[i % 2], WINOGRAD)
        assert not [u for u in found if u.spills or u.stack], config
