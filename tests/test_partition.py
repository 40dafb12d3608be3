"""Which nodes become one kernel?"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from plan_cases import add, channels_of, conv, graph_of, graphs, image, integers, relu, shuffled

from convc.ir import (
    Binary,
    Broadcast,
    Cast,
    Concat,
    Const,
    Conv,
    Graph,
    Input,
    MatMul,
    Node,
    Pool,
    Reshape,
    Softmax,
    TensorType,
    Unary,
)
from convc.plan import partition, show
from convc.plan.plan import is_literal


def fused(graph: Graph) -> list[str]:
    """Each group as the kinds of its nodes."""
    return ["+".join(str(getattr(n, "fn", type(n).__name__)).lower() for n in g.nodes) for g in partition(graph).groups]


@settings(max_examples=100, deadline=None)
@given(graphs)
def test_every_node_is_in_one_group_that_only_its_result_leaves(graph: Graph) -> None:
    plan = partition(graph)
    nodes = [n for g in plan.groups for n in g.nodes]
    whole = Graph(plan.inputs, plan.outputs)
    assert len(nodes) == len(set(nodes))
    assert set(nodes) == {n for n in whole.nodes if not isinstance(n, Input | Const)}
    outputs = {n for _, n in plan.outputs}
    for group in plan.groups:
        inside = set(group.nodes)
        for node in group.nodes[:-1]:
            assert node not in outputs and set(whole.users[node]) <= inside


@settings(max_examples=100, deadline=None)
@given(graphs)
def test_groups_stand_in_an_order_of_execution_with_all_that_they_read(graph: Graph) -> None:
    plan = partition(graph)
    ready: set[Node] = set(plan.inputs)
    for group in plan.groups:
        for node in group.nodes:
            for arg in node.args:
                known = isinstance(arg, Const) or arg in ready or arg in group.nodes
                assert known and (arg in group.nodes or arg in group.reads or is_literal(arg))
        ready.add(group.result)
    assert len({n for _, n in plan.outputs} | ready) == len(ready)


def test_the_same_graph_gives_the_same_plan() -> None:
    def build() -> str:
        x = conv(image(1, 8, 4, 4), 8)
        return show(partition(graph_of(add(relu(x), conv(x, 8, taps=3)), relu(x))))

    assert build() == build()


def test_bias_residual_and_activation_are_the_epilogue_of_the_later_convolution() -> None:
    x = image(1, 8, 4, 4)
    assert fused(graph_of(relu(add(conv(x, 8), conv(x, 8, taps=3))))) == ["conv+add", "conv+add+add+relu"]
    (group,) = partition(graph_of(conv(x, 8))).groups
    assert [r.shape for r in group.reads] == [(1, 8, 4, 4), (8, 8, 1, 1), (1, 8, 1, 1)]


def test_a_matrix_product_takes_its_bias_and_activation() -> None:
    x = image(2, 16)
    dense = add(MatMul(x, Const(integers(0, 16, 8))), Const(integers(1, 8)))
    assert fused(graph_of(relu(dense))) == ["matmul+add+relu"]
    assert fused(graph_of(relu(MatMul(image(2, 3), image(3, 4, label="b"))))) == ["matmul+relu"]


def test_a_value_that_others_need_ends_its_group() -> None:
    y = conv(image(1, 8, 4, 4), 8, bias=False)
    assert fused(graph_of(relu(y), y)) == ["conv", "relu"]
    assert fused(graph_of(relu(y), Unary("exp", y))) == ["conv", "relu", "exp"]


def test_branches_that_meet_again_are_one_epilogue() -> None:
    """x * sigmoid(x), as exporters write swish."""
    y = conv(image(1, 8, 4, 4), 8, bias=False)
    assert fused(graph_of(Binary("mul", y, Unary("sigmoid", y)))) == ["conv+sigmoid+mul"]


def test_an_epilogue_keeps_shape_and_type() -> None:
    y = conv(image(1, 8, 4, 4), 8, bias=False)
    wide = Binary("mul", y, image(2, 8, 4, 4, label="b"))
    assert fused(graph_of(wide)) == ["conv", "mul"]
    assert fused(graph_of(Cast(relu(y), "int32"))) == ["conv+relu", "cast"]
    assert fused(graph_of(Cast(Cast(y, "float16"), "float32"))) == ["conv+cast+cast"]


def test_an_epilogue_of_8_bit_products_may_end_in_8_bits() -> None:
    x, ones = Input("x", TensorType((1, 2, 4, 4), "uint8")), (1, 1)
    y = Conv(x, Const(np.ones((2, 2, 1, 1), np.int8)), Const(np.ones(2, np.int32)), ones, ((0, 0),) * 2, ones, 1)
    scaled = Unary("round", Binary("mul", Cast(y, "float32"), Const(np.array(0.5, np.float32))))
    narrow = Cast(Unary("clip", scaled, (0.0, 255.0)), "uint8")
    assert fused(graph_of(narrow)) == ["conv+add+cast+mul+round+clip+cast"]
    assert fused(graph_of(Cast(narrow, "int64"))) == ["conv+add+cast+mul+round+clip+cast", "cast"]


def test_weights_are_not_read_a_second_time_by_the_epilogue() -> None:
    w = Const(integers(0, 4, 4))
    plan = partition(graph_of(add(MatMul(image(4, 4), w), w)))
    assert [len(g.nodes) for g in plan.groups] == [1, 1]


def test_convolutions_that_no_algorithm_takes_are_generic() -> None:
    one = ((0, 0), (0, 0))
    x, w = Input("x", TensorType((1, 2, 4, 4), "int32")), Const(np.ones((2, 2, 1, 1), np.int32))
    ints = Conv(x, w, None, (1, 1), one, (1, 1), 1)
    given_weights = Conv(image(1, 2, 4, 4), image(2, 2, 1, 1, label="w"), None, (1, 1), one, (1, 1), 1)
    for node in (ints, given_weights):
        (group,) = partition(graph_of(Unary("relu", node))).groups
        assert group.anchor is None and len(group.nodes) == 2


def test_an_expensive_function_is_not_computed_once_for_every_window() -> None:
    x = image(1, 8, 8, 8)

    def pooled(fn: str, stride: int) -> list[str]:
        return fused(graph_of(Pool("max", Unary(fn, x), (2, 2), (stride,) * 2, ((0, 0),) * 2, (1, 1), (0, 0))))

    assert pooled("relu", 1) == ["relu+pool"]
    assert pooled("exp", 1) == ["exp", "pool"]
    assert pooled("exp", 2) == ["exp+pool"]


def test_nothing_is_computed_again_for_a_broadcast() -> None:
    row = image(1, 8, 1, 1)
    assert fused(graph_of(Broadcast(Unary("exp", row), (1, 8, 4, 4)))) == ["exp", "broadcast"]
    assert fused(graph_of(Binary("mul", Unary("sigmoid", row), image(1, 8, 4, 4, label="b")))) == ["sigmoid", "mul"]
    assert fused(graph_of(relu(Broadcast(row, (1, 8, 4, 4))))) == ["broadcast+relu"]


def test_a_channel_shuffle_is_one_group_and_a_lone_reshape_too() -> None:
    x = relu(image(1, 8, 4, 4))
    assert fused(graph_of(shuffled(x, 2))) == ["relu+reshape+transpose+reshape"]
    assert fused(graph_of(Softmax(Reshape(x, (1, 128)), 1))) == ["relu", "reshape", "softmax"]


def test_concats_and_aligned_slices_stand_alone() -> None:
    a, b = image(1, 8, 4, 4), image(1, 8, 4, 4, label="b")
    assert fused(graph_of(relu(Concat((relu(a), relu(b)), 1)))) == ["relu", "relu", "concat", "relu"]
    whole = relu(image(1, 16, 4, 4))
    assert fused(graph_of(relu(channels_of(whole, 8, 8)), whole)) == ["relu", "slice", "relu"]
    odd = relu(image(1, 16, 3, 3))
    assert fused(graph_of(relu(channels_of(odd, 3, 8)), odd)) == ["relu", "slice+relu"]


def test_expressions_that_double_stay_short() -> None:
    """Thirty times x * sigmoid(x) has a billion operations when written out."""
    x: Node = conv(image(1, 8, 4, 4), 8)
    y: Node = image(1, 8, 4, 4, label="b")
    for _ in range(30):
        x = Binary("mul", x, Unary("sigmoid", x))
        y = Binary("mul", y, Unary("sigmoid", y))
    sizes = [len(g.nodes) for g in partition(graph_of(x, y)).groups]
    assert max(sizes) <= 14 and sum(sizes) == 122
