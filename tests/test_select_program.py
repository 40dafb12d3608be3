"""Is the choice over the whole graph the best one there is, within the memory, and the same everywhere?"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Hashable, Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import (
    LABELS,
    TARGET,
    Interpreter,
    conv,
    fake,
    graph_of,
    graphs,
    image,
    inputs_of,
    library,
    options_of,
)

from convc.errors import BudgetError
from convc.ir import Concat, Graph, Input, MatMul, Node, Pool, Reduce, Reshape, TensorType, Unary
from convc.layout import PLAIN
from convc.plan import partition, place, select
from convc.plan.arena import choice_bytes
from convc.plan.energy import REFUSED, Energy, Option, Solution
from convc.plan.floor import arena_floor
from convc.plan.layouts import activations, layout_energy, rates_of, relayout_cost
from convc.plan.plan import Copy, Group, Plan
from convc.plan.program import LimitReached, cheapest, smallest
from convc.plan.relayout import relayout
from convc.plan.search import SearchWarning
from convc.plan.select import energies_of, offers_of
from convc.plan.walk import walk
from convc.target import GpuTarget, parse_target

seeds = st.integers(0, 2**32)


def random_energy(seed: int, *, variables: int = 6, pairs: int = 5) -> Energy:
    """Of every kind of term: refused labels, pairs without all labels, options of several sizes, shared forms."""
    r, energy, names = random.Random(seed), Energy(), [f"v{i}" for i in range(variables)]
    for name in names:
        costs = [r.randrange(20), r.randrange(20)]
        if r.random() < 0.1:
            costs[r.randrange(2)] = REFUSED
        energy.add_unary(name, *costs)
    for _ in range(pairs):
        labels = r.sample(LABELS, r.randrange(2, 5))
        forms = [r.choice([None, None, "f1", "f2"]) for _ in range(r.randrange(1, 3))]
        sizes = [64 * (r.randrange(5) if form is None else int(form[1:])) for form in forms]
        options = [Option(p, r.randrange(30), *kind) for p in labels for kind in zip(sizes, forms, strict=True)]
        energy.add_pair(*r.sample(names, 2), options)
    for _ in range(3):
        source, *wants = r.sample(names, r.randrange(2, 5))
        energy.add_shared(source, wants, r.randrange(15))
    return energy


def solutions(energy: Energy) -> Iterator[Solution]:
    """Every labelling with every choice of options, but those that are refused."""
    for found in itertools.product((0, 1), repeat=len(energy.unary)):
        labels = dict(zip(energy.unary, found, strict=True))
        if any(costs[labels[v]] >= REFUSED for v, costs in energy.unary.items()):
            continue
        fitting = [[o for o in p.options if o.labels == (labels[p.a], labels[p.b])] for p in energy.pairs]
        for taken in itertools.product(*fitting):
            yield Solution(labels, taken)


def is_valid(energy: Energy, solution: Solution) -> bool:
    labels = solution.labels
    taken = zip(energy.pairs, solution.options, strict=True)
    fits = all(o in p.options and o.labels == (labels[p.a], labels[p.b]) for p, o in taken)
    return fits and all(costs[labels[v]] < REFUSED for v, costs in energy.unary.items())


@settings(max_examples=150, deadline=None)
@given(seeds, st.one_of(st.none(), st.integers(0, 15)))
def test_the_program_finds_the_cheapest_of_all_solutions(seed: int, units: int | None) -> None:
    energy, limit = random_energy(seed), None if units is None else 64 * units
    found = cheapest(energy, limit=limit)
    values = [energy.value(s) for s in solutions(energy) if limit is None or s.bytes <= limit]
    assert (found is None) == (not values)
    if found is not None:
        assert is_valid(energy, found) and (limit is None or found.bytes <= limit)
        assert energy.value(found) == min(values)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_the_smallest_solution_has_the_fewest_bytes_of_all(seed: int) -> None:
    energy = random_energy(seed)
    found = smallest(energy)
    sizes = [s.bytes for s in solutions(energy)]
    assert (found.bytes if found else None) == min(sizes, default=None)


@settings(max_examples=60, deadline=None)
@given(seeds, st.one_of(st.none(), st.integers(0, 15)))
def test_a_walk_ends_at_a_valid_solution_that_is_never_better_than_the_program(seed: int, units: int | None) -> None:
    energy, limit = random_energy(seed, variables=12, pairs=14), None if units is None else 64 * units
    best, found = cheapest(energy, limit=limit), walk(energy, limit=limit)
    if found is not None:
        assert best is not None and is_valid(energy, found) and (limit is None or found.bytes <= limit)
        assert energy.value(best) <= energy.value(found)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_no_single_step_makes_the_end_of_a_walk_cheaper(seed: int) -> None:
    energy = random_energy(seed, variables=12, pairs=14)
    found = walk(energy)
    if found is not None:
        for v, label in found.labels.items():
            other = energy.solution({**found.labels, v: 1 - label})
            assert other is None or energy.value(other) >= energy.value(found)


def convolutions(seed: int, count: int, *, channels: tuple[int, ...] = (8,)) -> Plan:
    """Without epilogues, some with a common input, some of whose results are outputs."""
    r, values = random.Random(seed), [image(1, 8, 4, 4)]
    nodes: list[Node] = list(values)
    for i in range(count):
        nodes.append(conv(r.choice(nodes[-2:]), r.choice(channels), bias=False, seed=i))
    ends = dict.fromkeys([*(v for v in nodes[1:] if r.random() < 0.3), nodes[-1]])
    return partition(graph_of(*ends))


def plan_cost(plan: Plan, labels: Mapping[Hashable, int], taken: Mapping[Group, Option]) -> int:
    """The relayouts that a labelling needs and the choices, counted without the model."""
    total = sum(option.cost for option in taken.values())
    for node in {r for g in plan.groups for r in activations(g)} | {n for _, n in plan.outputs}:
        wanted = {labels[g, node] for g in plan.groups if node in activations(g)}
        wanted |= {0 for _, n in plan.outputs if n is node}
        total += relayout_cost(node, block=8) * (wanted | {labels[node]} != {labels[node]})
    return total


def test_a_walk_over_a_network_finds_a_solution_and_mostly_the_best() -> None:
    best = 0
    for seed in range(20):
        plan = convolutions(seed, 8)
        energy = layout_energy(plan, options_of(plan, seed), block=8)
        found, least = walk(energy), cheapest(energy)
        assert found is not None and least is not None
        best += energy.value(found) == energy.value(least)
    assert best >= 12


@settings(max_examples=40, deadline=None)
@given(seeds, st.one_of(st.none(), st.integers(8, 24)))
def test_layouts_and_offers_of_a_small_network_are_the_cheapest_of_all(seed: int, units: int | None) -> None:
    plan = convolutions(seed, 4)
    options, limit = options_of(plan, seed), None if units is None else 64 * units
    energy = layout_energy(plan, options, block=8)
    values: dict[Hashable, int] = dict.fromkeys((*plan.inputs, *(("output", n) for _, n in plan.outputs)), 0)
    costs = []
    for choices in itertools.product(*options.values()):
        taken = dict(zip(options, choices, strict=True))
        if limit is None or sum(o.bytes for o in choices) <= limit:
            wants = {(g, g.nodes[0].args[0]): o.labels[0] for g, o in taken.items()}
            results = {g.result: o.labels[1] for g, o in taken.items()}
            costs.append(plan_cost(plan, {**values, **wants, **results}, taken))
    found = cheapest(energy, limit=limit)
    assert (found is None) == (not costs)
    assert found is None or energy.value(found) == min(costs)


@settings(max_examples=60, deadline=None)
@given(graphs, seeds)
def test_no_choice_of_layouts_needs_less_than_the_floor(graph: Graph, seed: int) -> None:
    plan, r = partition(graph), random.Random(seed)
    options = {g: [r.choice(had)] for g, had in options_of(plan, seed).items() if not isinstance(g.anchor, MatMul)}
    for group, had in options.items():
        x, y = group.nodes[0].args[0], group.result
        blocked = [int(len(n.shape) >= 3 and n.shape[1] > 1) for n in (x, y)]
        options[group] = [Option((had[0].labels[0] & blocked[0], had[0].labels[1] & blocked[1]), had[0].cost)]
    energy = layout_energy(plan, options, block=8)
    solution = cheapest(energy)
    assert solution is not None
    placed = place(relayout(plan, energy, solution, block=8))
    assert placed.arena_bytes >= arena_floor(plan, block=8)


def test_the_floor_is_the_arena_where_layouts_take_the_same_bytes() -> None:
    """Three values in a row; one written over another; parts in place in their whole; a view of what is held."""
    x = image(1, 8, 8, 8)
    first, second = conv(x, 16), conv(x, 24, seed=2)
    joined = Concat((first, second), 1)
    overwritten = Unary("exp", Reduce("max", Pool("max", first, (3, 3), (1, 1), ((1, 1),) * 2, (1, 1), (0, 0)), ()))
    graphs = [
        graph_of(conv(conv(conv(first, 32, seed=3), 8, seed=4), 8, seed=5)),
        graph_of(conv(overwritten, 8, seed=6)),
        graph_of(conv(conv(joined, 8, seed=7), 8, seed=8)),
        graph_of(conv(conv(Reshape(first, (1, 16, 4, 16)), 8, seed=9), 8, seed=10)),
    ]
    for plan in map(partition, graphs):
        with library(fake(blocks=(1,))):
            assert arena_floor(plan, block=8) == place(select(plan, TARGET, max_rel_err=1.0)).arena_bytes > 0


def trading(seed: int) -> list[object]:
    """Algorithms of which the faster packs the larger, with times that are never equal."""

    def seconds(name: str, scale: float) -> object:
        return lambda p, t, c: scale * (1 + random.Random(f"{seed} {name} {p} {c['xb']} {c['yb']}").random()) * 1e-5

    return [fake(name, seconds=seconds(name, s)) for name, s in (("a", 1.0), ("b", 0.7), ("c", 0.4))]  # type: ignore


def seconds_of(plan: Plan, algorithms: list[object]) -> float:
    """Of a plan of convolutions: the choices' and the copies' times."""
    table = {a.name: a for a in algorithms}  # type: ignore[attr-defined]
    total = sum(relayout_cost(g.result, block=8) * 1e-12 for g in plan.groups if isinstance(g.result, Copy))
    for group, choice in plan.choices.items():
        total += table[choice.algorithm].cost(group.problem, TARGET, choice.config)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_budgets_are_met_and_a_larger_one_is_not_slower(seed: int) -> None:
    plan, algorithms = convolutions(seed, 6, channels=(4, 8, 12, 16)), trading(seed)
    with library(*algorithms, packed={"b": 2, "c": 4}):  # type: ignore[arg-type]
        fastest = select(plan, TARGET, max_rel_err=1.0)
        placed = place(fastest)
        most = placed.packed_bytes + placed.arena_bytes
        times = [seconds_of(fastest, algorithms)]
        for budget in range(most, 0, -max(64, most // 40)):
            try:
                found = select(plan, TARGET, max_rel_err=1.0, memory_budget=budget)
            except BudgetError:
                break
            placed = place(found)
            assert placed.packed_bytes + placed.arena_bytes <= budget
            times.append(seconds_of(found, algorithms))
    assert len(times) > 5 and times[1] == times[0] < times[-1]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(times))


@pytest.mark.parametrize("seed", range(3))
def test_a_feasible_budget_is_met_and_nearly_by_the_fastest_plan(seed: int) -> None:
    """Beside all plans of two convolutions, each placed."""
    plan, algorithms = convolutions(seed, 2, channels=(4, 8, 12, 16)), trading(seed)
    with library(*algorithms, packed={"b": 2, "c": 4}):  # type: ignore[arg-type]
        found = offers_of(plan, TARGET, max_rel_err=1.0, size=choice_bytes)
        energy = energies_of(plan, found, [8])[8]
        every = []
        for solution in solutions(energy):
            placed = place(relayout(plan, energy, solution, block=8))
            every.append((placed.packed_bytes + placed.arena_bytes, energy.value(solution) * 1e-12))
        best = seconds = 0.0
        for budget in range(min(every)[0], max(every)[0], 128):
            best += min(time for need, time in every if need <= budget)
            seconds += seconds_of(select(plan, TARGET, max_rel_err=1.0, memory_budget=budget), algorithms)
    assert best * (1 - 1e-6) <= seconds <= 1.05 * best  # costs are whole picoseconds


def test_a_budget_is_refused_only_below_the_smallest_packing() -> None:
    """One more byte than it takes is enough, one less is not; the message says how much is missing."""
    plan = convolutions(1, 4)
    with library(*trading(1), packed={"b": 2, "c": 4}):  # type: ignore[arg-type]
        with pytest.raises(BudgetError, match="bytes too many") as caught:
            select(plan, TARGET, max_rel_err=1.0, memory_budget=0)
        need = int(str(caught.value).split("together ")[1].split()[0])
        assert place(select(plan, TARGET, max_rel_err=1.0, memory_budget=need)).packed_bytes < need
        with pytest.raises(BudgetError, match="together 1 bytes too many"):
            select(plan, TARGET, max_rel_err=1.0, memory_budget=need - 1)


def frustrated(count: int) -> Energy:
    """Pairs that all want different labels, in cycles of three: the relaxation leaves every label at a half."""
    r, energy = random.Random(0), Energy()
    for a, b in itertools.combinations(range(count), 2):
        energy.add_pair(a, b, [Option(p, r.randrange(10**6) + (p[0] == p[1]) * 10**6) for p in LABELS])
    return energy


def test_a_search_past_its_limit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = frustrated(8)
    found = cheapest(energy)
    assert found is not None and energy.value(found) == min(energy.value(s) for s in solutions(energy))
    monkeypatch.setattr("convc.plan.program.NODES", 0)
    with pytest.raises(LimitReached, match="limit reached"):
        cheapest(energy)


@settings(max_examples=25, deadline=None)
@given(graphs, st.booleans())
def test_past_the_limit_a_walk_chooses_a_valid_plan_with_one_warning(graph: Graph, budget: bool) -> None:
    def give_up(*_: object, **__: object) -> None:
        raise LimitReached("limit reached")

    before = partition(graph)
    with pytest.MonkeyPatch.context() as patch, library(fake(blocks=(1, 8, 16))):
        patch.setattr("convc.plan.search.cheapest", give_up)
        patch.setattr("convc.plan.search.smallest", give_up)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            plan = select(before, TARGET, max_rel_err=1.0, memory_budget=2**30 if budget else None)
        placed = place(plan)
    assert [w.category for w in told] == [SearchWarning] and "step by step" in str(told[0].message)
    for group, choice in plan.choices.items():
        layouts = (plan.layouts[group.nodes[0].args[0]], plan.layouts[group.result])
        assert layouts == ((PLAIN, PLAIN) if isinstance(group.anchor, MatMul) else (choice.x_layout, choice.y_layout))
    expected = graph.evaluate(inputs_of(graph))
    for name, value in Interpreter(placed, inputs_of(graph)).run().items():
        assert (value == expected[name]).all()


PROCESS = """
import light
from convc.pipeline import run_until
from convc.plan import show
model = light.load("shufflenet").SerializeToString()
print(show(run_until("placed", model, target="cpu/znver3", memory_budget={budget})))
"""


@pytest.mark.parametrize("budget", [None, 9_000_000])
def test_two_processes_choose_the_same(budget: int | None) -> None:
    """With other hashes of text, and other addresses. The budget is one that the fastest plan does not meet."""
    found = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        line = [sys.executable, "-c", PROCESS.format(budget=budget)]
        found.append(subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout)
    assert found[0] == found[1] and "run " in found[0]


@pytest.mark.parametrize("name", ["cuda/sm_80", "cuda/sm_90a"])
def test_a_copy_on_a_gpu_costs_what_its_memory_takes(name: str) -> None:
    """Not what it takes a thread of a CPU, which is two orders of magnitude more."""
    target = parse_target(name)
    assert isinstance(target, GpuTarget)
    x = Input("x", TensorType((32, 96, 56, 56), "float32"))
    seconds = relayout_cost(x, block=4, rates=rates_of(target)) * 1e-12
    assert 1 < seconds / (2 * x.type.bytes / target.gpu.bandwidth) < 1.5
    assert relayout_cost(x, block=4) * 1e-12 > 30 * seconds
