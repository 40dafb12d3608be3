"""Offers: what each algorithm has for a problem, with what it costs; and why the others have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from convc.algorithm import Algorithm, Choice, Config, algorithms
from convc.dtypes import HALVES, definition_error
from convc.dtypes import MAX_REL_ERR as MAX_REL_ERR
from convc.dtypes import ROUNDING as ROUNDING
from convc.ir.check import SUMS
from convc.problem import Problem
from convc.target import Target

BELIEVED = 0.75  # of the time of the record, that another algorithm's model must promise to compete with it: models are
# off by less where both know the machine, and records are older than some algorithms


@dataclass(frozen=True)
class Measured:
    """A choice that records speak for, and its time as `Offer` has it; `origin` is tuned, or transferred where it was
    measured on a problem or target that is only near. `error` is what was measured of a tuned one, relative to the
    output range."""

    choice: Choice
    seconds: float
    origin: str = "tuned"
    error: float | None = None


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
    """A line of `convc explain`: an algorithm's best offer, with the limit of the machine that its time comes from
    where the model says, or why it has none."""

    algorithm: str
    config: str = ""
    us: float | None = None
    error: float | None = None
    memory: int | None = None
    refusal: str | None = None
    limit: str | None = None


def offers(
    problem: Problem,
    target: Target,
    *,
    epilogue: str = "none",
    max_rel_err: float,
    finite: bool = True,
    records: Records | None = None,
    size: Size = unasked,
) -> list[Offer]:
    """For each algorithm that takes the problem and each pair of layouts it has, its fastest config; with `size` the
    fastest for each size of packed weights. The class of its epilogue matters to records only; `finite` says whether
    all weights are.

    Where records hold a pair of layouts, measured choices compete for it, modelled ones of fewer bytes, and those of
    other algorithms that promise far more. Elsewhere the modelled time is scaled by what the model was wrong by on this
    problem's records.
    """
    taken = {
        name: a for name, a in algorithms(target.kind).items()
        if refusal(a, problem, target) is None and (finite or not a.mixes)
    }  # fmt: skip

    def by_layout(algorithm: Algorithm) -> list[Offer]:
        return _by_layout(algorithm, problem, target, size, max_rel_err=max_rel_err)

    def allowed(m: Measured) -> bool:
        algorithm = taken.get(m.choice.algorithm)
        return algorithm is not None and within(algorithm, problem, m.choice.config, max_rel_err)

    modelled = [offer for algorithm in taken.values() for offer in by_layout(algorithm)]
    known = [m for m in (records(problem, epilogue) if records else ()) if allowed(m)]
    measured = [_offer(taken[m.choice.algorithm], problem, m.choice, m.seconds, size(problem, m.choice)) for m in known]

    def model(choice: Choice) -> float:
        return taken[choice.algorithm].cost(problem, target, choice.config)

    return _merge(modelled, measured, model)


def within(algorithm: Algorithm, problem: Problem, config: Config, max_rel_err: float) -> bool:
    """Whether the bound of a config is at most `max_rel_err`, or for an algorithm that does not mix that of summing the
    products one by one: what the definition itself does not promise cannot be asked for."""
    bound = algorithm.error(problem, config)
    plain = not algorithm.mixes and bound <= definition_error(problem.dtype, problem.reduction)
    return plain or bound * ROUNDING.get(problem.dtype, 0.0) <= max_rel_err


def bound_of(problem: Problem, choice: Choice) -> float | None:
    """The relative error that the algorithm promises to keep (Algorithm.error as a fraction); None for types that do
    not round."""
    rounding = ROUNDING.get(problem.dtype)
    return None if rounding is None else choice.entry.error(problem, choice.config) * rounding


def explain_problem(problem: Problem, target: Target, *, max_rel_err: float = 1.0) -> list[Row]:
    """Every algorithm, those that take the problem first and the fastest of them first."""
    problem = problem.canonical
    rows = [_row(algorithm, problem, target, max_rel_err) for algorithm in algorithms(target.kind).values()]
    return sorted(rows, key=lambda row: (row.us is None, row.us or 0.0, row.algorithm))


def refusal(algorithm: Algorithm, problem: Problem, target: Target) -> str | None:
    """Why `algorithm` is no candidate, or None."""
    if target.kind != algorithm.kind:
        return f"it is for {algorithm.kind} targets"
    if target.kind == "cpu" and problem.dtype in (*HALVES, *SUMS):
        return f"CPUs compute {problem.dtype} without algorithms"
    return algorithm.refuses(problem, target)


def _row(algorithm: Algorithm, problem: Problem, target: Target, max_rel_err: float) -> Row:
    if reason := refusal(algorithm, problem, target):
        return Row(algorithm.name, refusal=reason)
    found = _by_layout(algorithm, problem, target, max_rel_err=max_rel_err)
    if not found:
        return Row(algorithm.name, refusal=f"no config fits this problem with an error of at most {max_rel_err:g}")
    best = min(found, key=lambda o: o.seconds)
    config = ",".join(f"{k}={v}" for k, v in sorted(best.choice.config.items()))
    limit = algorithm.limit(problem, target, best.choice.config) if algorithm.limit else None
    return Row(algorithm.name, config, best.seconds * 1e6, best.error, best.memory, limit=limit)


def _by_layout(
    algorithm: Algorithm, problem: Problem, target: Target, size: Size = unasked, *, max_rel_err: float
) -> list[Offer]:
    best: dict[tuple[int, int, int], tuple[float, Choice]] = {}
    for config in algorithm.space(problem, target):
        if not within(algorithm, problem, config, max_rel_err):
            continue
        choice, seconds = algorithm.choice(config), algorithm.cost(problem, target, config)
        key = (config["xb"], config["yb"], size(problem, choice))
        if key not in best or seconds < best[key][0]:
            best[key] = (seconds, choice)
    return [_offer(algorithm, problem, choice, seconds, key[2]) for key, (seconds, choice) in best.items()]


def _offer(algorithm: Algorithm, problem: Problem, choice: Choice, seconds: float, packed: int) -> Offer:
    error = algorithm.error(problem, choice.config) * ROUNDING.get(problem.dtype, 0.0)
    return Offer(choice, seconds, error, algorithm.memory(problem, choice.config), packed)


def _merge(modelled: list[Offer], measured: list[Offer], model: Callable[[Choice], float]) -> list[Offer]:
    if not measured:
        return modelled
    scale = median(m.seconds / model(m.choice) for m in measured)
    known: dict[tuple[int, int], list[Offer]] = {}
    for m in measured:
        known.setdefault(m.blocks, []).append(m)

    def competes(o: Offer) -> bool:
        rivals = known.get(o.blocks, [])
        fewer = all(o.packed < m.packed for m in rivals)
        other = all(o.choice.algorithm != m.choice.algorithm and o.seconds < BELIEVED * m.seconds for m in rivals)
        return fewer or other

    return measured + [o for o in (replace(o, seconds=o.seconds * scale) for o in modelled) if competes(o)]
