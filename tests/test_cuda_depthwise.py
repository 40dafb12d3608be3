"""Are depthwise and grouped convolutions for GPUs right at the borders of their strips, and what does their text do?
The general tests of algorithms draw problems; here are those that strips, windows and blocks make hard."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cuda_shim import needs_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_algorithms import check
from test_cuda_algorithms import machine, run_on_shim
from test_cuda_tensor_core import check_exact

from convc.algorithm import algorithms
from convc.dtypes import HALVES
from convc.errors import UsageError
from convc.plan.epilogue import EPILOGUES
from convc.problem import Problem

NAMES = ("depthwise", "depthwise_nchw")
TARGET = "cuda/sm_80"


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Odd extents, strides and taps that differ by axis, dilation, one-sided padding."""
    c, rank = draw(st.integers(2, 11)), draw(st.integers(1, 3))
    text = f"g{c}mb{draw(st.integers(1, 2))}_ic{c}oc{c}"
    for axis in {1: "w", 2: "hw", 3: "dhw"}[rank]:
        i, k, s = draw(st.integers(3, 13)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
        p, d = draw(st.integers(0, 2)), draw(st.integers(0, 1))
        text += f"_i{axis}{i}k{axis}{k}s{axis}{s}p{axis}{p}d{axis}{d}"
    try:
        return Problem.parse(text)
    except UsageError:
        assume(False)
        raise


@needs_shim
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.booleans())
def test_windows_and_strips_of_any_shape(name: str, p: Problem, pick: int, epilogue: bool) -> None:
    algorithm = algorithms("cuda")[name]
    assume(algorithm.refuses(p, machine(TARGET)) is None)
    configs = algorithm.space(p, machine(TARGET))
    check(p, algorithm, dict(configs[pick % len(configs)]), machine(TARGET), epilogue=epilogue, run=run_on_shim)


@needs_shim
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.sampled_from(EPILOGUES))
def test_types_of_two_bytes_are_exact_on_whole_numbers(
    dtype: str, name: str, p: Problem, pick: int, epilogue: str
) -> None:
    algorithm, p = algorithms("cuda")[name], replace(p, dtype=dtype)
    assume(algorithm.refuses(p, machine(TARGET)) is None)
    configs = algorithm.space(p, machine(TARGET))
    check_exact(p, configs[pick % len(configs)], machine(TARGET), epilogue, algorithm)


@needs_shim
@pytest.mark.parametrize("rows", [1, 3, 5, 8])
def test_a_last_strip_beyond_the_image_writes_nothing(rows: int) -> None:
    """Rows of 13 in strips that do not divide them; results of another strip would be overwritten."""
    p = Problem.parse("g6mb2_ic6ih13iw9_oc6_kh3kw3ph1pw1")
    config = {"xb": 4, "yb": 4, "v": 4, "rh": rows, "tx": 64}
    check(p, algorithms("cuda")["depthwise"], config, machine(TARGET), epilogue=True, run=run_on_shim)


GROUPS = [
    "g3mb2_ic12ih7iw9_oc12_kh3kw3ph1pw1", "g2mb1_ic16ih13_oc24_kh3sh2ph1", "g2mb1_ic24ih9iw5_oc8_kh1kw5pw2",
    "g4mb1_ic32ih9_oc32_kh3ph2dh1", "g2mb3_ic8iw17_oc16_kw3sw2pw1", "g2mb1_ic8id5ih4iw6_oc8_kd3kh2kw3pd1ph0pw1",
]  # fmt: skip


@needs_shim
@pytest.mark.parametrize("text", GROUPS)
def test_groups_of_several_widths(text: str) -> None:
    """Groups narrower and wider than a block, of as many and of more or fewer output channels."""
    algorithm, p = algorithms("cuda")["grouped"], Problem.parse(text)
    assert algorithm.refuses(p, machine(TARGET)) is None
    for config in (algorithm.space(p, machine(TARGET))[0], algorithm.space(p, machine(TARGET))[-1]):
        check(p, algorithm, dict(config), machine(TARGET), epilogue=True, run=run_on_shim)


@pytest.mark.parametrize("text", ["g2mb1_ic6ih9_oc8_kh3", "g2mb1_ic8ih9_oc6_kh3", "mb1_ic8ih9_oc8_kh3"])
def test_groups_that_fill_no_access_are_refused_with_a_reason(text: str) -> None:
    assert algorithms("cuda")["grouped"].refuses(Problem.parse(text), machine(TARGET))


def text_of(name: str, p: Problem, config: dict[str, int]) -> str:
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower
    from convc.tune.workload import Workload

    kernel = Workload(p, "short").kernel(algorithms("cuda")[name].choice(config))
    return source_of(lower(kernel, machine(TARGET)), "k", machine(TARGET)).text


def test_blocks_are_read_and_written_16_bytes_at_a_time() -> None:
    p = Problem.parse("g32mb1_ic32ih28_oc32oh28_kh3ph1")
    text = text_of("depthwise", p, {"xb": 4, "yb": 4, "v": 4, "rh": 2, "tx": 128})
    body = text[text.rindex("__global__") :]
    assert body.count("*(float4*)(a0_ptr") == body.count("*(float4*)(w_ptr") == body.count("*(float4*)(z_ptr") == 1
    assert "a0_ptr[" not in body and "w_ptr[" not in body and "z_ptr[" not in body


@pytest.mark.parametrize(("v", "vector"), [(8, "uint4"), (4, "half4")])
def test_types_of_two_bytes_are_read_and_written_8_or_16_bytes_at_a_time(v: int, vector: str) -> None:
    p = Problem.parse("g32mb1_ic32ih28_oc32oh28_kh3ph1_float16")
    text = text_of("depthwise", p, {"xb": 8, "yb": 8, "v": v, "rh": 2, "tx": 128})
    body = text[text.rindex("__global__") :]
    assert all(body.count(f"*({vector}*)({name}_ptr") == 1 for name in ("a0", "w", "z"))
    assert not any(f"{name}_ptr[" in body for name in ("a0", "w", "z"))


def test_windows_inside_the_image_ask_for_no_border() -> None:
    """Without padding only the last strip, which overhangs, is asked for."""
    config = {"xb": 4, "yb": 4, "v": 4, "rh": 2, "tx": 128}
    inside = text_of("depthwise", Problem.parse("g8mb1_ic8ih30_oc8_kh3"), config)
    padded = text_of("depthwise", Problem.parse("g8mb1_ic8ih30_oc8_kh3ph1"), config)
    assert "make_float4(0x0p" in padded and "make_float4(0x0p" not in inside


@pytest.mark.parametrize("target", ["cuda/sm_75", "cuda/sm_90a"])
def test_a_model_of_time_knows_the_bytes(target: str) -> None:
    """Twice the images take about twice the time where memory binds; nothing is faster than its bytes allow."""
    gpu = machine(target).gpu
    for name in NAMES:
        times = {}
        for images in (32, 64):
            p = Problem.parse(f"g144mb{images}_ic144ih56_oc144oh56_kh3ph1")
            algorithm = algorithms("cuda")[name]
            times[images] = algorithm.seconds(p, machine(target), algorithm.space(p, machine(target))[0])
            assert times[images] > 8 * images * 144 * 56 * 56 / gpu.bandwidth
        assert 1.8 < times[64] / times[32] < 2.1
