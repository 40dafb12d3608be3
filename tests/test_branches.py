"""Do parallel convolutions become one, and only where that does not cost more?"""

from __future__ import annotations

import pytest
from graphs import X, const, conv, image, kinds, simplified
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convc.ir import (
    Binary,
    Conv,
    Node,
    Unary,
)


def batch_norm(x: Node) -> Node:
    shape = (x.shape[1], *(1,) * (x.type.rank - 2))
    return Binary("add", Binary("mul", x, const(*shape)), const(*shape))


def total(*terms: Node) -> Node:
    y = terms[0]
    for term in terms[1:]:
        y = Binary("add", y, term)
    return y


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_repvgg_becomes_one_convolution(rank: int, group: int) -> None:
    x = image(1, 4, *(5,) * rank)
    y = total(
        batch_norm(conv(x, 4, 3, group=group, bias=False)),
        batch_norm(conv(x, 4, 1, group=group, bias=False)),
        batch_norm(x),
        x,
    )
    assert kinds(simplified(Unary("relu", y))) == {"Conv": 1, "relu": 1}


def test_dilated_branches_become_one_large_kernel() -> None:
    x = image(1, 4, 15, 15)
    branches = [conv(x, 4, k, group=4, dilation=d) for k, d in ((3, 2), (3, 3), (13, 1), (5, 2))]
    graph = simplified(total(*map(batch_norm, branches)))
    assert kinds(graph) == {"Conv": 1}
    (merged,) = [n for n in graph.nodes if isinstance(n, Conv)]
    assert merged.w.shape == (4, 1, 13, 13) and merged.pad == ((6, 6), (6, 6))


def test_equal_dilations_stay_dilated() -> None:
    graph = simplified(total(conv(X, 4, 3, dilation=2), conv(X, 4, 1)))
    (merged,) = [n for n in graph.nodes if isinstance(n, Conv)]
    assert (merged.w.shape, merged.dilation) == ((4, 4, 3, 3), (2, 2))


def test_crossed_kernels_merge() -> None:
    w1, w2 = const(4, 4, 1, 3), const(4, 4, 3, 1)
    row = Conv(X, w1, None, (1, 1), ((0, 0), (1, 1)), (1, 1), 1)
    column = Conv(X, w2, const(4), (1, 1), ((1, 1), (0, 0)), (1, 1), 1)
    assert kinds(simplified(total(row, conv(X, 4), column))) == {"Conv": 1}
    assert kinds(simplified(total(row, column))) == {"Conv": 2, "add": 1}


def test_strided_branches_merge() -> None:
    a = conv(X, 8, 3, stride=2)
    b = Conv(X, const(8, 4, 1, 1), None, (2, 2), ((0, 0), (0, 0)), (1, 1), 1)
    graph = simplified(total(a, b))
    assert kinds(graph) == {"Conv": 1}


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5)),
    st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 8)),
)
def test_any_two_kernels_in_one_place(
    a: tuple[int, int, int], b: tuple[int, int, int], place: tuple[int, int, int]
) -> None:
    """Whatever the kernels, dilations and offsets: two convolutions with equal extents merge rightly."""
    (stride, out, extent), convs = place, []
    x = image(1, 2, extent)
    for kernel, dilation, before in (a, b):
        after = (out - 1) * stride + (kernel - 1) * dilation + 1 - extent - before
        assume(after >= 0)
        convs.append(Conv(x, const(2, 2, kernel), const(2), (stride,), ((before, after),), (dilation,), 1))
    assert kinds(simplified(total(*convs)))["Conv"] in (1, 2)


def test_a_dense_and_a_depthwise_branch_stay_apart() -> None:
    x = image(1, 16, 6, 6)
    y = total(conv(x, 16, 1), conv(x, 16, 3, group=16))
    assert kinds(simplified(y)) == {"Conv": 2, "add": 1}


def test_branches_of_other_values_or_with_other_readers_stay() -> None:
    z = Unary("tanh", X)
    assert kinds(simplified(total(conv(X, 4), conv(z, 4, 1)))) == {"tanh": 1, "Conv": 2, "add": 1}
    first = conv(X, 4)
    assert kinds(simplified(total(first, conv(X, 4, 1)), Unary("exp", first))) == {"Conv": 2, "add": 1, "exp": 1}
    assert kinds(simplified(total(conv(X, 4), conv(X, 1)))) == {"Conv": 2, "add": 1}


def test_a_residual_that_is_not_parallel_stays() -> None:
    y = total(conv(Unary("relu", conv(X, 4)), 4), X)
    assert kinds(simplified(y)) == {"Conv": 2, "relu": 1, "add": 1}
