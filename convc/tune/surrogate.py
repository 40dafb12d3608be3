"""What measured candidates say of others: a forest of trees over how far the analytic model is off.

The forest learns log(measured / modelled) from the numbers of a config and of its problem, over all problems of a
session at once, so that what one layer teaches serves the next one. Source: extremely randomised trees (Geurts et al.,
Machine Learning 63, 2006), expected improvement (Jones et al., J. Global Optimization 13, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convc.algorithm import Choice
from convc.ir import Array
from convc.problem import Problem
from convc.target import Target

TREES = 60
LEAST = 6  # measurements before there is a forest
DOUBT = 0.3  # standard deviation of log(measured / modelled) where nothing is known: 0.1 to 0.6 over a space, Zen 5
LEAST_DOUBT = 0.01  # of a prediction that all trees agree on


@dataclass
class Surrogate:
    """Predicts for one target. `add` what was measured, `predict` log(us / modelled us) with its deviation."""

    target: Target
    seed: int = 0
    _rows: list[Mapping[str, float]] = field(default_factory=list)
    _off: list[float] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _forest: Any = None

    @property
    def count(self) -> int:
        """Measurements so far."""
        return len(self._rows)

    def add(self, problem: Problem, choice: Choice, us: float) -> None:
        self._rows.append(self._features(problem, choice))
        self._off.append(math.log(us / self.modelled(problem, choice)))
        self._forest = None

    def modelled(self, problem: Problem, choice: Choice) -> float:
        """us of wall time by the analytic model."""
        cost = choice.entry.cost(problem, self.target, choice.config)
        return cost / self.target.threads * 1e6

    def predict(self, problem: Problem, choices: Sequence[Choice]) -> tuple[Array, Array]:
        """Mean and standard deviation of log us, one of each a choice."""
        modelled = np.log([self.modelled(problem, choice) for choice in choices])
        if len(self._rows) < LEAST:
            off = float(np.median(self._off)) if self._off else 0.0
            spread = float(np.std(self._off)) if self._off else 0.0
            return modelled + off, np.full(len(choices), max(DOUBT, spread))
        forest = self._grown()
        rows = self._table([self._features(problem, choice) for choice in choices])
        each = np.stack([tree.predict(rows) for tree in forest.estimators_])
        return modelled + each.mean(0), np.maximum(each.std(0), LEAST_DOUBT)

    def _grown(self) -> Any:
        if self._forest is None:
            from sklearn.ensemble import ExtraTreesRegressor

            self._names = sorted({name for row in self._rows for name in row})
            self._forest = ExtraTreesRegressor(TREES, max_features=0.6, random_state=self.seed, n_jobs=1)
            self._forest.fit(self._table(self._rows), np.array(self._off))
        return self._forest

    def _table(self, rows: Sequence[Mapping[str, float]]) -> Array:
        return np.array([[row.get(name, 0.0) for name in self._names] for row in rows], np.float32)

    def _features(self, p: Problem, choice: Choice) -> dict[str, float]:
        c = choice.config
        shape = {
            "mb": p.mb, "icg": p.icg, "ocg": p.ocg, "g": p.g, "pixels": math.prod(p.o), "row": p.o[-1], "taps": p.taps,
            "width": p.k[-1], "stride": p.s[-1], "reduction": p.reduction,
        }  # fmt: skip
        across = max(1, c.get("rw", c.get("r", 1)))
        tile = {"tile": across * c.get("rh", 1) * c.get("v", 1), "tail": p.o[-1] % across}
        numbers = {**shape, **tile, **{f"config {name}": n for name, n in c.items()}}
        found = {name: math.log2(1 + n) for name, n in numbers.items()}
        found[f"algorithm {choice.algorithm}"] = 1.0
        found["rate"] = math.log2(self.modelled(p, choice) / p.flops)
        return found


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Expected share of `best` us that a candidate saves, by its log-normal prediction."""
    z = (math.log(best) - mean) / deviation
    normal = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    shifted = 0.5 * (1 + np.vectorize(math.erf)((z - deviation) / math.sqrt(2)))
    found: Array = normal - np.exp(mean + deviation**2 / 2) / best * shifted
    return np.maximum(found, 0.0)
