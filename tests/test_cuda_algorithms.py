"""Is each algorithm for GPUs right? Every one of the table over drawn problems, its emitted CUDA run on the shim: exact
on whole numbers, or within its bound where it mixes; in channels that pad a block lie values that are no numbers."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from cuda_shim import ShimDriver, needs_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_algorithms import NETWORK_LAYERS, check, problems

from convc.algorithm import Algorithm, Config, algorithms
from convc.launch import Temporary, Usage
from convc.lower.nvcc import find_nvcc
from convc.plan.plan import Kernel, Packing
from convc.problem import Problem
from convc.target import GpuTarget, parse_target
from convc.tune.workload import Workload

TARGETS = ["cuda/sm_75", "cuda/sm_90,tf32=1"]


@functools.cache
def machine(name: str) -> GpuTarget:
    found = parse_target(name)
    assert isinstance(found, GpuTarget)
    return found


def run_on_shim(kernel: Kernel | Packing, target: GpuTarget, *arrays: np.ndarray) -> None:
    """The last array is the result; every access is checked."""
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    source = source_of(lower(kernel, target), "kernel", target)
    driver = ShimDriver(target.capability)
    program = driver.load(source.text.encode())
    places = [driver.allocate(a.nbytes) for a in arrays]
    scratch = driver.allocate(max(source.scratch, 1))
    for place, array in zip(places[:-1], arrays[:-1], strict=True):
        driver.copy_in(place, array, 0)
    for launch in source.launches:
        args = [scratch + a.offset if isinstance(a, Temporary) else places[a] for a in launch.args]
        function = driver.function(program, launch.kernel, launch.shared)
        driver.launch(function, launch.grid, launch.block, launch.shared, args, 0)
    driver.copy_out(arrays[-1], places[-1], 0)
    for place in (*places, scratch):
        driver.free(place)
    driver.unload(program)


def takes(name: str, target: str) -> bool:
    """Whether the algorithm is for GPUs as old as that."""
    layers = (Problem.parse(text).canonical for text in NETWORK_LAYERS)
    return any(algorithms("cuda")[name].refuses(p, machine(target)) is None for p in layers)


PAIRS = [(name, target) for name in sorted(algorithms("cuda")) for target in TARGETS if takes(name, target)]


@needs_shim
@pytest.mark.parametrize(("name", "target"), PAIRS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.booleans())
def test_exact_on_integers(name: str, target: str, p: Problem, pick: int, epilogue: bool) -> None:
    algorithm, p = algorithms("cuda")[name], p.canonical
    assume(algorithm.refuses(p, machine(target)) is None)
    configs = algorithm.space(p, machine(target))
    assume(configs)
    config = dict(configs[pick % len(configs)])
    check(p, algorithm, config, machine(target), epilogue=epilogue, run=run_on_shim)


@needs_shim
@pytest.mark.parametrize("name", sorted(algorithms("cuda")))
def test_first_guess_on_network_layers(name: str) -> None:
    """In float32, or where no layer is taken in that in float16 on the newest GPUs."""
    from test_cuda_tensor_core import check_exact

    algorithm, target, newest = algorithms("cuda")[name], machine("cuda/sm_80,tf32=1"), machine("cuda/sm_90a")
    layers = [Problem.parse(text).canonical for text in NETWORK_LAYERS]
    tried = [p for p in layers if algorithm.refuses(p, target) is None and algorithm.space(p, target)]
    for p in tried:
        check(p, algorithm, dict(algorithm.space(p, target)[0]), target, epilogue=True, run=run_on_shim)
    if not tried:
        halves = [replace(p, dtype="float16") for p in layers]
        tried = [p for p in halves if algorithm.refuses(p, newest) is None]
        for p in tried:
            check_exact(p, algorithm.space(p, newest)[0], newest, "residual", algorithm)
    assert tried, f"{name} refuses every layer of the list"


def _has_nvcc() -> bool:
    try:
        return bool(find_nvcc())
    except Exception:
        return False


needs_nvcc = pytest.mark.skipif(not _has_nvcc(), reason="nvcc is not installed")


def usages(p: Problem, config: Config, target: GpuTarget, epilogue: str, algorithm: Algorithm) -> list[Usage]:
    """What the compiler says that each kernel takes, on each architecture."""
    from convc.lower.kernel import lower
    from convc.lower.objects import compiled

    kernel = Workload(p, epilogue).kernel(algorithm.choice(config))
    return [u for found in compiled(lower(kernel, target), "kernel", target).usage.values() for u in found]


LARGE = [
    "mb1_ic64ih56_oc64oh56_kh3ph1", "mb32_ic64ih56_oc64oh56_kh3ph1", "mb1_ic3ih224_oc64oh112_kh7sh2ph3",
    "mb1_ic512ih7_oc512oh7_kh3ph1", "mb1_ic2048ih7_oc512oh7_kh1", "mb64_ic96ih27_oc256oh27_kh5ph2",
    "g32mb1_ic1024ih14_oc1024oh14_kh3ph1", "g96mb1_ic96ih112_oc96oh56_kh3sh2ph1", "matmul_ic2048iw1_oc1000",
]  # fmt: skip


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("target", ["cuda/sm_80", "cuda/sm_90a"])
@pytest.mark.parametrize("name", sorted(algorithms("cuda")))
def test_what_spaces_offer_first_takes_what_they_say_and_spills_nothing(name: str, target: str) -> None:
    """nvcc's own report of the first and last configs between each two layouts."""
    algorithm, found = algorithms("cuda")[name], defaultdict(list)
    for text in LARGE:
        p = Problem.parse(text).canonical
        if algorithm.refuses(p, machine(target)) is not None:
            continue
        configs = list(algorithm.space(p, machine(target)))
        for config in (configs[0], configs[-1]):
            used = usages(p, config, machine(target), "residual", algorithm)
            found[text] += [(dict(config), u) for u in used if u.spills or u.stack or u.shared > machine(target).l1]
    assert not {text: bad for text, bad in found.items() if bad}
