"""Are windows in parts right, and is the memory of im2win what it says, and below a hundredth of im2col's?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from bench_im2win import LAYERS
from test_algorithms import TARGETS, check, machine

from convc.algorithm import Choice, Config, algorithms
from convc.ir import Const, Conv, Input, TensorType, Unary
from convc.layout import PLAIN
from convc.lower.build import STACK_BYTES, build_object
from convc.lower.kernel import lower
from convc.plan.plan import Group, Kernel
from convc.problem import Problem

IM2WIN = algorithms()["im2win"]
PARTS = {  # what tiles, chunks and each number of axes do to the parts
    "uneven tiles and chunks": ("mb2_ic32ih13_oc64oh13_kh3ph1", {"hc": 5, "wc": 13, "rw": 4, "rh": 1, "vb": 2}),
    "rows in a tile": ("mb1_ic48ih10_oc32oh10_kh3ph1", {"hc": 5, "wc": 10, "rw": 2, "rh": 5, "vb": 1}),
    "strides": ("mb1_ic32ih17iw13_oc40oh8ow6_kh3sh2", {"hc": 4, "wc": 6, "rw": 5, "rh": 2, "vb": 1}),
    "dilation": ("mb1_ic32ih12_oc32oh8_kh3dh1", {"hc": 2, "wc": 8, "rw": 4, "rh": 2, "vb": 2}),
    "one row": ("mb1_ic64ih6_oc32oh6_kh5ph2", {"hc": 1, "wc": 6, "rw": 6, "rh": 1, "vb": 2}),
    "one axis": ("mb1_ic32iw24_oc32ow24_kw3pw1", {"hc": 1, "wc": 12, "rw": 5, "rh": 1, "vb": 2}),
    "three axes": ("mb1_ic32id4ih6iw7_oc32_kd3kh3kw3pd1ph1pw1", {"hc": 3, "wc": 7, "rw": 7, "rh": 1, "vb": 2}),
}


def in_parts(tile: Mapping[str, int], target: str, *, xb: int) -> Config:
    lanes = machine(target).lanes
    return {"xb": xb, "yb": lanes, "v": 1, "ku": 2, "cb": lanes, **tile}


def workspace(p: Problem, config: Config, target: str) -> int:
    """Bytes that the kernel asks its caller for, with an epilogue long enough to want a copy of what it reads."""
    x, w = Input("x", TensorType((p.mb, p.ic, *p.i), p.dtype)), Const(np.zeros(p.weights, p.dtype))
    pad = tuple((before, max(0, after)) for before, after in zip(p.p, p.after, strict=True))
    anchor, choice = Conv(x, w, None, p.s, pad, p.d, p.g), Choice(IM2WIN.name, config)
    group = Group((anchor, Unary("tanh", anchor)), (x, w))
    kernel = Kernel(group, (choice.x_layout, PLAIN), choice.y_layout, choice)
    return build_object(lower(kernel, machine(target)), "kernel", machine(target))[1]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("what", PARTS)
def test_parts_are_exact(what: str, target: str) -> None:
    text, tile = PARTS[what]
    for xb, epilogue in ((machine(target).lanes, True), (1, False)):
        config = in_parts(tile, target, xb=xb)
        check(Problem.parse(text).canonical, IM2WIN, dict(config), machine(target), epilogue=epilogue)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("text", ["mb2_ic256ih14_oc256_kh3", "mb1_ic64ih13_oc64oh13_kh3ph1", "mb1_ic3ih35_oc32_kh5sh2"])
def test_memory_is_what_the_kernel_takes(text: str, target: str) -> None:
    p = Problem.parse(text).canonical
    found = {(c["hc"], c["cb"], c["vb"]): c for c in IM2WIN.space(p, machine(target))}
    for config in list(found.values())[:6]:
        sums = math.prod(config[key] for key in ("hc", "wc", "vb", "yb")) * 4 if config["cb"] < p.icg else 0
        sums = -(-sums // 64) * 64
        window = IM2WIN.memory(p, config) - sums
        assert workspace(p, config, target) == sum(size for size in (window, sums) if size > STACK_BYTES), config


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layer", LAYERS)
def test_memory_is_a_hundredth_of_im2col(layer: str, target: str) -> None:
    p, lanes = Problem.parse(f"mb2_{layer}").canonical, machine(target).lanes
    im2col = p.mb * p.reduction * math.prod(p.o) * 4
    block = lanes if p.ic >= lanes else 1
    first = next(c for c in IM2WIN.space(p, machine(target)) if c["xb"] == block)
    assert IM2WIN.memory(p, first) < im2col / 100, first
