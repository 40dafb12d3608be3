"""Does generated code do what the nodes say? Every kind of node but the anchored convolutions, in both layouts, at odd
extents, against its own reference."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels import call, check, kernel_of, laid_out, native, placeholder, read_back, run, whole

from convc.errors import UnsupportedError
from convc.ir import (
    LRN,
    ArgReduce,
    Binary,
    Broadcast,
    Cast,
    Concat,
    Const,
    Conv,
    ConvTranspose,
    Gather,
    MatMul,
    Node,
    Normalize,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Softmax,
    TensorType,
    Transpose,
    Unary,
    Where,
)
from convc.ir.check import SUMS
from convc.ir.functions import BINARY, COMPARISONS, LOGICAL, UNARY, UNARY_ON_INTEGERS
from convc.ir.reduction import REDUCTIONS
from convc.layout import PLAIN, Layout
from convc.lower.build import assembly
from convc.lower.elementwise import MAPS
from convc.lower.generic import CORES, generic, relayout

B8, B16 = Layout(8), Layout(16)
LAYOUTS = [(PLAIN, PLAIN), (PLAIN, B16), (B16, PLAIN), (B16, B16), (B8, B16)]
SHAPE = (2, 20, 5, 7)  # channels that no block divides, and no extent that a vector does
pytestmark = pytest.mark.slow  # hundreds of kernels are compiled
SOME = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
PARAMS = {
    "leaky_relu": (0.1,), "clip": (-1.0, 2.0), "hard_sigmoid": (0.2, 0.5), "swish": (1.5,), "elu": (1.3,),
    "selu": (1.67, 1.05), "celu": (1.2,), "thresholded_relu": (1.0,),
}  # fmt: skip


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def x_and_values(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> tuple[Node, dict[Node, np.ndarray]]:
    x = placeholder(*shape, dtype=dtype)
    return x, {x: whole(rng, *shape, dtype=dtype)}


# Changes of layout


@pytest.mark.parametrize("channels", [3, 16, 20, 33])
def test_relayout_moves_every_element_and_zeroes_the_padding(channels: int, rng: np.random.Generator) -> None:
    shape = (2, channels, 5, 7)
    x = whole(rng, *shape)
    layouts = (PLAIN, B8, B16, Layout(channels))
    for source in layouts:
        for to in layouts:
            schedule = relayout(shape, "float32", source, to, native())
            y = call(schedule, [laid_out(x, source)], TensorType(shape), to)
            np.testing.assert_array_equal(read_back(y, shape, to), x)
            if to.block > 1 and source != to:
                assert not y[:, -1, ..., channels - (y.shape[1] - 1) * to.block :].any()


@SOME
@given(
    shape=st.lists(st.integers(1, 35), min_size=3, max_size=5).filter(lambda s: np.prod(s) < 20_000 and s[1] > 1),
    blocks=st.tuples(*[st.sampled_from([1, 2, 4, 8, 16, 24])] * 2),
    dtype=st.sampled_from(["float32", "int8", "int64", "bool"]),
)
def test_relayout_of_any_shape(shape: list[int], blocks: tuple[int, int], dtype: str) -> None:
    source, to = (Layout(b) for b in blocks)
    x = whole(np.random.default_rng(1), *shape, dtype=dtype)
    schedule = relayout(shape, dtype, source, to, native())
    y = call(schedule, [laid_out(x, source)], TensorType(tuple(shape), dtype), to)
    np.testing.assert_array_equal(read_back(y, shape, to), x)


def test_an_empty_body_is_a_copy(rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    np.testing.assert_array_equal(run([], values, [PLAIN], B16), values[x])


# Elementwise functions


def samples(fn: str, rng: np.random.Generator) -> np.ndarray:
    low, high = {"acosh": (1, 9), "atanh": (-0.99, 0.99), "asin": (-1, 1), "acos": (-1, 1), "log": (0.01, 9)}.get(
        fn, (-9, 9)
    )
    found = rng.uniform(low, high, (3, 20, 3, 5))
    return found.astype(np.float32)


@pytest.mark.parametrize("fn", sorted(UNARY))
def test_unary(fn: str, rng: np.random.Generator) -> None:
    if fn == "not":
        x, values = x_and_values(rng, *SHAPE, dtype="bool")
        return check([Unary(fn, x)], values, [B16], B16)
    x = placeholder(3, 20, 3, 5)
    check([Unary(fn, x, PARAMS.get(fn, ()))], {x: samples(fn, rng)}, [B16], B16, tolerance=2e-6)
    wide = placeholder(3, 20, 3, 5, dtype="float64")
    node = Unary(fn, wide, PARAMS.get(fn, ()))
    check([node], {wide: samples(fn, rng).astype(np.float64)}, tolerance=1e-12)
    return None


@pytest.mark.parametrize("fn", sorted(UNARY_ON_INTEGERS))
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
def test_unary_on_integers(fn: str, dtype: str, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, 2, 20, 7, dtype=dtype)
    check([Unary(fn, x, (-1.5, 5.5) if fn == "clip" else ())], values)


@pytest.mark.parametrize("fn", sorted(BINARY))
def test_binary(fn: str, rng: np.random.Generator) -> None:
    dtype = "bool" if fn in LOGICAL else "float32"
    a, b = placeholder(*SHAPE, dtype=dtype), placeholder(20, 1, 1, dtype=dtype)
    values = {a: whole(rng, *SHAPE, dtype=dtype), b: whole(rng, 20, 1, 1, dtype=dtype)}
    if fn in ("pow", "mod", "fmod", "div"):
        values = {a: np.abs(values[a]) + 0.25, b: values[b] * np.float32(0.5) + np.float32(0.25)}
    exact = dtype == "bool" or fn in COMPARISONS or fn in ("add", "sub", "mul", "min", "max", "prelu")
    check([Binary(fn, a, b)], values, [B16, PLAIN], B16, tolerance=0 if exact else 2e-6)


@pytest.mark.parametrize("fn", sorted(set(BINARY) - LOGICAL))
@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
def test_binary_on_integers(fn: str, dtype: str, rng: np.random.Generator) -> None:
    a, b = placeholder(40, 7, dtype=dtype), placeholder(40, 7, dtype=dtype)
    values = {a: whole(rng, 40, 7, dtype=dtype), b: whole(rng, 40, 7, dtype=dtype)}
    values[b].reshape(-1)[:4] = (0, 1, 2, 3)  # a divisor of 0 must not trap
    if dtype != "uint8":
        values[a][0, 0], values[b][0, 0] = np.iinfo(dtype).min, -1
    if fn == "pow":
        values[a][0, 0] = 2
    with np.errstate(all="ignore"):
        check([Binary(fn, a, b)], values)


SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0, -1.0, 1e-45, -3e38, 7.5, 0.5, -0.5, 1.5, 2.5], np.float32)


@pytest.mark.parametrize(
    "fn", ["relu", "clip", "leaky_relu", "sigmoid", "tanh", "exp", "hard_swish", "round", "sign", "abs"]
)
def test_special_values_of_unary_are_those_of_numpy(fn: str) -> None:
    x = placeholder(14)
    with np.errstate(all="ignore"):
        node = Unary(fn, x, PARAMS.get(fn, ()))
        np.testing.assert_allclose(run([node], {x: SPECIAL}), node.reference(SPECIAL), rtol=3e-7, atol=1e-38)


@pytest.mark.parametrize("fn", ["min", "max", "prelu", "less", "equal", "pow"])
def test_special_values_of_binary_are_those_of_numpy(fn: str) -> None:
    a, b = placeholder(14, 1), placeholder(14)
    node = Binary(fn, a, b)
    with np.errstate(all="ignore"):
        expected = node.reference(SPECIAL[:, None], SPECIAL)
        np.testing.assert_allclose(run([node], {a: SPECIAL[:, None], b: SPECIAL}), expected, rtol=1e-6)


@pytest.mark.parametrize("to", ["float32", "float64", "int8", "int32", "int64", "uint8", "bool", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "int32", "bool", "float64", "float16"])
def test_cast_and_where(dtype: str, to: str, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, 3, 20, 5, dtype=dtype)
    values[x] = np.abs(values[x]) if to == "uint8" else values[x]
    cast = Cast(x, to)
    zero = Const(np.zeros((), to))
    chosen = Where(Binary("equal", cast, zero), cast, zero)
    check([cast, chosen.cond, chosen], values)


@pytest.mark.parametrize(("source", "to"), LAYOUTS)
def test_broadcasting_over_layouts(source: Layout, to: Layout, rng: np.random.Generator) -> None:
    x = placeholder(*SHAPE)
    values = {x: whole(rng, *SHAPE)}
    total: Node = x
    nodes = []
    for shape in ((20, 1, 1), (1, 20, 1, 7), (7,), (), (2, 1, 5, 1), (1, 1, 1, 1)):
        leaf = placeholder(*shape)
        values[leaf] = whole(rng, *shape)
        total = Binary("add", total, leaf)
        nodes.append(total)
    check(nodes, values, [source] + [PLAIN] * 6, to)


def test_a_value_with_two_readers_is_computed_once(rng: np.random.Generator) -> None:
    """Without names the text would double at each of forty steps."""
    x, values = x_and_values(rng, 64)
    nodes: list[Node] = [x]
    for _ in range(40):
        nodes.append(Binary("add", nodes[-1], nodes[-1]))
        nodes.append(Binary("mul", nodes[-1], Const(np.float32(0.5))))
    check(nodes[1:], values)


def test_a_chain_longer_than_the_stack_of_python(rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, 64)
    nodes: list[Node] = [x]
    for _ in range(600):
        nodes.append(Binary("add", nodes[-1], Const(np.float32(1))))
        _ = nodes[-1].type
    check(nodes[1:], values)


def test_an_expression_that_doubles_at_every_step_is_refused() -> None:
    x = placeholder(64)
    nodes: list[Node] = [x]
    for _ in range(30):
        size = nodes[-1].shape[0] - 1
        a, b = (Slice(nodes[-1], (begin,), (size,), (1,)) for begin in (0, 1))
        nodes += [a, b, Binary("add", a, b)]
    with pytest.raises(UnsupportedError, match="read more than once"):
        generic(kernel_of(nodes[1:], [x], [PLAIN], PLAIN), native())


# Movement


@pytest.mark.parametrize(("source", "to"), LAYOUTS)
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(mode: str, source: Layout, to: Layout, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    check([Pad(x, ((0, 0), (0, 0), (1, 2), (3, 1)), mode, 5.0)], values, [source], to)
    if mode != "reflect":
        check([Pad(x, ((1, 0), (3, -2), (-1, 2), (0, 0)), mode, -1.0)], values, [source], to)


@pytest.mark.parametrize(("source", "to"), LAYOUTS)
@pytest.mark.parametrize("channels", [(16, 32), (20, 5, 24), (1, 3)])
def test_concat_of_channels(channels: tuple[int, ...], source: Layout, to: Layout, rng: np.random.Generator) -> None:
    xs = [placeholder(2, c, 5, 7) for c in channels]
    values = {x: whole(rng, *x.shape) for x in xs}
    layouts = [source if x.shape[1] > 1 else PLAIN for x in xs]
    joined = Concat(tuple(xs), 1)
    check([joined], values, layouts, to)
    check([joined, Unary("relu", joined)], values, layouts, to)


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_concat_of_other_axes(axis: int, rng: np.random.Generator) -> None:
    a, b = placeholder(2, 20, 4, 6), placeholder(*(3 if k == axis else e for k, e in enumerate((2, 20, 4, 6))))
    check([Concat((a, b, a), axis)], {a: whole(rng, *a.shape), b: whole(rng, *b.shape)}, [B16, B8], B16)


@pytest.mark.parametrize(("source", "to"), LAYOUTS)
def test_slice(source: Layout, to: Layout, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    check([Slice(x, (0, 3, 1, 6), (2, 13, 4, 3), (1, 1, 1, -2))], values, [source], to)
    check([Slice(x, (1, 18, 0, 0), (1, 6, 5, 7), (1, -3, 1, 1))], values, [source], to)


@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (0, 3, 1, 2), (3, 2, 1, 0), (0, 1, 3, 2), (1, 0, 2, 3)])
def test_transpose(perm: tuple[int, ...], rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    for source, to in LAYOUTS:
        check([Transpose(x, perm)], values, [source], to)


@pytest.mark.parametrize(("source", "to"), LAYOUTS)
def test_channel_shuffle(source: Layout, to: Layout, rng: np.random.Generator) -> None:
    a, b = placeholder(1, 29, 5, 7), placeholder(1, 29, 5, 7)
    joined = Concat((a, b), 1)
    split = Reshape(joined, (1, 2, 29, 5, 7))
    turned = Transpose(split, (0, 2, 1, 3, 4))
    back = Reshape(turned, (1, 58, 5, 7))
    half = Slice(back, (0, 29, 0, 0), (1, 29, 5, 7), (1, 1, 1, 1))
    values = {a: whole(rng, *a.shape), b: whole(rng, *b.shape)}
    check([joined, split, turned, back], values, [source] * 2, to)
    check([joined, split, turned, back, half], values, [source] * 2, to)


@pytest.mark.parametrize("to", [(2, 700), (40, 5, 7), (2, 4, 5, 5, 7), (1, 1400), (1400,), (5, 280)])
def test_reshape(to: tuple[int, ...], rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    for source in (PLAIN, B16):
        check([Reshape(x, to)], values, [source])


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_gather(axis: int, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    extent = SHAPE[axis]
    for shape in ((), (3,), (2, 2)):
        indices = placeholder(*shape, dtype="int64")
        values[indices] = rng.integers(-extent, extent, shape)
        check([Gather(x, indices, axis)], values, [B16, PLAIN])
        del values[indices]


def test_gather_stays_inside_whatever_the_indices(rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, 30, 5)
    indices = placeholder(4, dtype="int64")
    values[indices] = np.array([10**15, -(10**15), 29, -30])
    y = run([Gather(x, indices, 0)], values)
    np.testing.assert_array_equal(y, values[x][[29, 0, 29, 0]])


def test_broadcast_and_constants(rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, 20, 1, 7)
    wide = Broadcast(x, (2, 20, 5, 7))
    check([wide, Binary("mul", wide, Const(np.array([[3.0]], np.float32)))], values, None, B16)


RESIZES = [
    ("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "round_prefer_floor"),
    ("nearest", "half_pixel", "ceil"),
    ("linear", "half_pixel", ""), ("linear", "align_corners", ""), ("linear", "asymmetric", ""),
    ("linear", "pytorch_half_pixel", ""), ("cubic", "half_pixel", ""), ("cubic", "align_corners", ""),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "coordinate", "rounding"), RESIZES)
@pytest.mark.parametrize("to", [(10, 14), (3, 13), (15, 7)])
def test_resize(mode: str, coordinate: str, rounding: str, to: tuple[int, int], rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, 1, 20, 5, 7)
    scale = (1.0, 1.0, to[0] / 5, to[1] / 7)
    node = Resize(x, (1, 20, *to), scale, mode, coordinate, rounding or "round_prefer_floor")
    tolerance = 0 if mode == "nearest" else 2e-6
    for source, result in ((PLAIN, PLAIN), (B16, B16)):
        check([node, Unary("relu", node)], values, [source], result, tolerance=tolerance)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_with_antialias_and_outside_excluded(mode: str, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, 1, 5, 11, 13)
    for antialias, exclude in ((True, False), (False, True)):
        node = Resize(
            x,
            (1, 5, 4, 6),
            (1.0, 1.0, 4 / 11, 6 / 13),
            mode,
            "half_pixel",
            antialias=antialias,
            exclude_outside=exclude,
        )
        check([node], values, tolerance=2e-6)


def test_resize_by_scales_that_no_extents_give_and_of_integers(rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, 1, 3, 7, 9)
    check([Resize(x, (1, 3, 11, 15), (1.0, 1.0, 1.6, 1.7), "linear", "half_pixel")], values, tolerance=2e-6)
    check([Resize(x, (1, 3, 11, 15), (1.0, 1.0, 1.6, 1.7), "nearest", "half_pixel")], values)
    roi = (0, 0, 0.1, 0.2, 1, 1, 0.8, 1.3)
    crop = Resize(x, (1, 3, 8, 12), (1, 1, 8 / 7, 12 / 9), "linear", "tf_crop_and_resize", roi=roi, extrapolation=7.0)
    check([crop], values, tolerance=2e-6)
    y, integers = x_and_values(rng, 1, 3, 7, 9, dtype="int8")
    check([Resize(y, (1, 3, 14, 18), (1.0, 1.0, 2.0, 2.0), "linear", "half_pixel")], integers)


# Reductions


@pytest.mark.parametrize("fn", sorted(REDUCTIONS))
def test_reduce(fn: str, rng: np.random.Generator) -> None:
    x = placeholder(2, 20, 3, 4)
    data = rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
    for axes, keepdims, source in (
        ((2, 3), True, B16),
        ((1,), False, B16),
        ((3,), True, PLAIN),
        ((0, 2), False, PLAIN),
    ):
        to = B16 if keepdims and 1 not in axes and source == B16 else PLAIN
        check([Reduce(fn, x, axes, keepdims)], {x: data}, [source], to, tolerance=2e-6)
    check([Reduce(fn, x, (0, 1, 2, 3), False)], {x: data}, tolerance=4e-6)


@pytest.mark.parametrize("fn", ["sum", "mean", "max", "min", "prod", "l1", "sum_square"])
def test_reduce_integers(fn: str, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, 3, 7, 5, dtype="int32")
    for axes in ((0,), (1, 2), (2,)):
        check([Reduce(fn, x, axes)], values)


@pytest.mark.parametrize("axis", [0, 1, 3])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("fn", ["max", "min"])
def test_arg_reduce(fn: str, last: bool, axis: int, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    values[x][0, 3:5, 1, 2:4] = np.nan
    for source in (PLAIN, B16):
        check([ArgReduce(fn, x, axis, True, last)], values, [source])
    check([ArgReduce(fn, x, axis, False, last)], {x: np.full(SHAPE, -np.inf, np.float32)})


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("log", [False, True])
def test_softmax(axis: int, log: bool, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    for source, to in ((PLAIN, PLAIN), (B16, B16), (B16, PLAIN)):
        node = Softmax(x, axis, log)
        check([node, Unary("neg", node)], values, [source], to, tolerance=1e-6)


@pytest.mark.parametrize("axes", [(1,), (2, 3), (3,), (1, 2, 3)])
def test_normalize(axes: tuple[int, ...], rng: np.random.Generator) -> None:
    x = placeholder(*SHAPE)
    values = {x: rng.normal(3, 2, SHAPE).astype(np.float32)}
    scale = Const(np.float32(3))
    for source, to in ((PLAIN, PLAIN), (B16, B16), (PLAIN, B16), (Layout(20), Layout(20))):
        node = Normalize(x, axes, 1e-5)
        check([node, Binary("mul", node, scale)], values, [source], to, tolerance=3e-6)


def test_normalize_of_a_large_plane_far_from_zero(rng: np.random.Generator) -> None:
    """Sums of many elements, and a variance that is small next to the mean."""
    x = placeholder(1, 2, 300, 301)
    values = {x: rng.normal(100, 1, x.shape).astype(np.float32)}
    for source in (PLAIN, Layout(2)):
        check([Normalize(x, (2, 3), 1e-5)], values, [source], source, tolerance=1e-5)


@pytest.mark.parametrize("size", [5, 4, 1])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_lrn(size: int, beta: float, rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    for source, to in ((PLAIN, PLAIN), (B16, B16)):
        check([LRN(x, size, 0.1, beta, 1.5)], values, [source], to, tolerance=1e-6)


def test_a_map_before_and_after_the_core(rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    bias = placeholder(20, 1, 1)
    values[bias] = whole(rng, 20, 1, 1)
    for core in (
        lambda v: Reduce("sum", v, (2, 3)),
        lambda v: Pool("max", v, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (0, 0)),
        lambda v: Reduce("max", v, (1,)),
    ):
        before = Unary("abs", x)
        node = core(before)
        after = Binary("add", node, bias) if node.shape[1] == 20 else Unary("neg", node)
        used = values if node.shape[1] == 20 else {x: values[x]}
        check([before, node, after], used, [B16, PLAIN][: len(used)], B16 if after.shape[1] > 1 else PLAIN)


def test_what_follows_a_core_may_grow_or_move(rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    mean = Reduce("sum", x, (2, 3))
    gate = Binary("mul", x, mean)
    check([mean, gate], values, [B16], B16)
    flat = Reshape(mean, (2, 20))
    check([mean, flat], values, [B16])


# Windows


WINDOWS = [
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (0, 0), False),
    ((3, 3), (2, 2), ((0, 0), (0, 0)), (1, 1), (0, 1), False),
    ((2, 3), (1, 2), ((0, 1), (1, 2)), (2, 1), (0, 0), True), ((5, 7), (1, 1), ((0, 0), (0, 0)), (1, 1), (0, 0), False),
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), True), ((1, 9), (1, 1), ((0, 0), (4, 4)), (1, 1), (0, 0), False),
]  # fmt: skip


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kind", ["max", "average", "lp"])
def test_pool(kind: str, window: tuple, rng: np.random.Generator) -> None:
    kernel, stride, pad, dilation, overhang, count_pad = window
    x, values = x_and_values(rng, *SHAPE)
    node = Pool(kind, x, kernel, stride, pad, dilation, overhang, count_pad)
    for source, to in ((PLAIN, PLAIN), (B16, B16), (B8, PLAIN)):
        check([node], values, [source], to, tolerance=0 if kind == "max" else 1e-6)


@SOME
@given(data=st.data())
def test_pool_of_any_window(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    axes = [st.lists(st.integers(1, top), min_size=rank, max_size=rank) for top in (9, 3, 3, 2)]
    extents, kernel, stride, dilation = (tuple(data.draw(a)) for a in axes)
    pad = tuple(
        (data.draw(st.integers(0, k * d // 2)), data.draw(st.integers(0, k * d // 2)))
        for k, d in zip(kernel, dilation, strict=True)
    )
    x = placeholder(1, 9, *extents)
    kind = data.draw(st.sampled_from(["max", "average"]))
    node = Pool(kind, x, kernel, stride, pad, dilation, (0,) * rank, data.draw(st.booleans()))
    try:
        _ = node.type
    except ValueError:
        return
    layout = data.draw(st.sampled_from([PLAIN, B8]))
    check([node], {x: whole(np.random.default_rng(2), *x.shape)}, [layout], layout, tolerance=1e-6)


def test_max_pool_keeps_nan_and_takes_integers(rng: np.random.Generator) -> None:
    x, values = x_and_values(rng, *SHAPE)
    values[x][1, 7, 2, 3] = np.nan
    pool = lambda v: Pool("max", v, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (0, 0))  # noqa: E731
    for layout in (PLAIN, B16):
        check([pool(x)], values, [layout], layout)
    y, integers = x_and_values(rng, *SHAPE, dtype="int8")
    check([pool(y)], integers, [B16], B16)


CONVOLUTIONS = [
    (1, (1, 1), ((1, 1), (1, 1)), (1, 1)), (2, (2, 1), ((0, 1), (2, 0)), (1, 2)), (4, (1, 2), ((1, 1), (1, 1)), (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float32"])
def test_convolutions_by_weights_from_outside(case: tuple, dtype: str, rng: np.random.Generator) -> None:
    group, stride, pad, dilation = case
    shapes = [(2, 4, 7, 9), (12, 4 // group, 3, 3), (12,)]
    x, w, b = (placeholder(*s, dtype=SUMS.get(dtype, dtype) if len(s) == 1 else dtype) for s in shapes)
    values = {n: whole(rng, *n.shape, dtype=n.dtype) for n in (x, w, b)}
    for layouts, to in (([PLAIN] * 3, PLAIN), ([Layout(4), PLAIN, PLAIN], B8)):
        check([Conv(x, w, b, stride, pad, dilation, group)], values, layouts, to)
    turned = placeholder(4, 12 // group, 3, 3, dtype=dtype)
    values = {x: values[x], turned: whole(rng, *turned.shape, dtype=dtype)}
    check([ConvTranspose(x, turned, None, stride, pad, dilation, (0, 0), group)], values)


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank: int, rng: np.random.Generator) -> None:
    x, w = placeholder(1, 4, *(5, 4, 6)[:rank], dtype="int32"), placeholder(6, 4, *(2, 3, 3)[:rank], dtype="int32")
    values = {n: whole(rng, *n.shape, dtype="int32") for n in (x, w)}
    ones = (1,) * rank
    node = Conv(x, w, None, ones, ((1, 0),) * rank, ones, 1)
    check([node, Unary("relu", node)], values)


@pytest.mark.parametrize("shapes", [((7, 5), (5, 19)), ((2, 3, 6, 40), (3, 40, 35)), ((1, 9), (4, 9, 1))])
def test_matmul_of_activations(shapes: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> None:
    a, b = (placeholder(*s) for s in shapes)
    node = MatMul(a, b)
    check([node, Unary("neg", node)], {a: whole(rng, *a.shape), b: whole(rng, *b.shape)})


def test_every_kind_of_node_is_lowered() -> None:
    import convc.ir

    kinds = {v for v in vars(convc.ir).values() if isinstance(v, type) and issubclass(v, Node)}
    assert kinds - {*MAPS, *CORES} == {Node, convc.ir.Input, Const}


# The code itself


def test_a_chain_of_functions_compiles_in_time_linear_in_its_length(rng: np.random.Generator) -> None:
    """TVM's own handling of names would take minutes for the third exponential."""
    x = placeholder(64)
    nodes: list[Node] = [x]
    for fn in ("softplus", "tanh", "exp", "sigmoid", "exp", "mish", "exp", "log"):
        nodes.append(Unary(fn, nodes[-1]))
    check(nodes[1:], {x: rng.normal(size=64).astype(np.float32)}, tolerance=1e-6)


def test_threads_do_not_change_a_bit(rng: np.random.Generator) -> None:
    x = placeholder(1, 40, 40, 44)
    values = {x: rng.normal(size=x.shape).astype(np.float32)}
    for nodes in ([Unary("gelu", x)], [Softmax(x, 1)], [Normalize(x, (2, 3), 1e-5)], [Reduce("mean", x, (2, 3))]):
        for source in (PLAIN, B8):
            to = source if nodes[0].shape[1] > 1 else PLAIN
            one, many = (run(nodes, values, [source], to, tasks=t) for t in (1, 5))
            assert one.tobytes() == many.tobytes()


def body_of(nodes: list[Node], x: Node, source: Layout, to: Layout) -> str:
    text = assembly(generic(kernel_of(nodes, [x], [source], to), native()), "kernel", native())
    return text[: text.index("__tvm_ffi_main:")]


@pytest.mark.parametrize("layout", [PLAIN, B16])
def test_elementwise_in_one_layout_divides_no_index(layout: Layout) -> None:
    x = placeholder(1, 20, 14, 14)
    script = generic(kernel_of([Unary("relu", x)], [x], [layout], layout), native()).mod.script()
    assert "//" not in script and "%" not in script


@pytest.mark.parametrize(
    "fn", ["exp", "log", "tanh", "sigmoid", "erf", "gelu", "swish", "mish", "softplus", "elu", "sin"]
)
@pytest.mark.parametrize("layout", [PLAIN, B16])
def test_no_call_in_an_elementwise_kernel(fn: str, layout: Layout) -> None:
    x = placeholder(1, 20, 14, 14)
    text = body_of([Unary(fn, x, PARAMS.get(fn, ()))], x, layout, layout)
    assert not re.search(r"\bcall", text)
    register = {4: "xmm", 8: "ymm", 16: "zmm"}[native().lanes]
    assert len(re.findall(rf"%{register}\d+", text)) > 20


@pytest.mark.parametrize(("source", "to"), [(PLAIN, B16), (B16, PLAIN)])
def test_a_change_of_layout_moves_vectors(source: Layout, to: Layout) -> None:
    """At most three instructions an element of a tile, scalar moves aside: a loop over elements takes more."""
    x = placeholder(1, 32, 14, 14)
    text = body_of([], x, source, to)
    scalar = len(re.findall(r"\tv?movss\t", text))
    vector = len(re.findall(r"\tv?(?:mov[au]ps|movup[sd]|permt2ps|shufps|unpck|blendps|insert)", text))
    assert vector > 4 * scalar
