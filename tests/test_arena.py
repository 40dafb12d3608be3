"""Does everything lie where it is alone while it is needed, and does the placed plan compute what the graph means?"""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import (
    TARGET,
    Interpreter,
    channels_of,
    conv,
    fake,
    graph_of,
    graphs,
    image,
    inputs_of,
    integers,
    library,
    relu,
    shuffled,
)

from convc.ir import Binary, Concat, Const, Conv, Graph, Node, Reduce, Reshape, Unary
from convc.plan import partition, place, select
from convc.plan.homes import Block, allocate
from convc.plan.plan import Copy, Kernel, Plan, Slot
from convc.plan.views import buffer_bytes

blocks = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 6)), max_size=25).map(
    lambda found: [(size, first, first + more) for size, first, more in found]
)


def placed(graph: Graph, *blocks: int) -> Plan:
    with library(fake(blocks=blocks or (1, 8))):
        return place(select(partition(graph), TARGET, max_rel_err=1.0))


def check(plan: Plan, graph: Graph) -> None:
    """The placed plan computes the same bits as the graph."""
    inputs = inputs_of(graph)
    expected, found = graph.evaluate(inputs), Interpreter(plan, inputs).run()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def kinds(plan: Plan) -> list[str]:
    kernels = [call.kernel for call in plan.run]
    return [type(k.group.result).__name__ for k in kernels if isinstance(k, Kernel)]


def most_alive(found: list[Block]) -> int:
    times = {t for _, first, last in found for t in (first, last)}
    return max((sum(-(-s // 64) * 64 for s, a, b in found if a <= t <= b) for t in times), default=0)


@given(blocks)
def test_blocks_that_live_together_lie_apart(found: list[Block]) -> None:
    offsets, total = allocate(found, align=64)
    for (a, (size_a, *live_a)), (b, (size_b, *live_b)) in itertools.combinations(zip(offsets, found, strict=True), 2):
        together = live_a[0] <= live_b[1] and live_b[0] <= live_a[1]
        assert not together or a + size_a <= b or b + size_b <= a
    assert all(offset % 64 == 0 and offset + size <= total for offset, (size, *_) in zip(offsets, found, strict=True))


@given(blocks)
def test_the_total_stays_near_what_is_alive_at_once(found: list[Block]) -> None:
    _, total = allocate(found, align=64)
    assert most_alive(found) <= total <= 1.5 * most_alive(found)


def test_a_chain_takes_two_buffers() -> None:
    assert allocate([(1000, t, t + 1) for t in range(9)], align=64)[1] == 2 * 1024


@settings(max_examples=150, deadline=None)
@given(graphs)
def test_a_placed_plan_computes_what_the_graph_means(graph: Graph) -> None:
    check(placed(graph), graph)


@settings(max_examples=40, deadline=None)
@given(graphs, st.sampled_from([(1,), (8,), (1, 16), (1, 8, 16)]))
def test_whatever_layouts_the_algorithms_have(graph: Graph, blocks: tuple[int, ...]) -> None:
    check(placed(graph, *blocks), graph)


@settings(max_examples=150, deadline=None)
@given(graphs)
def test_every_read_finds_what_was_written_for_it(graph: Graph) -> None:
    """Whoever wrote a unit of 64 bytes last owns it; a kernel reads units of its own arguments only."""
    with patch("convc.plan.arena.kernel_text", lambda kernel: str(id(kernel))):  # so that each call has its own group
        plan = placed(graph)
    owner: dict[tuple[str, int, int], Node] = {}
    sources = written_values(plan)
    for call in plan.run:
        kernel, (*reads, result) = call.kernel, call.args
        assert isinstance(kernel, Kernel)
        for read, layout, slot in zip(kernel.group.reads, kernel.layouts, reads, strict=True):
            if slot.space in ("arena", "output"):
                assert {owner[unit] for unit in units(slot, buffer_bytes(read, layout))} <= sources[read]
        node = kernel.group.result
        owner.update(dict.fromkeys(units(result, buffer_bytes(node, kernel.result)), node))
    for i, (_, node) in enumerate(plan.outputs):
        assert {owner[unit] for unit in units(Slot("output", index=i), node.type.bytes)} <= sources[node]


def units(slot: Slot, size: int) -> list[tuple[str, int, int]]:
    return [(slot.space, slot.index, offset) for offset in range(slot.offset, slot.offset + size, 64)]


def written_values(plan: Plan) -> dict[Node, set[Node]]:
    """For every value the results of kernels that it consists of: itself, or what it is a view of."""
    found: dict[Node, set[Node]] = {}
    copies: dict[Node, set[Node]] = {}
    for call in plan.run:
        if isinstance(call.kernel, Kernel) and isinstance(copy := call.kernel.group.result, Copy):
            copies.setdefault(copy.x, set()).add(copy)
    for group in plan.groups:
        of = [found.get(a, set()) | copies.get(a, set()) for a in group.result.args if len(group.nodes) == 1]
        found[group.result] = {group.result}.union(*of)
    return found


def test_growing_concats_share_one_buffer() -> None:
    """As in a densely connected block: every concat continues the one before."""
    parts: list[Node] = [conv(image(1, 8, 4, 4), 8)]
    for seed in range(4):
        whole = Concat(tuple(parts), 1) if len(parts) > 1 else parts[0]
        parts.append(conv(whole, 8, seed=seed + 2))
    graph = graph_of(conv(Concat(tuple(parts), 1), 8))
    plan = placed(graph, 8)
    assert "Concat" not in kinds(plan) and "Copy" not in kinds(plan)[1:-1]
    check(plan, graph)


def test_branches_write_into_the_joined_buffer() -> None:
    x = conv(image(1, 8, 4, 4), 16)
    branches = [conv(x, 8, taps=taps, seed=taps) for taps in (1, 3)]
    graph = graph_of(relu(Concat((branches[0], branches[1], conv(x, 5, seed=9)), 1)))
    plan = placed(graph, 8)
    assert "Concat" not in kinds(plan)
    check(plan, graph)


def test_a_slice_of_whole_blocks_is_a_view_and_any_other_is_not() -> None:
    x = relu(conv(image(1, 24, 4, 4), 24))
    for begin, size, calls in ((8, 16, 0), (16, 8, 0), (4, 8, 1)):
        graph = graph_of(conv(channels_of(x, begin, size), 8), conv(x, 8, seed=5))
        plan = placed(graph, 8)
        assert kinds(plan).count("Slice") == calls, (begin, size)
        check(plan, graph)


def test_a_reshape_is_a_view_of_a_row_major_value_only() -> None:
    x = relu(image(1, 16, 4, 4))
    graph = graph_of(Reduce("max", Reshape(x, (1, 256)), (1,)))
    assert kinds(placed(graph, 1)) == ["Unary", "Reduce"]
    blocked = graph_of(Reshape(relu(conv(image(1, 16, 4, 4), 16)), (1, 256)))
    plan = placed(blocked, 8)
    assert len(plan.run) > 1
    check(plan, blocked)


def test_pooled_channels_are_flattened_without_a_call() -> None:
    """[1, 16, 1, 1] in blocks has the bytes of [1, 16]."""
    graph = graph_of(relu(Reshape(Reduce("max", conv(image(1, 8, 4, 4), 16), (2, 3)), (1, 16))))
    plan = placed(graph, 8)
    assert "Reshape" not in kinds(plan) and "Copy" not in kinds(plan)[2:]
    check(plan, graph)


def test_split_shuffle_and_join_copy_one_part_only() -> None:
    """One half of x passes through, the other is replaced: the joined buffer cannot be that of x."""
    x = relu(conv(image(1, 16, 4, 4), 16))
    left, right = channels_of(x, 0, 8), channels_of(x, 8, 8)
    graph = graph_of(shuffled(Concat((left, conv(right, 8)), 1), 2))
    plan = placed(graph, 8)
    assert "Concat" not in kinds(plan) and "Slice" not in kinds(plan)
    check(plan, graph)


def test_parts_that_appear_twice_or_are_constant_or_given() -> None:
    x, y = image(1, 8, 4, 4), relu(image(1, 8, 4, 4, label="x2"))
    constant = Const(integers(7, 1, 8, 4, 4))
    for parts in ((y, y), (x, y), (y, constant), (x, x), (constant, x)):
        graph = graph_of(Concat(parts, 1))
        check(placed(graph), graph)


def test_one_value_in_two_concats_at_different_places() -> None:
    a, b, c = (relu(image(1, 8, 4, 4, label=name)) for name in "abc")
    graph = graph_of(Concat((a, b), 1), Concat((c, a), 1), Concat((b, c), 1))
    plan = placed(graph)
    check(plan, graph)
    assert kinds(plan).count("Unary") == 3


def test_outputs_that_are_no_kernels_result() -> None:
    x = image(1, 8, 4, 4)
    y, scalar = relu(x), Const(np.array(3, np.float32))
    flat = Reshape(y, (1, 128))
    graph = graph_of(x, y, x, y, flat, channels_of(y, 0, 4), Const(integers(1, 5)), scalar, Reshape(x, (8, 16)))
    plan = placed(graph)
    assert {type(node) for _, node in plan.outputs} >= {Copy}
    check(plan, graph)


def test_an_identity_graph() -> None:
    graph = graph_of(image(2, 3))
    plan = placed(graph)
    assert (len(plan.run), plan.arena_bytes) == (1, 0)
    check(plan, graph)


def test_an_output_is_written_where_the_caller_wants_it() -> None:
    y = relu(image(1, 8, 4, 4))
    graph = graph_of(y, Unary("neg", y))
    plan = placed(graph)
    assert plan.arena_bytes == 0 and len(plan.run) == 2
    check(plan, graph)


def test_elementwise_kernels_write_over_what_they_alone_read() -> None:
    x = image(1, 16, 4, 4)
    rows = Reduce("max", x, (3,))
    scaled = Binary("mul", rows, Reduce("sum", rows, (1,)))
    graph = graph_of(Reduce("max", scaled, (1,)), Reduce("min", scaled, (2,)))
    plan = placed(graph)
    kernels = [call.kernel for call in plan.run if isinstance(call.kernel, Kernel)]
    assert [k.in_place for k in kernels if k.group.result is scaled] == [0]
    check(plan, graph)


def test_a_value_read_later_is_not_written_over() -> None:
    x = Reduce("max", image(1, 16, 4, 4), (3,))
    y = Unary("neg", x)
    graph = graph_of(Reduce("sum", y, (1,)), Reduce("sum", x, (1,)), Reduce("min", x, (2,)))
    plan = placed(graph)
    check(plan, graph)


def test_equal_constants_are_stored_and_packed_once() -> None:
    x = image(1, 8, 4, 4)
    plan = placed(graph_of(conv(conv(conv(x, 8, seed=3), 8, seed=3), 8, seed=4)), 8)
    assert len(plan.weights) == 4  # two weights, two biases
    assert sum(call.args[1].space == "packed" for call in plan.init) == 2


def test_constants_that_only_begin_alike_are_apart() -> None:
    x, ones = image(1, 64, 4, 4), (1, 1)
    values = [np.zeros((8, 64, 1, 1), np.float32) for _ in range(4)]
    values[1][-1], values[2][-1] = 1, 1
    convs = [Conv(x, Const(value), None, ones, ((0, 0), (0, 0)), ones, 1) for value in values]
    plan = placed(graph_of(*convs), 8)
    assert [const.value[-1, -1, 0, 0] for _, _, const in plan.weights] == [0, 1]
    check(plan, graph_of(*convs))


def test_equal_kernels_are_one_object() -> None:
    x = conv(image(1, 8, 4, 4), 8)
    for seed in range(3):
        x = conv(relu(x), 8, taps=3, seed=10 * seed)
    plan = placed(graph_of(conv(relu(x), 16)), 8)
    shared = [call.kernel for call in plan.run if isinstance(call.kernel, Kernel) and call.kernel.choice]
    assert len(shared) == 5 and len(set(shared)) == 3  # the three of 3x3 taps are one
