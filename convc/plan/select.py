"""Select: for every kernel the algorithm and config, for every value the layout. One optimum over the whole graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from convc.ir import Node
from convc.layout import blocked
from convc.plan.arena import choice_bytes
from convc.plan.budget import within
from convc.plan.energy import Energy, Option
from convc.plan.epilogue import epilogue_of
from convc.plan.layouts import CPU, Rates, cost_of, layout_energy, rates_of
from convc.plan.offers import Offer, Records, Size, offers, unasked
from convc.plan.plan import Group, Plan
from convc.plan.relayout import relayout
from convc.plan.search import Search
from convc.plan.views import align
from convc.problem import Problem
from convc.target import Target

WIDEST = 4  # vectors in a channel block, at most

Offers = Mapping[Group, Sequence[Offer]]
"""By convolution; those of one problem, class of epilogue and kind of weights share theirs."""


def select(
    plan: Plan,
    target: Target,
    *,
    max_rel_err: float,
    memory_budget: int | None = None,
    records: Records | None = None,
) -> Plan:
    """The plan with `choices` and `layouts`, and a Copy wherever a layout changes.

    `max_rel_err` bounds each convolution's error relative to its largest sum(|x * w|); direct algorithms always stay.
    `memory_budget` bounds packed weights and arena together, in bytes; BudgetError where nothing meets it. An anchored
    group without a choice is one that no algorithm takes: it is lowered as a generic one. SearchWarning where the
    network is too large for the best of all plans.
    """
    size = unasked if memory_budget is None else choice_bytes
    found = offers_of(plan, target, max_rel_err=max_rel_err, records=records, size=size)
    blocks, rates, search = blocks_of(found, target), rates_of(target), Search()
    if memory_budget is not None:
        # Block 1 is all row-major: where memory is short, no lane is padded and nothing copied.
        return within(plan, energies_of(plan, found, [1, *blocks], rates), search, budget=memory_budget)
    solved = [(b, energy, search.cheapest(energy)) for b, energy in energies_of(plan, found, blocks, rates).items()]
    _, block, energy, solution = min((e.value(s), b, e, s) for b, e, s in solved if s is not None)
    return relayout(plan, energy, solution, block=block)


def offers_of(
    plan: Plan, target: Target, *, max_rel_err: float, records: Records | None = None, size: Size = unasked
) -> Offers:
    """What the library has for the plan's convolutions."""
    known: dict[tuple[Problem, str, bool], Sequence[Offer]] = {}
    found: dict[Group, Sequence[Offer]] = {}
    for group in plan.groups:
        problem, weights = group.problem, group.weights
        if problem is None or weights is None:
            continue
        key = problem, epilogue, finite = problem, epilogue_of(group), bool(np.isfinite(weights.value).all())
        if key not in known:
            known[key] = offers(
                problem, target, epilogue=epilogue, max_rel_err=max_rel_err, finite=finite, records=records, size=size
            )
        found[group] = known[key]
    return found


def blocks_of(found: Offers, target: Target) -> list[int]:
    """The channel blocks that some algorithm has, in whole vectors; the target's vector where there is none."""
    kinds = {id(all_): (group, all_) for group, all_ in found.items()}.values()
    named = {b for g, all_ in kinds if g.problem and g.problem.kind != "matmul" for o in all_ for b in o.blocks}
    whole = [b for b in sorted(named) if b % target.lanes == 0 and b <= WIDEST * target.lanes]
    return whole or [target.lanes]


def energies_of(plan: Plan, found: Offers, blocks: Sequence[int], rates: Rates = CPU) -> dict[int, Energy]:
    """What the plan costs under every choice of offers and layouts, row-major or of a channel block, by that block.

    Blocks under which kernels have no offer that have one under another block are left out.
    """
    readers = Counter(group.weights for group in plan.groups)
    options: dict[int, dict[Group, list[Option]]] = {}
    for block in blocks:
        each = {g: _options(g, found, block, shared=readers[g.weights] > 1) for g in plan.groups}
        options[block] = {group: had for group, had in each.items() if had}
    most = max(len(had) for had in options.values())
    return {b: layout_energy(plan, had, block=b, rates=rates) for b, had in options.items() if len(had) == most}


def _options(group: Group, found: Offers, block: int, *, shared: bool) -> list[Option]:
    """The offers that are cheaper or smaller than every other of the same layouts."""
    weights, problem, had = group.weights, group.problem, []
    if problem is None or weights is None:
        return []
    for offer in found[group]:
        labels = _labels(group, problem, offer, block)
        if labels is not None:
            form = (weights, problem, str(offer.choice)) if shared else None
            had.append(Option(labels, cost_of(offer.seconds), align(offer.packed), form, offer.choice))
    return list(_efficient(had))


def _efficient(had: Sequence[Option]) -> Iterator[Option]:
    fewest: dict[tuple[int, int], int] = {}
    for option in sorted(had, key=lambda o: (o.cost, o.bytes)):
        if option.bytes < fewest.get(option.labels, option.bytes + 1):
            fewest[option.labels] = option.bytes
            yield option


def _labels(group: Group, problem: Problem, offer: Offer, block: int) -> tuple[int, int] | None:
    """The labels that a config's blocks mean for x and result, or None where they are neither row-major nor `block`.

    For a matrix product channels-last is the row-major matrix.
    """
    if problem.kind == "matmul":
        return (0, 0) if offer.blocks == (problem.ic, problem.oc) else None
    found = []
    nodes: tuple[Node, Node] = (group.nodes[0].args[0], group.nodes[0])
    for channels, node in zip(offer.blocks, nodes, strict=True):
        if channels not in (1, blocked(node.shape, block=block).block):
            return None
        found.append(int(channels != 1))
    return found[0], found[1]
