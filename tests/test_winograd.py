"""Is Winograd right for every tile, border, stride, dilation and group count? Does its bound say something?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx_models import model, node
from test_algorithms import TARGETS, aligned, call, check, convolution, function, laid_out, machine, read_back

import convc
from convc.algorithm import Choice, algorithms
from convc.lower.packed import packed_shape
from convc.plan.offers import MAX_REL_ERR, offers, within
from convc.plan.plan import Group, Kernel, Packing
from convc.problem import Problem
from convc.schedules.winograd import MOST

WINOGRAD = algorithms()["winograd"]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Those that Winograd is for, small."""
    rank = draw(st.sampled_from([1, 2, 2, 2]))
    g = draw(st.sampled_from([1, 1, 1, 2, 3]))
    icg, ocg = (draw(st.sampled_from([16, 32] if g > 1 else [8, 16, 20, 33, 48])) for _ in "xy")

    def each(values: list[int]) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(rank))

    k, p = each([1, 3, 3, 5, 7]), each([0, 1, 2, 3])
    s, d = each([1, 1, 1, 2]), each([1, 1, 1, 2])
    i = tuple(draw(st.integers(1, 19)) for _ in range(rank))
    o = tuple((a + 2 * e - (b - 1) * f - 1) // c + 1 for a, b, c, e, f in zip(i, k, s, p, d, strict=True))
    assume(min(o) >= 1)
    return Problem(draw(st.sampled_from([1, 1, 2])), g, g * icg, g * ocg, i, o, k, s, p, d)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.booleans())
def test_right_on_drawn_problems(target: str, p: Problem, pick: int, epilogue: bool) -> None:
    assume(WINOGRAD.refuses(p, machine(target)) is None)
    configs = WINOGRAD.space(p, machine(target))
    assume(configs)
    check(p, WINOGRAD, dict(configs[pick % len(configs)]), machine(target), epilogue=epilogue)


def config_of(p: Problem, m: int) -> dict[str, int]:
    found = [c for c in WINOGRAD.space(p, machine("native")) if {c[f"m{a}"] for a in range(p.rank)} == {m}]
    assert found, f"no config with tiles of {m}"
    return dict(found[0])


@pytest.mark.parametrize("m", range(2, MOST + 1))
def test_every_tile_size(m: int) -> None:
    """Whose extents the tiles divide, and do not."""
    for size in (3 * m, 3 * m + 1):
        p = Problem.parse(f"mb1_ic32ih{size}_oc32oh{size}_kh3ph1")
        check(p, WINOGRAD, config_of(p, m), machine("native"), epilogue=False)


def test_exact_where_the_type_holds_what_is_on_the_way() -> None:
    p = Problem.parse("mb1_ic32ih24_oc32oh24_kh3ph1")
    wide = Problem.parse(f"{p}_float64")
    grains = {m: [WINOGRAD.grain(q, config_of(p, m)) for q in (p, wide)] for m in range(2, MOST + 1)}
    assert grains[2][0] > 1
    assert all(grains[m][1] > 1 for m in (2, 4, 6))
    assert grains[8] == [0, 0]


def measured_error(p: Problem, config: dict[str, int]) -> float:
    """Of normal data: max |y - reference| / max |reference|."""
    random, choice = np.random.default_rng(0), Choice("winograd", config)
    w, data = (random.standard_normal(shape).astype(p.dtype) for shape in (p.weights, (p.mb, p.ic, *p.i)))
    x, anchor = convolution(p, w)
    packing = Packing(anchor.args[1], p, choice)
    raw, packed = aligned(w.shape), aligned(packed_shape(packing))
    raw[...] = w
    call(function(packing, machine("native")), raw, packed)
    group = Group((anchor,), (x, anchor.args[1]))
    kernel = Kernel(group, (choice.x_layout, choice.x_layout), choice.y_layout, choice)
    out = aligned(choice.y_layout.physical(anchor.shape))
    call(function(kernel, machine("native")), laid_out(data, choice.x_layout), packed, out)
    wanted = anchor.reference(data.astype(np.float64), w.astype(np.float64))
    return float(np.abs(read_back(out, anchor.shape, choice.y_layout) - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("channels", [32, 256])
@pytest.mark.parametrize("m", [2, 4, 6, MOST])
def test_the_bound_holds_and_says_something(m: int, channels: int) -> None:
    """Of normal data the error relative to the largest |y| is below it and above a hundredth of it."""
    p = Problem.parse(f"mb1_ic{channels}ih24_oc32oh24_kh3ph1")
    config = config_of(p, m)
    found = measured_error(p, config)
    bound = WINOGRAD.error(p, config) * 2.0**-24
    assert bound / 100 < found < bound


# (input channels, output channels, extent, kernel) of layers at stride 1 in VGG, ResNet, GoogLeNet and Inception v3.
LAYERS = [
    *((c, c, size, (3, 3)) for c, size in (
        (64, 56), (128, 28), (256, 14), (512, 7), (64, 224), (128, 112), (256, 56), (512, 28), (32, 112), (96, 27),
        (192, 35),
    )),
    *((c, o, size, (5, 5)) for c, o, size in (
        (16, 32, 28), (32, 96, 28), (16, 48, 14), (24, 64, 14), (32, 64, 14), (32, 128, 14), (48, 128, 7), (48, 64, 35),
    )),
    *((c, o, 17, k) for k in ((1, 7), (7, 1)) for c, o in ((128, 128), (128, 192), (160, 160), (160, 192), (192, 192))),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("c", "o", "size", "k"), LAYERS)
def test_the_bound_holds_on_layers_of_networks(c: int, o: int, size: int, k: tuple[int, int]) -> None:
    """As above, of the config that compile would take first."""
    p = Problem.parse(f"mb1_ic{c}ih{size}_oc{o}oh{size}_kh{k[0]}kw{k[1]}ph{k[0] // 2}pw{k[1] // 2}")
    config = next(c for c in WINOGRAD.space(p, machine("native")) if within(WINOGRAD, p, c, MAX_REL_ERR))
    bound = WINOGRAD.error(p, config) * 2.0**-24
    assert bound / 100 < measured_error(p, dict(config)) < bound <= MAX_REL_ERR


def test_larger_tiles_err_more() -> None:
    p = Problem.parse("mb1_ic64ih48_oc64oh48_kh3ph1")
    errors = [WINOGRAD.error(p, config_of(p, m)) for m in range(2, MOST + 1)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("limit", [1e-3, MAX_REL_ERR, 1e-5, 1e-6, 1e-8])
def test_the_budget_for_errors_is_kept(limit: float) -> None:
    p = Problem.parse("mb1_ic64ih56_oc64oh56_kh3ph1")
    found = offers(p, machine("native"), max_rel_err=limit)
    tiles = {o.choice.config["m0"] for o in found if o.choice.algorithm == "winograd"}
    assert all(o.error <= limit for o in found if o.choice.algorithm == "winograd")
    assert {"direct", "im2win"} <= {o.choice.algorithm for o in found}
    assert bool(tiles) == (limit >= 1e-6)
    assert all(within(WINOGRAD, p, o.choice.config, limit) for o in found if o.choice.algorithm == "winograd")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_winograd(value: float) -> None:
    w = np.ones((32, 32, 3, 3), np.float32)
    chosen: list[str] = []
    for broken in (False, True):
        w[3, 4, 1, 1] = value if broken else 1.0
        graph = model(node("Conv", "x w", "y", pads=[1] * 4), {"x": (1, 32, 24, 24)}, {"w": w})
        artifact = convc.compile(graph.SerializeToString())
        chosen += [call["algorithm"] for call in artifact.manifest["calls"] if call["algorithm"]]
    assert chosen[0] == "winograd" and chosen[1] != "winograd"
