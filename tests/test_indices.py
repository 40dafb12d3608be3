"""Does generated code read what its index says? Indices that divide a variable more than once, and every way to move
elements, with the loops around an element merged into one as for threads, which the index takes apart again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernels import Memory, check, compiled, placeholder, whole
from tvm import te
from tvm.s_tir import Schedule

from convc.ir import Broadcast, Concat, Node, Pad, Reshape, Resize, Slice, Transpose
from convc.ir.conv import Pads
from convc.layout import blocked

pytestmark = pytest.mark.slow  # hundreds of kernels are compiled
SOME = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MODES = ("constant", "edge", "reflect", "wrap")
LARGEST = 20_000  # elements that a chain of moves may grow to
Steps = Sequence[tuple[str, int]]
Sum = Sequence[tuple[int, Steps]]  # of multiples of a variable after some steps


@pytest.fixture(autouse=True, scope="module")
def merged_loops() -> Iterator[None]:
    """Every kernel is worth threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convc.lower.nest.PARALLEL_WORK", 1)
        patch.setattr("convc.lower.maps.PARALLEL_WORK", 1)
        yield


# Indices


def index(terms: Sum, i: Any) -> Any:
    """The sum at i, a number or an expression."""
    total = 0
    for scale, steps in terms:
        at = i
        for operation, n in steps:
            at = at + n if operation == "+" else at // n if operation == "//" else at % n
        total = total + scale * at
    return total


def check_indices(sums: Sequence[Sum], extent: int) -> None:
    """A kernel that reads x[sum] for every i below `extent`, with x[k] = k from some first k on."""
    expected = np.array([[index(terms, i) for i in range(extent)] for terms in sums])
    margin = int(expected.max() - expected.min()) + 64  # so that what is read instead is in x, too
    size, first = 3 * margin, margin - int(expected.min())
    x = te.placeholder((size,), "int32", "x")
    ys = [te.compute((extent,), partial(lambda terms, i: x[index(terms, i) + first], terms), "y") for terms in sums]
    schedule = Schedule(tvm.IRModule({"main": te.create_prim_func([x, *ys])}))
    given, found = Memory((size,), "int32"), [Memory((extent,), "int32") for _ in sums]
    given.array[...] = np.arange(-first, size - first)
    assert compiled(schedule)(given.pointer, *(y.pointer for y in found)) == 0
    for y, row, terms in zip(found, expected, sums, strict=True):
        np.testing.assert_array_equal(y.array, row, err_msg=str(terms))


def test_an_index_divided_with_and_without_an_offset() -> None:
    check_indices([[(1, [("%", 4), ("+", 1), ("//", 2)])]], 8)
    check_indices([[(2, [("%", 4), ("//", 2)]), (1, [("+", 1), ("%", 2)])]], 8)
    check_indices([[(16, [("%", 2048), ("//", 32)]), (1, [("%", 32), ("+", 9), ("%", 16)])]], 2560)


DIVISORS = st.sampled_from([2, 3, 4, 6, 8, 16])
STEPS = st.lists(
    st.tuples(st.just("+"), st.integers(-9, 9)) | st.tuples(st.sampled_from(["//", "%"]), DIVISORS), max_size=4
)
SUMS = st.lists(st.tuples(st.sampled_from([1, 2, 4, 16, -1]), STEPS), min_size=1, max_size=3)


@SOME
@given(sums=st.lists(SUMS, min_size=10, max_size=20), extent=st.sampled_from([4, 6, 8, 12, 16, 24, 48, 77]))
def test_any_index(sums: list[Sum], extent: int) -> None:
    check_indices(sums, extent)


# Movement


def moved(x: Node, nodes: Sequence[Node], blocks: tuple[int, int]) -> None:
    values = {x: whole(np.random.default_rng(0), *x.shape)}
    check(nodes, values, [blocked(x.shape, block=blocks[0])], blocked(nodes[-1].shape, block=blocks[1]))


@st.composite
def padded(draw: st.DrawFn, x: Node) -> Node:
    """Cropped or grown on each side of each axis, by up to all its elements or as far as they reach."""
    mode = draw(st.sampled_from(MODES))
    pads = []
    for extent in x.shape:
        crop = draw(st.integers(0, extent - 1))
        begin = draw(st.integers(0, crop)) if draw(st.booleans()) else 0
        end = crop - begin if begin else 0
        most = extent - begin - end - (mode == "reflect")
        pads.append(tuple(-gone or draw(st.integers(0, most)) for gone in (begin, end)))
    return Pad(x, tuple(pads), mode, 5.0)


@st.composite
def sliced(draw: st.DrawFn, x: Node) -> Node:
    begins, sizes, steps = [], [], []
    for extent in x.shape:
        step = draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        size = draw(st.integers(1, -(-extent // abs(step))))
        begin = draw(st.integers(0, extent - 1 - (size - 1) * abs(step)))
        begins.append(begin if step > 0 else extent - 1 - begin)
        sizes.append(size)
        steps.append(step)
    return Slice(x, tuple(begins), tuple(sizes), tuple(steps))


@st.composite
def resized(draw: st.DrawFn, x: Node) -> Node:
    to = tuple(draw(st.sampled_from([e, 2 * e, max(e // 2, 1), e + 1])) for e in x.shape)
    scale = tuple(t / e for t, e in zip(to, x.shape, strict=True))
    coordinate, rounding = draw(st.sampled_from(["asymmetric", "half_pixel"])), draw(st.sampled_from(["floor", "ceil"]))
    return Resize(x, to, scale, "nearest", coordinate, rounding)


@st.composite
def joined(draw: st.DrawFn, x: Node) -> Node:
    return Concat((x,) * draw(st.integers(2, 3)), draw(st.integers(0, len(x.shape) - 1)))


@st.composite
def turned(draw: st.DrawFn, x: Node) -> Node:
    return Transpose(x, tuple(draw(st.permutations(range(len(x.shape))))))


@st.composite
def regrouped(draw: st.DrawFn, x: Node) -> Node:
    """One axis made two, or two made one."""
    axis, shape = draw(st.integers(0, len(x.shape) - 1)), x.shape
    if axis + 1 < len(shape) and draw(st.booleans()):
        return Reshape(x, (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]))
    inner = draw(st.sampled_from([d for d in range(1, shape[axis] + 1) if shape[axis] % d == 0]))
    return Reshape(x, (*shape[:axis], shape[axis] // inner, inner, *shape[axis + 1 :]))


@st.composite
def spread(draw: st.DrawFn, x: Node) -> Node:
    return Broadcast(x, (draw(st.integers(2, 3)), *x.shape))


MOVES = (padded, sliced, resized, joined, turned, regrouped, spread)
EXTENTS = st.sampled_from([1, 2, 3, 4, 5, 8, 16, 20])
SHAPES = st.tuples(st.integers(1, 2), EXTENTS, EXTENTS, EXTENTS)
BLOCKS = st.tuples(*[st.sampled_from([1, 4, 8, 16])] * 2)


@pytest.mark.parametrize(
    ("shape", "pads", "blocks"),
    [
        ((1, 8, 4, 2), ((0, 0), (0, 8), (0, 1), (1, 1)), (4, 8)),
        ((1, 2, 8, 4), ((0, 0), (2, 0), (7, 0), (2, 2)), (1, 4)),
        ((1, 32, 64, 16), ((0, 0), (16, 0), (0, 16), (7, 9)), (1, 16)),
    ],
)
def test_pad_wraps_channels_rows_and_columns_at_once(
    shape: tuple[int, ...], pads: Pads, blocks: tuple[int, int]
) -> None:
    x = placeholder(*shape)
    moved(x, [Pad(x, pads, "wrap")], blocks)


@SOME
@given(data=st.data(), shape=SHAPES, blocks=BLOCKS)
def test_any_pad(data: st.DataObject, shape: tuple[int, ...], blocks: tuple[int, int]) -> None:
    x = placeholder(*shape)
    moved(x, [data.draw(padded(x))], blocks)


@SOME
@given(data=st.data(), shape=SHAPES, blocks=BLOCKS)
def test_any_moves_one_after_the_other(data: st.DataObject, shape: tuple[int, ...], blocks: tuple[int, int]) -> None:
    """As in Tile (regrouped, spread, regrouped), DepthToSpace (regrouped, turned, regrouped), channel shuffles, ..."""
    nodes: list[Node] = [placeholder(*shape)]
    for move in data.draw(st.lists(st.sampled_from(MOVES), min_size=1, max_size=4)):
        node = data.draw(move(nodes[-1]))
        if node.type.elements > LARGEST:
            break
        nodes.append(node)
    assume(len(nodes) > 1)
    moved(nodes[0], nodes[1:], blocks)
