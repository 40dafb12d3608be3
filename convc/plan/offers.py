"""Offers: what each algorithm has for a problem, with what it costs; and why the others have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from convc.algorithm import Algorithm, Choice, Config, algorithms
from convc.problem import Problem
from convc.target import Target

ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True)
class Measured:
    """A record's choice and its median time in seconds."""

    choice: Choice
    seconds: float


Records = Callable[[Problem], Sequence[Measured]]
"""The records of a problem on the target that is compiled for."""


@dataclass(frozen=True)
class Offer:
    """The best config of one algorithm for one pair of layouts: processor seconds (Algorithm.cost), error bound
    relative to sum(|x * w|), workspace in bytes per thread."""

    choice: Choice
    seconds: float
    error: float
    memory: int

    @property
    def blocks(self) -> tuple[int, int]:
        return self.choice.config["xb"], self.choice.config["yb"]


@dataclass(frozen=True)
class Row:
    """A line of `convc explain`: an algorithm's best offer, or why it has none."""

    algorithm: str
    config: str = ""
    us: float | None = None
    error: float | None = None
    memory: int | None = None
    refusal: str | None = None


def offers(problem: Problem, target: Target, *, max_rel_err: float, records: Records | None = None) -> list[Offer]:
    """For each algorithm that takes the problem and each pair of layouts it has, its fastest config.

    Where records hold a pair of layouts, only measured choices compete for it. Elsewhere the modelled time is scaled
    by what the model was wrong by on this problem's records.
    """
    taken = {name: a for name, a in algorithms().items() if refusal(a, problem, target) is None}
    modelled = [offer for algorithm in taken.values() for offer in _by_layout(algorithm, problem, target)]
    limit = _error_limit(modelled, problem, max_rel_err)
    known = [m for m in (records(problem) if records else ()) if m.choice.algorithm in taken]
    measured = [_offer(taken[m.choice.algorithm], problem, m.choice.config, m.seconds) for m in known]

    def model(choice: Choice) -> float:
        return taken[choice.algorithm].cost(problem, target, choice.config)

    return _merge([o for o in modelled if o.error <= limit], [m for m in measured if m.error <= limit], model)


def explain_problem(problem: Problem, target: Target) -> list[Row]:
    """Every algorithm, those that take the problem first and the fastest of them first."""
    problem = problem.canonical
    rows = [_row(algorithm, problem, target) for algorithm in algorithms().values()]
    return sorted(rows, key=lambda row: (row.us is None, row.us or 0.0, row.algorithm))


def refusal(algorithm: Algorithm, problem: Problem, target: Target) -> str | None:
    """Why `algorithm` is no candidate, or None."""
    if target.kind not in algorithm.schedule:
        return f"it has no schedule for {target.kind}"
    return algorithm.refuses(problem, target)


def _row(algorithm: Algorithm, problem: Problem, target: Target) -> Row:
    if reason := refusal(algorithm, problem, target):
        return Row(algorithm.name, refusal=reason)
    found = _by_layout(algorithm, problem, target)
    if not found:
        return Row(algorithm.name, refusal="no config fits this problem")
    best = min(found, key=lambda o: o.seconds)
    config = ",".join(f"{k}={v}" for k, v in sorted(best.choice.config.items()))
    return Row(algorithm.name, config, best.seconds * 1e6, best.error, best.memory)


def _by_layout(algorithm: Algorithm, problem: Problem, target: Target) -> list[Offer]:
    best: dict[tuple[int, int], tuple[float, Config]] = {}
    for config in algorithm.space(problem, target):
        pair, seconds = (config["xb"], config["yb"]), algorithm.cost(problem, target, config)
        if pair not in best or seconds < best[pair][0]:
            best[pair] = (seconds, config)
    return [_offer(algorithm, problem, config, seconds) for seconds, config in best.values()]


def _offer(algorithm: Algorithm, problem: Problem, config: Config, seconds: float) -> Offer:
    error = algorithm.error(problem, config) * ROUNDING.get(problem.dtype, 0.0)
    return Offer(Choice(algorithm.name, config), seconds, error, algorithm.memory(problem, config))


def _error_limit(found: Sequence[Offer], problem: Problem, max_rel_err: float) -> float:
    """The bound an offer must keep: `max_rel_err`, or that of summing the products one by one where this is larger.

    Bounds are relative to the largest sum(|x * w|) of the layer. The second part keeps every direct algorithm: what
    the definition itself does not promise cannot be asked for.
    """
    plain = problem.reduction * ROUNDING.get(problem.dtype, 0.0)
    return max(max_rel_err, plain, min((o.error for o in found), default=0.0))


def _merge(modelled: list[Offer], measured: list[Offer], model: Callable[[Choice], float]) -> list[Offer]:
    if not measured:
        return modelled
    scale, known = median(m.seconds / model(m.choice) for m in measured), {m.blocks for m in measured}
    return measured + [replace(o, seconds=o.seconds * scale) for o in modelled if o.blocks not in known]
