"""Are the kernels for GPUs that are no dense convolution right? Their CUDA text runs on the shim, every access checked,
against the nodes' own references; lanes that pad a block hold NaN."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from cuda_shim import needs_shim
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels import kernel_of, laid_out, placeholder, read_back, reference, whole
from test_cuda_algorithms import run_on_shim

from convc.ir import (
    LRN,
    ArgReduce,
    Binary,
    Cast,
    Concat,
    Const,
    Conv,
    ConvTranspose,
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
    Transpose,
    Unary,
)
from convc.layout import PLAIN, Layout
from convc.plan.plan import Copy
from convc.target import GpuTarget, parse_target

pytestmark = needs_shim

B4 = Layout(4)
SOME = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
Values = dict[Node, np.ndarray]


@functools.cache
def machine() -> GpuTarget:
    found = parse_target("cuda/sm_80")
    assert isinstance(found, GpuTarget)
    return found


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def run(nodes: Sequence[Node], values: Values, layouts: Sequence[Layout], result: Layout = PLAIN) -> np.ndarray:
    last = nodes[-1] if nodes else next(iter(values))
    y = np.empty(result.physical(last.shape), last.dtype)
    given_ = zip(values.values(), layouts, strict=True)
    arrays = [np.ascontiguousarray(laid_out(v, layout).array) for v, layout in given_]
    run_on_shim(kernel_of(nodes, tuple(values), layouts, result), machine(), *arrays, y)
    return read_back(y, last.shape, result)


def check(
    nodes: Sequence[Node], values: Values, layouts: Sequence[Layout], result: Layout = PLAIN, *, tolerance: float = 0.0
) -> None:
    """Exactly the reference, or within `tolerance` of its largest magnitude."""
    y, expected = run(nodes, values, layouts, result), reference(nodes, values)
    assert y.shape == expected.shape
    if not tolerance:
        np.testing.assert_array_equal(y, expected.astype(y.dtype))
        return
    scale = float(np.max(np.abs(expected[np.isfinite(expected)]), initial=1e-30))
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * scale)


def blocked(layout: Layout, node: Node) -> Layout:
    """`layout` where the node has channels for it."""
    return layout if len(node.shape) >= 3 and node.shape[1] > 1 else PLAIN


# Folds


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
@pytest.mark.parametrize("axes", [(1,), (2, 3), (1, 2, 3), (0, 1, 2, 3), (0, 2), (3,)], ids=str)
def test_whole_numbers_are_summed_exactly(axes: tuple[int, ...], layout: Layout, rng: np.random.Generator) -> None:
    """33 channels fill no block; 1989 elements of an image no team."""
    x = placeholder(2, 33, 9, 7)
    node = Reduce("sum", x, axes)
    check([node], {x: whole(rng, *x.shape)}, [layout], blocked(layout, node))


@SOME
@given(
    shape=st.lists(st.integers(1, 70), min_size=2, max_size=4).filter(lambda s: 40 < np.prod(s) < 60_000),
    folded=st.integers(1, 15),
    node=st.sampled_from(["sum", "max", "min", "prod", "sum_square"]),
    dtype=st.sampled_from(["float32", "int8", "int64", "float64", "uint8"]),
    layout=st.sampled_from([PLAIN, B4]),
)
def test_folds_of_any_shape(shape: list[int], folded: int, node: str, dtype: str, layout: Layout) -> None:
    axes = tuple(a for a in range(len(shape)) if folded >> a & 1) or (0,)
    x = placeholder(*shape, dtype=dtype)
    values = whole(np.random.default_rng(1), *shape, dtype=dtype)
    values = np.sign(values) + (values == 0).astype(dtype) if node == "prod" else values
    reduced = Reduce(node, x, axes)
    check([reduced], {x: values.astype(dtype)}, [blocked(layout, x)], blocked(layout, reduced))


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_and_norms(axis: int, layout: Layout, rng: np.random.Generator) -> None:
    x = placeholder(1, 37, 12, 40)
    values = {x: rng.standard_normal(x.shape).astype(np.float32)}
    for node in (Softmax(x, axis), Normalize(x, tuple(range(axis, 4)), 1e-5), Reduce("log_sum_exp", x, (axis,))):
        check([node], values, [layout], blocked(layout, node), tolerance=2e-6)


@pytest.mark.parametrize("shape", [(1, 1000), (3, 4097), (200, 33)])
def test_softmax_over_classes(shape: tuple[int, int], rng: np.random.Generator) -> None:
    x = placeholder(*shape)
    check([Softmax(x, 1, log=True)], {x: rng.standard_normal(shape).astype(np.float32)}, [PLAIN], tolerance=1e-6)


def test_errors_of_long_sums_stay_small(rng: np.random.Generator) -> None:
    """A million numbers around 1: summed one after the other their mean would be off by about 1e-5."""
    x = placeholder(2, 512, 1024)
    values = (1 + rng.random(x.shape)).astype(np.float32)
    check([Reduce("mean", x, (1, 2))], {x: values}, [PLAIN], tolerance=2e-7)


@pytest.mark.parametrize("axis", [1, 3])
def test_positions_are_first_or_last_and_nan_beats_all(axis: int, rng: np.random.Generator) -> None:
    x = placeholder(1, 50, 6, 65)
    values = whole(rng, *x.shape)  # few values, so that many are equal
    values[0, 7, 2, 11] = values[0, 40, 2, 50] = np.nan
    for fn, last in (("max", False), ("min", True)):
        y = run([ArgReduce(fn, x, axis, last=last)], {x: values}, [PLAIN])
        np.testing.assert_array_equal(y, ArgReduce(fn, x, axis, last=last).reference(values))


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
def test_one_nan_is_found_by_every_fold(layout: Layout, rng: np.random.Generator) -> None:
    x = placeholder(1, 37, 40, 40)
    values = rng.standard_normal(x.shape).astype(np.float32)
    values[0, 5, 30, 39] = np.nan
    for node in (Reduce("max", x, (2, 3)), Reduce("min", x, (1,)), Reduce("sum", x, (1, 2, 3))):
        y = run([node], {x: values}, [layout], blocked(layout, node))
        np.testing.assert_array_equal(np.isnan(y), np.isnan(node.reference(values)))


# Maps

SHAPE = (2, 21, 5, 7)  # no block divides the channels, no access a row
EVEN = (2, 20, 4, 8)
LAYOUTS = [(PLAIN, PLAIN), (PLAIN, B4), (B4, PLAIN), (B4, B4)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [SHAPE, EVEN], ids=str)
def test_copies_between_layouts(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    x = placeholder(*shape, dtype=dtype)
    values = whole(rng, *shape, dtype=dtype)
    for source, to in LAYOUTS:
        np.testing.assert_array_equal(run([Copy(x)], {x: values}, [source], to), values)


def test_lanes_that_pad_a_block_become_zero(rng: np.random.Generator) -> None:
    x = placeholder(1, 5, 3, 3)
    y = np.empty(B4.physical(x.shape), "float32")
    run_on_shim(kernel_of([Copy(x)], (x,), [PLAIN], B4), machine(), whole(rng, *x.shape), y)
    assert not y[:, 1, ..., 1:].any()


@SOME
@given(
    shape=st.lists(st.integers(1, 20), min_size=3, max_size=5).filter(lambda s: np.prod(s) < 20_000 and s[1] > 1),
    kind=st.sampled_from(["transpose", "slice", "pad", "reflect", "concat", "reshape"]),
    pair=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 99),
)
def test_moves_of_any_shape(shape: list[int], kind: str, pair: tuple[Layout, Layout], seed: int) -> None:
    rng, x = np.random.default_rng(seed), placeholder(*shape)
    values = {x: whole(rng, *shape)}
    node = moved(kind, x, rng)
    if isinstance(node, Concat):
        values[node.xs[1]] = whole(rng, *node.xs[1].shape)
    check([node], values, [blocked(pair[0], read) for read in values], blocked(pair[1], node))


def moved(kind: str, x: Node, rng: np.random.Generator) -> Node:
    """A node that moves the elements of x, drawn."""
    rank, shape = len(x.shape), x.shape
    if kind == "transpose":
        return Transpose(x, tuple(int(a) for a in rng.permutation(rank)))
    if kind == "slice":
        begin = [int(rng.integers(0, e)) for e in shape]
        size = [int(rng.integers(1, e - b + 1)) for b, e in zip(begin, shape, strict=True)]
        return Slice(x, tuple(begin), tuple((s + 1) // 2 for s in size), (2,) * rank)
    if kind == "concat":
        axis = int(rng.integers(0, rank))
        other = [int(rng.integers(1, 9)) if a == axis else e for a, e in enumerate(shape)]
        return Concat((x, placeholder(*other)), axis)
    if kind == "reshape":
        return Reshape(x, (shape[0], int(np.prod(shape[1:]))))
    most = [3 if kind == "pad" else min(3, e) for e in shape]
    pad = tuple((int(rng.integers(0, m)), int(rng.integers(0, m))) for m in most)
    return Pad(x, pad, "constant" if kind == "pad" else kind)


@pytest.mark.parametrize("layouts", [(B4, B4, B4), (PLAIN, PLAIN, PLAIN), (B4, PLAIN, B4), (PLAIN, B4, B4)], ids=str)
@pytest.mark.parametrize("shape", [SHAPE, EVEN], ids=str)
def test_chains(shape: tuple[int, ...], layouts: tuple[Layout, ...], rng: np.random.Generator) -> None:
    """Per channel, per element and by itself; x is read at two places of the chain."""
    x, scale = placeholder(*shape), Const(whole(rng, 1, shape[1], 1, 1))
    scaled = Binary("mul", x, scale)
    nodes = [scaled, Binary("add", scaled, x), Unary("relu", Binary("add", scaled, x))]
    nodes[2] = Unary("relu", nodes[1])
    check(nodes, {x: whole(rng, *shape), scale: scale.value}, layouts[:2], layouts[2])


def test_types_of_several_sizes_share_a_strip(rng: np.random.Generator) -> None:
    x, y = placeholder(*EVEN, dtype="int8"), placeholder(*EVEN, dtype="float64")
    wide = Cast(x, "float64")
    check([wide, Binary("add", wide, y)], {x: whole(rng, *EVEN, dtype="int8"), y: whole(rng, *EVEN).astype("float64")},
          [B4, B4], B4)  # fmt: skip


def accesses(node: Node, x: Node, source: Layout, result: Layout) -> tuple[int, int]:
    """Loads from and stores to parameters of 16 bytes, in the text."""
    from convc.lower.cuda import source_of
    from convc.lower.generic import generic

    text = source_of(generic(kernel_of([node], [x], [source], result), machine()), "k", machine()).text
    return text.count("= *(float4*)(x"), text.count("*(float4*)(y_flat_ptr")


@pytest.mark.parametrize(
    ("shape", "source", "to", "expected"),
    [
        (EVEN, PLAIN, PLAIN, (1, 1)), (SHAPE, PLAIN, PLAIN, (1, 1)), (EVEN, B4, B4, (1, 1)), (SHAPE, B4, B4, (1, 1)),
        (EVEN, PLAIN, B4, (0, 1)), (EVEN, B4, PLAIN, (1, 0)),
    ],
)  # fmt: skip
def test_what_lies_alike_moves_16_bytes_an_access(
    shape: tuple[int, ...], source: Layout, to: Layout, expected: tuple[int, int]
) -> None:
    x = placeholder(*shape)
    assert accesses(Unary("relu", x), x, source, to) == expected


# Windows, and what reads an element many times


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pools(kind: str, layout: Layout, rng: np.random.Generator) -> None:
    x = placeholder(2, 21, 11, 13)
    values = {x: whole(rng, *x.shape)}
    pool = Pool(kind, x, (3, 2), (2, 2), ((1, 1), (0, 1)), (1, 1), (0, 0))
    check([pool, Unary("relu", pool)], values, [layout], layout, tolerance=1e-6)
    check([Pool(kind, x, (11, 13), (1, 1), ((0, 0), (0, 0)), (1, 1), (0, 0))], values, [layout], layout, tolerance=1e-6)


def test_a_pool_reads_and_writes_the_lanes_of_a_block_at_once() -> None:
    x = placeholder(1, 8, 6, 6)
    pool = Pool("max", x, (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), (0, 0))
    assert accesses(pool, x, B4, B4) == (2, 1)  # the taps of a row, in a loop over rows


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
def test_local_response(layout: Layout, rng: np.random.Generator) -> None:
    x = placeholder(2, 21, 5, 7)
    check([LRN(x, 5, 1e-2, 0.75, 1.0)], {x: whole(rng, *x.shape)}, [layout], layout, tolerance=2e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizes(mode: str, rng: np.random.Generator) -> None:
    x = placeholder(2, 6, 11, 13)
    node = Resize(x, (2, 6, 17, 29), (1, 1, 17 / 11, 29 / 13), mode, "half_pixel")
    for layout in (PLAIN, B4):
        check([node], {x: whole(rng, *x.shape)}, [layout], layout, tolerance=2e-6)


def test_products_of_activations(rng: np.random.Generator) -> None:
    for shapes in (((3, 17, 33), (3, 33, 19)), ((2, 1, 70, 9), (3, 9, 65)), ((5, 130), (130, 3))):
        a, b = placeholder(*shapes[0]), placeholder(*shapes[1])
        check([MatMul(a, b)], {a: whole(rng, *shapes[0]), b: whole(rng, *shapes[1])}, [PLAIN, PLAIN])


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_convolutions_by_weights_from_outside(dtype: str, group: int, rng: np.random.Generator) -> None:
    x, pad = placeholder(2, 6, 9, 11, dtype=dtype), ((1, 1), (1, 0))
    w, turned = placeholder(9, 6 // group, 3, 3, dtype=dtype), placeholder(6, 9 // group, 3, 3, dtype=dtype)
    given_ = {x: whole(rng, *x.shape, dtype=dtype)}
    conv = Conv(x, w, None, (2, 1), pad, (1, 1), group)
    check([conv], {**given_, w: whole(rng, *w.shape, dtype=dtype)}, [B4, PLAIN], B4)
    back = ConvTranspose(x, turned, None, (2, 2), pad, (1, 1), (0, 0), group)
    check([back], {**given_, turned: whole(rng, *turned.shape, dtype=dtype)}, [PLAIN, PLAIN])
