"""Is im2win on GPUs right, at every step of its ablation, and does its window lie as fast loads want it?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from bench_im2win import LAYERS
from cuda_shim import needs_shim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_cuda_algorithms import machine, needs_nvcc, run_on_shim, usages

from convc.algorithm import Config, algorithms
from convc.plan.epilogue import EPILOGUES
from convc.problem import Problem
from convc.schedules import _im2win_form as form
from convc.schedules import _im2win_tiles as tiles
from convc.target import GpuTarget
from convc.tune.workload import Workload

ALGORITHM = algorithms("cuda")["im2win"]
TARGETS = ["cuda/sm_75", "cuda/sm_80"]
# The twelve layers of the papers with fewer channels and pixels, of the same taps, strides, and remainders of tiles.
SMALL = [
    "ic3ih31_oc96_kh11sh4", "ic3ih35_oc96_kh11sh4", "ic3ih33_oc64_kh7sh2", "ic8ih30_oc64_kh7sh2", "ic8ih24_oc64_kh5",
    "ic16ih12_oc64_kh3", "ic3ih40_oc64_kh3", "ic8ih32_oc128_kh3", "ic8ih30_oc64_kh3", "ic8ih28_oc128_kh3",
    "ic16ih14_oc64_kh3", "ic16ih7_oc128_kh3",
]  # fmt: skip
FIRST = 2  # configs of each pair of layouts that the tests of machine code and banks look at


def first_of_each_pair(configs: list[Config]) -> list[Config]:
    """The best config between each two layouts."""
    found: dict[tuple[int, int], Config] = {}
    for config in configs:
        found.setdefault((config["xb"], config["yb"]), config)
    return list(found.values())


def check(p: Problem, config: Config, target: GpuTarget, epilogue: str) -> None:
    """Whole numbers come out exactly, but for activations; lanes beyond the channels of x are no numbers."""
    from convc.lower.packed import packed_shape

    work, choice = Workload(p, epilogue), ALGORITHM.choice(config)
    data = work.data(choice, exact=True)
    packing = work.packing(choice)
    reads = list(data.reads)
    at = work.group.reads.index(work.nodes[0].args[1])
    packed = np.full(packed_shape(packing), np.nan, np.float32)
    run_on_shim(packing, target, reads[at], packed)
    reads[at] = packed
    y = np.full(data.expected.shape, np.nan, np.float32)
    run_on_shim(work.kernel(choice), target, *reads, y)
    asked = data.tolerance >= 0
    worst = np.abs(y.astype(np.float64) - data.expected)[asked] - data.tolerance[asked]
    assert (worst <= 0).all(), f"{p} {epilogue} {dict(config)}"


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rank = draw(st.sampled_from([1, 2, 2, 2]))
    g = draw(st.sampled_from([1, 1, 2]))
    icg, ocg = draw(st.sampled_from([1, 2, 3, 4, 8, 12, 17])), draw(st.sampled_from([8, 10, 16, 24, 33]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    i, k, s, p, d = each(1, 60 if rank == 1 else 19), each(1, 5), each(1, 3), each(0, 3), each(1, 2)
    o = tuple((a + 2 * e - (b - 1) * f - 1) // c + 1 for a, b, c, e, f in zip(i, k, s, p, d, strict=True))
    assume(min(o) >= 1 and math.prod(k) > 1)
    return Problem(draw(st.sampled_from([1, 2, 3])), g, g * icg, g * ocg, i, o, k, s, p, d)


@needs_shim
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.sampled_from(EPILOGUES))
def test_exact_on_integers(target: str, p: Problem, pick: int, epilogue: str) -> None:
    assume(ALGORITHM.refuses(p, machine(target)) is None)
    configs = ALGORITHM.space(p, machine(target))
    check(p, configs[pick % len(configs)], machine(target), epilogue)


@needs_shim
@pytest.mark.parametrize("number", range(12))
def test_the_layers_of_the_papers(number: int) -> None:
    p, target = Problem.parse(f"mb2_{SMALL[number]}"), machine("cuda/sm_80")
    full = Problem.parse(f"mb64_{LAYERS[number]}")
    assert (p.k, p.s) == (full.k, full.s)
    plain, *_, blocked = first_of_each_pair(list(ALGORITHM.space(p, target)))
    check(p, plain, target, "none")
    check(p, blocked, target, "residual")


@needs_shim
@pytest.mark.parametrize("text", ["mb2_ic16ih9_oc32oh9_kh3ph1", "mb1_ic32ih17_oc24_kh3sh2", "mb2_ic32iw70_oc16_kw5dw1"])
def test_every_step_of_the_ablation(text: str) -> None:
    p, target = Problem.parse(text), machine("cuda/sm_80")
    steps = tiles.ablation(p, target)
    assert len({label for label, _ in steps}) == len(steps) == 7
    assert all(config["tn"] % config["yb"] == 0 for _, config in steps)
    for _, config in steps:
        check(p, config, target, "residual")


def conflicts(addresses: Iterable[int], width: int) -> int:
    """How many times the fullest bank is read for one access of a warp: 32 banks of 4 bytes, and as many lanes at once
    as fill 128 bytes; lanes that read the same word share it. `addresses` are of float32 numbers, by lane."""
    lanes, together = list(addresses), 32 // width
    worst = 1
    for first in range(0, len(lanes), together):
        words: defaultdict[int, set[int]] = defaultdict(set)
        for address in lanes[first : first + together]:
            for word in range(address, address + width):
                words[word % 32].add(word)
        worst = max(worst, *(len(found) for found in words.values()))
    return worst


def test_conflicts_are_counted() -> None:
    assert conflicts(range(32), 1) == 1
    assert conflicts(range(0, 64, 2), 1) == 2
    assert conflicts([0] * 32, 4) == 1
    assert conflicts(range(0, 128, 4), 4) == 1
    assert conflicts(range(0, 8 * 32, 8), 4) == 2
    assert conflicts(range(0, 32 * 32, 32), 1) == 32


def warps(p: Problem, c: Config) -> Iterator[list[tuple[int, int]]]:
    """By warp, of each of its threads: the element of the window where its strip of the first taps begins, and that of
    the weights."""
    f, (along, _), (_, _, lanes) = form.form(p, c), form.axes(p), form.quads(c)
    threads = []
    for tx in range(c["tx"]):
        for thread in range(form.pixels(c)):
            image, rest = divmod(thread, c["hs"] * c["wb"])
            hs, column = divmod(rest, c["wb"])
            place = (image * f.image + column) * f.pitch + hs * c["rh"] * along.s
            threads.append((place, tx * lanes))
    for first in range(0, len(threads), 32):
        yield threads[first : first + 32]


@pytest.mark.parametrize("target", ["cuda/sm_75", "cuda/sm_90a"])
@pytest.mark.parametrize("layer", [*LAYERS, "ic64ih56_oc64_kh3ph1", "ic64ih56_oc128_kh3ph1sh2", "ic64iw999_oc64_kw7"])
def test_the_inner_loop_reads_without_conflicts(layer: str, target: str) -> None:
    """At most two of a warp's threads wait for one bank: where a warp goes on in the next row of threads."""
    p = Problem.parse(f"mb64_{layer}")
    for config in ALGORITHM.space(p, machine(target))[:FIRST]:
        for warp in warps(p, config):
            assert conflicts((place for place, _ in warp), form.form(p, config).lanes) <= 2, dict(config)
            assert conflicts((weights for _, weights in warp), form.quads(config)[2]) == 1, dict(config)


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("target", ["cuda/sm_80", "cuda/sm_90a"])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_first_configs_spill_nothing_and_take_what_the_model_says(layer: str, target: str) -> None:
    p, gpu = Problem.parse(f"mb64_{layer}"), machine(target)
    for config in first_of_each_pair(list(ALGORITHM.space(p, gpu)))[:FIRST]:
        (usage,) = usages(p, config, gpu, "residual", ALGORITHM)
        assert not usage.spills and not usage.stack, (dict(config), usage)
        assert usage.registers <= 1.25 * tiles.registers(p, config), (dict(config), usage)


@pytest.mark.parametrize("layer", LAYERS)
def test_only_parts_of_few_sums_take_memory(layer: str) -> None:
    large, small, target = Problem.parse(f"mb64_{layer}"), Problem.parse(f"mb1_{layer}"), machine("cuda/sm_80")
    assert not any(ALGORITHM.memory(large, config) for config in ALGORITHM.space(large, target))
    for config in ALGORITHM.space(small, target):
        im2col = 4 * small.reduction * math.prod(small.o)
        assert ALGORITHM.memory(small, config) <= (im2col if config["sk"] > 1 else 0)


@needs_shim
@pytest.mark.parametrize("text", ["mb1_ic64ih10_oc32_kh3ph1", "mb2_ic48ih7_oc24oh7_kh3ph1", "mb1_ic64iw20_oc16_kw3"])
def test_memory_is_what_the_kernel_takes(text: str) -> None:
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    p, target = Problem.parse(text), machine("cuda/sm_80")
    config = next(c for c in ALGORITHM.space(p, target) if c["sk"] > 1)
    source = source_of(lower(Workload(p).kernel(ALGORITHM.choice(config)), target), "kernel", target)
    assert source.scratch == -(-ALGORITHM.memory(p, config) // 256) * 256
    assert len(source.launches) == 2
    check(p, config, target, "residual")
