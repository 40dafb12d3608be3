"""Offers: what each algorithm has for a problem, with what it costs; and why the others have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from convc.algorithm import Algorithm, Choice, algorithms
from convc.problem import Problem
from convc.target import Target

ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}


@dataclass(frozen=True)
class Measured:
    """A choice that records speak for, and its time as `Offer` has it; `origin` is tuned, or transferred where it was
    measured on a problem or target that is only near."""

    choice: Choice
    seconds: float
    origin: str = "tuned"


Records = Callable[[Problem, str], Sequence[Measured]]
"""What records say of a problem with a class of epilogues, on the target that is compiled for."""

Size = Callable[[Problem, Choice], int]
"""Bytes of the weights as a choice packs them."""


def unasked(problem: Problem, choice: Choice) -> int:
    """The size where memory is no matter: all are alike."""
    return 0


@dataclass(frozen=True)
class Offer:
    """The best config of one algorithm for one pair of layouts and size of packed weights: processor seconds
    (Algorithm.cost), error bound relative to sum(|x * w|), workspace in bytes per thread, and `packed` the bytes
    of its weights, 0 where nobody asked."""

    choice: Choice
    seconds: float
    error: float
    memory: int
    packed: int = 0

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


def offers(
    problem: Problem,
    target: Target,
    *,
    epilogue: str = "none",
    max_rel_err: float,
    records: Records | None = None,
    size: Size = unasked,
) -> list[Offer]:
    """For each algorithm that takes the problem and each pair of layouts it has, its fastest config; with `size` the
    fastest for each size of packed weights. The class of its epilogue matters to records only.

    Where records hold a pair of layouts, only measured choices compete for it, and modelled ones of fewer bytes.
    Elsewhere the modelled time is scaled by what the model was wrong by on this problem's records.
    """
    taken = {name: a for name, a in algorithms().items() if refusal(a, problem, target) is None}
    modelled = [offer for algorithm in taken.values() for offer in _by_layout(algorithm, problem, target, size)]
    limit = _error_limit(modelled, problem, max_rel_err)
    known = [m for m in (records(problem, epilogue) if records else ()) if m.choice.algorithm in taken]
    measured = [_offer(taken[m.choice.algorithm], problem, m.choice, m.seconds, size(problem, m.choice)) for m in known]

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


def _by_layout(algorithm: Algorithm, problem: Problem, target: Target, size: Size = unasked) -> list[Offer]:
    best: dict[tuple[int, int, int], tuple[float, Choice]] = {}
    for config in algorithm.space(problem, target):
        choice, seconds = Choice(algorithm.name, config), algorithm.cost(problem, target, config)
        key = (config["xb"], config["yb"], size(problem, choice))
        if key not in best or seconds < best[key][0]:
            best[key] = (seconds, choice)
    return [_offer(algorithm, problem, choice, seconds, key[2]) for key, (seconds, choice) in best.items()]


def _offer(algorithm: Algorithm, problem: Problem, choice: Choice, seconds: float, packed: int) -> Offer:
    error = algorithm.error(problem, choice.config) * ROUNDING.get(problem.dtype, 0.0)
    return Offer(choice, seconds, error, algorithm.memory(problem, choice.config), packed)


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
    scale = median(m.seconds / model(m.choice) for m in measured)
    known: dict[tuple[int, int], int] = {}
    for m in measured:
        known[m.blocks] = min(m.packed, known.get(m.blocks, m.packed))
    others = [o for o in modelled if o.blocks not in known or o.packed < known[o.blocks]]
    return measured + [replace(o, seconds=o.seconds * scale) for o in others]
