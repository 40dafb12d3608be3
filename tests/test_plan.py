"""What is chosen for each kernel and each value: is it the cheapest, within the budgets, and consistent?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from plan_cases import TARGET, conv, fake, graph_of, graphs, image, library, relu

from convc.algorithm import Choice
from convc.errors import BudgetError
from convc.ir import Const, Graph, MatMul, Node
from convc.layout import PLAIN, Layout
from convc.plan import explain_problem, partition, place, select
from convc.plan.offers import Measured
from convc.plan.plan import Copy, Plan
from convc.problem import Problem


def chosen(graph: Graph, *algorithms: object, **options: object) -> Plan:
    with library(*(algorithms or (fake(),))):  # type: ignore[arg-type]
        return select(partition(graph), TARGET, **{"max_rel_err": 1.0, **options})  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(graphs)
def test_every_kernel_gets_the_layouts_of_its_choice(graph: Graph) -> None:
    plan = chosen(graph)
    for node in (*plan.inputs, *(n for _, n in plan.outputs)):
        assert isinstance(node, Const) or plan.layouts[node] == PLAIN
    for group in plan.groups:
        if group.anchor is None:
            continue
        x, y = plan.layouts[group.nodes[0].args[0]], plan.layouts[group.result]
        choice, matmul = plan.choices[group], isinstance(group.anchor, MatMul)
        assert (x, y) == ((PLAIN, PLAIN) if matmul else (choice.x_layout, choice.y_layout))
    for node, layout in plan.layouts.items():
        assert layout == PLAIN or (node.type.rank >= 3 and node.shape[1] > 1)


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_a_value_is_copied_once_at_most(graph: Graph) -> None:
    before, after = partition(graph), chosen(graph)
    copied = [g.result.args[0] for g in after.groups if isinstance(g.result, Copy)]
    given_ = [g.result.args[0] for g in before.groups if isinstance(g.result, Copy)]
    assert len(copied) - len(set(copied)) <= len(given_)


def test_blocks_pay_when_the_network_is_faster_in_them() -> None:
    def seconds(p: Problem, _target: object, c: Mapping[str, int]) -> float:
        return 1e-3 if c["xb"] == c["yb"] == 8 else 2e-3

    x: Node = image(1, 8, 16, 16)
    for i in range(4):
        x = relu(conv(x, 8, taps=3, seed=i))
    plan = chosen(graph_of(x), fake(seconds=seconds))
    assert [plan.layouts[g.result] for g in plan.groups] == [Layout(8)] * 5 + [PLAIN]
    assert [isinstance(g.result, Copy) for g in plan.groups] == [True, *[False] * 4, True]


def test_the_channel_block_is_the_one_that_makes_the_network_fastest() -> None:
    def seconds(p: Problem, _target: object, c: Mapping[str, int]) -> float:
        return {1: 3e-3, 8: 2e-3, 16: 1e-3}[c["xb"]] + {1: 3e-3, 8: 2e-3, 16: 1e-3}[c["yb"]]

    graph = graph_of(relu(conv(conv(image(1, 32, 16, 16), 32), 32, seed=3)))
    plan = chosen(graph, fake(seconds=seconds, blocks=(1, 8, 16)))
    assert {choice.config["yb"] for choice in plan.choices.values()} == {16}


def test_no_channel_block_is_chosen_that_leaves_a_convolution_without_algorithm() -> None:
    """One problem has blocks of 16 that look fast, another only blocks of 8."""
    few, many = (fake(name, blocks=blocks, seconds=lambda p, t, c: 1e-3 / c["xb"]) for name, blocks in
                 (("few", (8,)), ("many", (1, 16))))  # fmt: skip
    few = replace(few, refuses=lambda p, t: None if p.k == (3, 3) else "more than one tap")
    many = replace(many, refuses=lambda p, t: None if p.k != (3, 3) else "one tap")
    plan = chosen(graph_of(conv(conv(image(1, 32, 16, 16), 32), 32, taps=3, seed=3)), few, many)
    assert {str(c) for c in plan.choices.values()} == {"few(xb=8,yb=8)", "many(xb=1,yb=1)"}


def test_what_no_algorithm_takes_stays_without_a_choice() -> None:
    plan = chosen(graph_of(conv(image(1, 8, 4, 4), 8)), fake(refusal="not today"))
    assert not plan.choices and plan.groups[0].problem is not None


def two(seconds: float = 1e-3, **second: object) -> tuple[object, object]:
    """An exact slow algorithm and a fast one."""
    return fake("slow", seconds=lambda *_: 2e-3), fake("fast", seconds=lambda *_: seconds, **second)  # type: ignore[arg-type]


def names(plan: Plan) -> set[str]:
    return {choice.algorithm for choice in plan.choices.values()}


def test_an_algorithm_that_may_err_too_much_is_dropped_and_direct_ones_never() -> None:
    graph = graph_of(conv(image(1, 8, 4, 4), 8))
    bound = 100 * 8 * 2.0**-24
    assert names(chosen(graph, *two(error=100.0), max_rel_err=bound * 1.01)) == {"fast"}
    assert names(chosen(graph, *two(error=100.0), max_rel_err=bound * 0.99)) == {"slow"}
    assert names(chosen(graph, *two(error=1.0), max_rel_err=0.0)) == {"fast"}


def test_the_memory_budget_is_met_or_named() -> None:
    graph = graph_of(conv(image(1, 8, 4, 4), 8, bias=False))
    plan = place_chosen(graph)
    need = plan.packed_bytes + plan.arena_bytes
    assert place_chosen(graph, memory_budget=need).packed_bytes <= need
    with pytest.raises(BudgetError, match=re.escape(f"{need} bytes too many")) as caught:
        chosen(graph, fake(blocks=(1,)), memory_budget=0)
    assert caught.value.exit_code == 11


def place_chosen(graph: Graph, **options: object) -> Plan:
    with library(fake(blocks=(1,))):
        return place(select(partition(graph), TARGET, max_rel_err=1.0, **options))  # type: ignore[arg-type]


def test_a_smaller_form_of_the_weights_is_chosen_where_memory_is_short() -> None:
    graph = graph_of(conv(image(1, 8, 4, 4), 8, bias=False))
    with library(*two(), packed={"fast": 100}):  # type: ignore[arg-type]
        loose = select(partition(graph), TARGET, max_rel_err=1.0, memory_budget=100_000)
        tight = select(partition(graph), TARGET, max_rel_err=1.0, memory_budget=4_000)
    assert (names(loose), names(tight)) == ({"fast"}, {"slow"})


def test_an_algorithm_that_mixes_may_not_err_more_and_needs_finite_weights() -> None:
    graph = graph_of(conv(image(1, 8, 4, 4), 8))
    anchor = conv(image(1, 8, 4, 4), 8)
    anchor.w.value[0, 0] = np.inf
    wild = graph_of(anchor)
    mixing = tuple(replace(a, mixes=a.name == "fast") for a in two(error=1.0))  # type: ignore[type-var, attr-defined]
    assert names(chosen(graph, *mixing, max_rel_err=1e-6)) == {"fast"}
    assert names(chosen(graph, *mixing, max_rel_err=1e-7)) == {"slow"}
    assert names(chosen(wild, *mixing, max_rel_err=1e-6)) == {"slow"}


def test_measured_times_replace_modelled_ones_unless_another_algorithm_promises_far_more() -> None:
    graph = graph_of(conv(image(1, 8, 4, 4), 8))

    def records(problem: Problem, epilogue: str) -> list[Measured]:
        return [Measured(Choice("slow", {"xb": xb, "yb": yb}), 5e-3) for xb in (1, 8) for yb in (1, 8)]

    assert names(chosen(graph, *two(1.6e-3), records=records)) == {"slow"}
    assert names(chosen(graph, *two(1.0e-3), records=records)) == {"fast"}


def test_a_modelled_choice_of_fewer_bytes_than_all_measured_ones_stays_for_the_memory_budget() -> None:
    graph = graph_of(conv(image(1, 8, 4, 4), 8))

    def records(problem: Problem, epilogue: str) -> list[Measured]:
        return [Measured(Choice("fast", {"xb": xb, "yb": yb}), 5e-4) for xb in (1, 8) for yb in (1, 8)]

    options = {"max_rel_err": 1.0, "records": records}
    with library(*two(), packed={"fast": 100}):  # type: ignore[arg-type]
        loose = select(partition(graph), TARGET, **options)  # type: ignore[arg-type]
        tight = select(partition(graph), TARGET, memory_budget=4_000, **options)  # type: ignore[arg-type]
    assert (names(loose), names(tight)) == ({"fast"}, {"slow"})


def test_explain_names_every_algorithm_fastest_first_with_cost_or_reason() -> None:
    problem = Problem.parse("mb1_ic8ih4_oc8oh4_kh3ph1")
    with library(fake("a", refusal="the moon is full"), *two()):  # type: ignore[arg-type]
        rows = explain_problem(problem, TARGET)
    assert [(row.algorithm, row.us, row.refusal) for row in rows] == [
        ("fast", 1000.0, None), ("slow", 2000.0, None), ("a", None, "the moon is full"),
    ]
    assert rows[0].config == "xb=1,yb=1" and rows[0].error == 72 * 2.0**-24 and rows[0].memory == 0
