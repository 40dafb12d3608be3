"""The budget: the cheapest plan whose packed weights and arena fit in memory together."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping

from convc.errors import BudgetError
from convc.plan.arena import place
from convc.plan.energy import Energy, Solution
from convc.plan.floor import arena_floor
from convc.plan.plan import Plan
from convc.plan.relayout import relayout
from convc.plan.search import Search
from convc.plan.views import ALIGNMENT

STEPS = 16
"""Packings that are tried one after the other, before the limit jumps to what the arena last measured leaves."""


def within(plan: Plan, energies: Mapping[int, Energy], search: Search, *, budget: int) -> Plan:
    """The cheapest plan that fits `budget` bytes, of those that the energies (by channel block) have; else BudgetError.

    Packed weights are a sum over the choices, which the search bounds; the arena is none, and is measured. The limit of
    packed weights starts at what the smallest arena leaves and falls until a plan fits: first by one packing after
    the other, so that a larger budget is never met by a slower plan, then to what the arena last measured leaves.
    """
    return _Budget(plan, energies, search, budget).plan()


class _Budget:
    """The best solution of each channel block under its limit, the cheapest of them on top of the heap."""

    def __init__(self, plan: Plan, energies: Mapping[int, Energy], search: Search, budget: int) -> None:
        self.given, self.energies, self.search, self.budget = plan, energies, search, budget
        self.fewest = {block: search.fewest_bytes(energy) for block, energy in energies.items()}
        self.steps: Counter[int] = Counter()
        self.heap: list[tuple[int, int, Solution]] = []

    def plan(self) -> Plan:
        needs = []
        for block in self.energies:
            self._solve(block, self.budget - arena_floor(self.given, block=block))
        while self.heap:
            _, block, solution = heapq.heappop(self.heap)
            chosen = relayout(self.given, self.energies[block], solution, block=block)
            placed = place(chosen)
            need = placed.packed_bytes + placed.arena_bytes
            if need <= self.budget:
                return chosen
            needs.append((need, placed.packed_bytes, placed.arena_bytes))
            self._lower(block, solution, self.budget - (need - solution.bytes))
        need, packed, arena = min(needs)
        raise BudgetError(
            f"the memory budget of {self.budget} bytes cannot be met: packed weights take {packed} and activations "
            f"{arena} bytes, together {need - self.budget} bytes too many; raise the budget, or make the input smaller"
        )

    def _lower(self, block: int, solution: Solution, left: int) -> None:
        """Search again with fewer bytes than `solution` has; after many steps with the `left` ones."""
        self.steps[block] += 1
        fewer = solution.bytes - ALIGNMENT
        if solution.bytes > self.fewest[block]:
            self._solve(block, fewer if self.steps[block] <= STEPS else min(fewer, left))

    def _solve(self, block: int, limit: int) -> None:
        solution = self.search.cheapest(self.energies[block], limit=max(limit, self.fewest[block]))
        if solution is not None:
            heapq.heappush(self.heap, (self.energies[block].value(solution), block, solution))
