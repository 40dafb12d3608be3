"""What is chosen for each kernel and each value: is it the cheapest, within the budgets, and consistent?"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Hashable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import TARGET, conv, fake, graph_of, graphs, image, library, relu, tables_of

from convc.algorithm import Choice
from convc.errors import BudgetError
from convc.ir import Const, Graph, Input, MatMul, Node
from convc.layout import PLAIN, Layout
from convc.plan import explain_problem, partition, place, select
from convc.plan.layouts import activations, layout_energy, relayout_cost
from convc.plan.mincut import Energy, Table
from convc.plan.offers import Measured
from convc.plan.plan import Copy, Group, Plan
from convc.problem import Problem


def chosen(graph: Graph, *algorithms: object, **options: object) -> Plan:
    with library(*(algorithms or (fake(),))):  # type: ignore[arg-type]
        return select(partition(graph), TARGET, **{"max_rel_err": 1.0, **options})  # type: ignore[arg-type]


def random_energy(seed: int, *, submodular: bool) -> Energy:
    r = random.Random(seed)
    energy, names = Energy(), list("abcdefg")
    for name in names:
        energy.add_unary(name, r.randrange(20), r.randrange(20))
    for _ in range(12):
        a, b = r.sample(names, 2)
        (t00, t01), (t10, t11) = [[r.randrange(20), r.randrange(20)] for _ in range(2)]
        swap = submodular and t00 + t11 > t01 + t10
        energy.add_pair(a, b, ((t01, t00), (t11, t10)) if swap else ((t00, t01), (t10, t11)))
    for _ in range(4):
        source, *wants = r.sample(names, 4)
        energy.add_shared(source, wants, r.randrange(15))
    return energy


def labellings(names: list[Hashable]) -> list[dict[Hashable, int]]:
    return [dict(zip(names, found, strict=True)) for found in itertools.product((0, 1), repeat=len(names))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_the_cut_is_the_minimum_of_all_labellings(seed: int) -> None:
    energy = random_energy(seed, submodular=True)
    least = min(energy.value(labels) for labels in labellings(list(energy.variables)))
    assert energy.value(energy.minimum()) == least


def test_tables_that_no_cut_can_hold_are_solved_well() -> None:
    """Greedy improvement after truncation: optimal for most of these, and no change of one label would be better."""
    optimal = 0
    for seed in range(60):
        energy = random_energy(seed, submodular=False)
        labels = energy.minimum()
        found = energy.value(labels)
        optimal += found == min(energy.value(other) for other in labellings(list(energy.variables)))
        assert all(energy.value({**labels, v: 1 - labels[v]}) >= found for v in labels)
    assert optimal >= 45


def plan_cost(plan: Plan, labels: Mapping[Hashable, int], tables: Mapping[Group, Table]) -> int:
    """The relayouts that a labelling needs and the choices it leaves, counted without the model."""
    total = 0
    for node in {r for g in plan.groups for r in activations(g)} | {n for _, n in plan.outputs}:
        wanted = {labels[g, node] for g in plan.groups if node in activations(g)}
        wanted |= {0 for _, n in plan.outputs if n is node}
        total += relayout_cost(node, block=8) * (wanted | {labels[node]} != {labels[node]})
    for group, table in tables.items():
        x = group.nodes[0].args[0]
        total += table[labels[group, x]][labels[group.result]]
    return total


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_layouts_of_a_small_network_are_the_cheapest_of_all(seed: int) -> None:
    """Convolutions without epilogues, some of which share their input: all labellings of values and wishes."""
    r = random.Random(seed)
    values: list[Node] = [image(1, 8, 4, 4)]
    for i in range(4):
        values.append(conv(r.choice(values[-2:]), 8, bias=False, seed=i))
    ends = dict.fromkeys([*(v for v in values[1:] if r.random() < 0.3), values[-1]])
    plan = partition(graph_of(*ends))
    tables = tables_of(plan, seed)
    energy = layout_energy(plan, tables, block=8)
    labels = energy.minimum()
    free = [v for v in energy.variables if not isinstance(v, Input) and not (isinstance(v, tuple) and v[0] == "output")]
    fixed: dict[Hashable, int] = {v: 0 for v in energy.variables if v not in free}
    costs = [plan_cost(plan, {**fixed, **found}, tables) for found in labellings(free)]
    assert energy.value(labels) == plan_cost(plan, labels, tables) == min(costs)


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


def test_what_no_algorithm_takes_stays_without_a_choice() -> None:
    plan = chosen(graph_of(conv(image(1, 8, 4, 4), 8)), fake(refusal="not today"))
    assert not plan.choices and plan.groups[0].problem is not None


def two(**second: object) -> tuple[object, object]:
    """An exact slow algorithm and a fast one."""
    return fake("slow", seconds=lambda *_: 2e-3), fake("fast", seconds=lambda *_: 1e-3, **second)  # type: ignore[arg-type]


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
    algorithms = two()
    with library(*algorithms), pytest.MonkeyPatch.context() as patch:  # type: ignore[arg-type]
        patch.setattr(
            "convc.plan.arena._algorithm_elements",
            lambda shape, dtype, problem, name, config: 10_000 if name == "fast" else 64,
        )
        loose = select(partition(graph), TARGET, max_rel_err=1.0, memory_budget=100_000)
        tight = select(partition(graph), TARGET, max_rel_err=1.0, memory_budget=4_000)
    assert (names(loose), names(tight)) == ({"fast"}, {"slow"})


def test_measured_times_replace_modelled_ones() -> None:
    graph = graph_of(conv(image(1, 8, 4, 4), 8))

    def records(problem: Problem) -> list[Measured]:
        return [Measured(Choice("slow", {"xb": xb, "yb": yb}), 5e-3) for xb in (1, 8) for yb in (1, 8)]

    assert names(chosen(graph, *two(), records=records)) == {"slow"}


def test_explain_names_every_algorithm_fastest_first_with_cost_or_reason() -> None:
    problem = Problem.parse("mb1_ic8ih4_oc8oh4_kh3ph1")
    with library(fake("a", refusal="the moon is full"), *two()):  # type: ignore[arg-type]
        rows = explain_problem(problem, TARGET)
    assert [(row.algorithm, row.us, row.refusal) for row in rows] == [
        ("fast", 1000.0, None), ("slow", 2000.0, None), ("a", None, "the moon is full"),
    ]
    assert rows[0].config == "xb=1,yb=1" and rows[0].error == 72 * 2.0**-24 and rows[0].memory == 0
