"""The search for the cheapest labels: the integer program, and small steps where it is too large."""

from __future__ import annotations

import warnings

from convc.plan.energy import Energy, Solution
from convc.plan.program import LimitReached, cheapest, smallest
from convc.plan.walk import dearest, walk


class SearchWarning(UserWarning):
    """The choice over the whole graph may not be the best."""


class Search:
    """Solves energies by the program; from the first one that it gives up on, by walks, with one warning."""

    def __init__(self) -> None:
        self.exact = True

    def cheapest(self, energy: Energy, *, limit: int | None = None) -> Solution | None:
        """The cheapest solution found of at most `limit` bytes, or None."""
        if self.exact:
            try:
                return cheapest(energy, limit=limit)
            except LimitReached as reached:
                self._give_up(energy, reached)
        return walk(energy, limit=limit)

    def fewest_bytes(self, energy: Energy) -> int:
        """The fewest that a solution found keeps in memory."""
        if self.exact:
            try:
                found = smallest(energy)
            except LimitReached as reached:
                self._give_up(energy, reached)
        if not self.exact:
            found = dearest(energy)
        return found.bytes if found is not None else 0

    def _give_up(self, energy: Energy, reached: LimitReached) -> None:
        self.exact = False
        text = (
            f"layouts and algorithms were chosen step by step and may be slower than need be: the search over "
            f"{len(energy.unary)} layouts and {len(energy.pairs)} pairs was given up ({reached})"
        )
        warnings.warn(SearchWarning(text), stacklevel=2)
