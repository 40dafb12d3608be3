"""Is each algorithm right? Every algorithm of the table, over drawn problems, on every target that this machine runs:
exact on whole numbers, in float32 or, where that does not hold what is on the way, in float64; else within the bound in
float64, which no wrong index keeps."""

from __future__ import annotations

import ctypes
import functools
import math
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from convc.algorithm import Algorithm, Choice, algorithms
from convc.ir import Binary, Const, Conv, ConvTranspose, Input, MatMul, Node, TensorType, Unary
from convc.layout import Layout
from convc.plan.offers import ROUNDING
from convc.plan.plan import Group, Kernel, Packing
from convc.problem import Problem
from convc.target import Target, host_features, parse_target

NEEDS = {"native": None, "cpu/znver3": "avx2", "cpu/x86-64-v2": "sse4_2"}
TARGETS = [name for name, feature in NEEDS.items() if feature is None or feature in host_features()]

WORKSPACE = r"""
#include <stdint.h>
#include <stdlib.h>
extern __attribute__((weak)) void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern __attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void*);
static void* take(int a, int b, uint64_t n, int c, int d) { return aligned_alloc(64, (n + 63) / 64 * 64); }
static int give(int a, int b, void* p) { free(p); return 0; }
void setup(void) {
  if (!&__TVMBackendAllocWorkspace) return;
  __TVMBackendAllocWorkspace = take;
  __TVMBackendFreeWorkspace = give;
}
"""


@functools.cache
def machine(name: str) -> Target:
    return parse_target(name)


def function(kernel: Kernel | Packing, target: Target) -> ctypes._CFuncPtr:
    """The kernel as a callable of this process."""
    from convc.lower.build import build_object
    from convc.lower.kernel import lower

    data, _ = build_object(lower(kernel, target), "kernel", target)
    folder = Path(tempfile.mkdtemp())
    (folder / "kernel.o").write_bytes(data)
    (folder / "setup.c").write_text(WORKSPACE)
    command = ["cc", "-shared", "-fPIC", "-w", "-o", "kernel.so", "setup.c", "kernel.o", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "kernel.so"))
    library.setup()
    return library.kernel


def aligned(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Poisoned memory on a 64-byte boundary."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.full(size + 64, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def laid_out(x: np.ndarray, layout: Layout) -> np.ndarray:
    out = aligned(layout.physical(x.shape), x.dtype.name)
    if layout.block == 1:
        out[...] = x
        return out
    out[...] = np.nan if x.dtype.kind == "f" else 0  # what lies in padded lanes must not matter
    for channel in range(x.shape[1]):
        out[:, channel // layout.block, ..., channel % layout.block] = x[:, channel]
    return out


def read_back(y: np.ndarray, shape: tuple[int, ...], layout: Layout) -> np.ndarray:
    if layout.block == 1:
        return y.reshape(shape)
    channels = [y[:, c // layout.block, ..., c % layout.block] for c in range(shape[1])]
    return np.stack(channels, 1)


def call(fn: ctypes._CFuncPtr, *arrays: np.ndarray) -> None:
    assert fn(*(ctypes.c_void_p(a.ctypes.data) for a in arrays)) == 0


def run_here(kernel: Kernel | Packing, target: Target, *arrays: np.ndarray) -> None:
    """The last array is the result."""
    call(function(kernel, target), *arrays)


Run = Callable[..., None]


def convolution(p: Problem, w: np.ndarray) -> tuple[Input, Node]:
    if p.kind == "matmul":
        x = Input("x", TensorType((*p.i, p.ic), p.dtype))
        return x, MatMul(x, Const(w))
    x = Input("x", TensorType((p.mb, p.ic, *p.i), p.dtype))
    pad = tuple((before, max(0, after)) for before, after in zip(p.p, p.after, strict=True))
    if p.kind == "conv":
        return x, Conv(x, Const(w), None, p.s, pad, p.d, p.g)
    natural = [(i - 1) * s + (k - 1) * d + 1 - 2 * q for i, s, k, d, q in zip(p.i, p.s, p.k, p.d, p.p, strict=True)]
    extra = tuple(o - n for o, n in zip(p.o, natural, strict=True))
    return x, ConvTranspose(x, Const(w), None, p.s, tuple((q, q) for q in p.p), p.d, extra, p.g)


def check(
    p: Problem, algorithm: Algorithm, config: dict[str, int], target: Target, *, epilogue: bool, run: Run = run_here
) -> None:
    if not algorithm.grain(p, config) and algorithm.kind == "cpu":
        p = replace(p, dtype="float64")
    grain = algorithm.grain(p, config)
    rng = np.random.default_rng(0)
    w = (rng.integers(-3, 4, p.weights) * max(1, grain)).astype(p.dtype)
    x, anchor = convolution(p, w)
    data = rng.integers(-3, 4, x.shape).astype(p.dtype)
    nodes, reads, arrays = [anchor], [x, anchor.args[1]], [data]
    if epilogue:
        channels = (p.oc,) if p.kind == "matmul" else (1, p.oc, *[1] * p.rank)
        bias = Const(rng.integers(-9, 10, channels).astype(p.dtype))
        residual = Input("r", TensorType(anchor.shape, p.dtype))
        shifted = Binary("add", anchor, bias)
        added = Binary("add", shifted, residual)
        nodes += [shifted, added, Unary("relu", added)]
        reads += [bias, residual]
        arrays += [bias.value, rng.integers(-9, 10, anchor.shape).astype(p.dtype)]
    choice = algorithm.choice(config)
    layouts, plain = [], p.kind == "matmul"
    for node in reads:
        if plain or node is anchor.args[1]:
            layouts.append(Layout())
        elif node is x:
            layouts.append(choice.x_layout)
        else:
            layouts.append(choice.y_layout)
    result = Layout() if plain else choice.y_layout
    group = Group(tuple(nodes), tuple(reads))
    kernel = Kernel(group, tuple(layouts), result, choice)
    packing = Packing(anchor.args[1], group.problem, choice)
    from convc.lower.packed import packed_shape

    packed = aligned(packed_shape(packing), p.dtype)
    raw = aligned(w.shape, p.dtype)
    raw[...] = w
    run(packing, target, raw, packed)
    out = aligned(result.physical(anchor.shape), p.dtype)
    given_arrays = [laid_out(a, lay) for a, lay in zip(arrays, [layouts[0], *layouts[2:]], strict=True)]
    run(kernel, target, given_arrays[0], packed, *given_arrays[1:], out)
    expected = {x: data, anchor.args[1]: w, **dict(zip(reads[2:], arrays[1:], strict=True))}
    for node in nodes:
        expected[node] = node.reference(*(expected[a] for a in node.args))
    found, wanted = read_back(out, anchor.shape, result), expected[nodes[-1]]
    if grain:
        np.testing.assert_array_equal(found, wanted, err_msg=f"{p} {choice}")
    else:
        largest = anchor.reference(np.abs(data), np.abs(w)).max()
        allowed = algorithm.error(p, config) * ROUNDING[p.dtype] * largest
        np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed, err_msg=f"{p} {choice}")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    kind = draw(st.sampled_from(["conv", "conv", "conv", "pointwise", "transposed", "matmul"]))
    if kind == "matmul":
        rows, ic, oc = draw(st.integers(1, 30)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
        return Problem(1, 1, ic, oc, (rows,), (rows,), (1,), (1,), (0,), (1,), "matmul")
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    size = {1: 40, 2: 17, 3: 7}[rank]
    groups = draw(st.sampled_from(["one", "one", "depthwise", "grouped"]))
    g = 1 if groups == "one" else draw(st.sampled_from([2, 3, 8, 16, 20]))
    icg = 1 if groups == "depthwise" else draw(st.sampled_from([1, 2, 3, 4, 8, 16, 18, 24, 40]))
    ocg = 1 if groups == "depthwise" else draw(st.sampled_from([1, 2, 4, 8, 16, 18, 32, 48]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    i, k, s, p, d = each(1, size), each(1, 4), each(1, 3), each(0, 3), each(1, 2)
    text = {"conv": lambda a, b, c, e, f: (a + 2 * e - (b - 1) * f - 1) // c + 1}
    if kind == "pointwise":
        kind, k, s, p, d = "conv", (1,) * rank, (1,) * rank, (0,) * rank, (1,) * rank
    if kind == "conv":
        o = tuple(text["conv"](*t) for t in zip(i, k, s, p, d, strict=True))
    else:
        o = tuple((a - 1) * c + (b - 1) * f + 1 - 2 * e for a, b, c, e, f in zip(i, k, s, p, d, strict=True))
    assume(min(o) >= 1)
    mb = draw(st.sampled_from([1, 1, 2]))
    return Problem(mb, g, g * icg, g * ocg, i, o, k, s, p, d, kind)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(algorithms()))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(p=problems(), pick=st.integers(0, 1000), epilogue=st.booleans())
def test_exact_on_integers(name: str, target: str, p: Problem, pick: int, epilogue: bool) -> None:
    algorithm, p = algorithms()[name], p.canonical
    assume(algorithm.refuses(p, machine(target)) is None)
    configs = algorithm.space(p, machine(target))
    assume(configs)
    check(p, algorithm, dict(configs[pick % len(configs)]), machine(target), epilogue=epilogue)


NETWORK_LAYERS = [
    "mb1_ic64ih14_oc64oh14_kh3ph1",
    "mb1_ic3ih35_oc32oh18_kh3sh2ph1",
    "mb1_ic3ih32_oc16oh16_kh7sh2ph3",
    "mb1_ic96ih7_oc40oh7_kh1",
    "mb1_ic48ih14_oc72oh14_kh1",
    "mb2_ic32ih9_oc64oh5_kh1sh2",
    "g32mb1_ic32ih14_oc32oh14_kh3ph1",
    "g40mb1_ic40ih15_oc40oh8_kh5sh2ph2",
    "g8mb1_ic64ih8_oc64oh8_kh3ph1",
    "transposed_mb1_ic32ih8_oc16oh16_kh4sh2ph1",
    "matmul_ic48iw1_oc100",
    "matmul_ic64iw20_oc37",
    "mb1_ic16id5ih6iw7_oc16_kd3kh3kw3pd1ph1pw1",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(algorithms()))
def test_first_guess_on_network_layers(name: str, target: str) -> None:
    algorithm, tried = algorithms()[name], 0
    for text in NETWORK_LAYERS:
        p = Problem.parse(text).canonical
        if algorithm.refuses(p, machine(target)) is None and (configs := algorithm.space(p, machine(target))):
            check(p, algorithm, dict(configs[0]), machine(target), epilogue=True)
            tried += 1
    assert tried, f"{name} refuses every layer of the list"


@pytest.mark.parametrize("name", sorted(algorithms()))
def test_the_first_guesses_for_several_threads_can_be_scheduled(name: str) -> None:
    """Few rows and weights that fill caches: threads share what one thread goes through part by part."""
    from convc.lower.kernel import lower

    target, algorithm = parse_target("cpu/x86-64-v3", threads=2), algorithms()[name]
    large = ["matmul_ic4096iw1_oc2048", "mb1_ic2048ih7_oc512oh7_kh1", "mb1_ic512ih7_oc512oh7_kh3ph1"]
    for text in (*large, *NETWORK_LAYERS):
        p = Problem.parse(text).canonical
        if algorithm.refuses(p, target) is None:
            x, anchor = convolution(p, np.zeros(p.weights, p.dtype))
            group = Group((anchor,), (x, anchor.args[1]))
            for config in algorithm.space(p, target)[:6]:
                choice = Choice(name, config)
                lower(Kernel(group, (choice.x_layout, Layout()), choice.y_layout, choice), target)
