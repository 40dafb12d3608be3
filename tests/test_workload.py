"""Is what the autotuner tries each algorithm on itself right? Its data against the nodes' references, and a real trial
of every algorithm with every class of epilogues."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import kernels
import numpy as np
import pytest

from convc.algorithm import Choice, algorithms
from convc.errors import UsageError
from convc.ir import Unary
from convc.plan.epilogue import EPILOGUES, epilogue_of
from convc.plan.offers import ROUNDING, refusal
from convc.problem import Problem
from convc.target import Target, parse_target
from convc.tune.build import Builders, Candidate
from convc.tune.device import LocalDevice
from convc.tune.record import Record
from convc.tune.trials import Trials
from convc.tune.workload import LONG_ROUNDING, Workload

# Small, with channels that fill no vector, borders and strides: each algorithm tries those that it takes.
PROBLEMS = [
    "mb1_ic24ih9_oc20oh9_kh3ph1",
    "mb2_ic3ih13_oc20oh7_kh3sh2ph1",
    "mb1_ic20ih11_oc24oh11_kh1",
    "g20mb1_ic20ih9_oc20oh9_kh3ph1",
    "g4mb1_ic32ih6_oc32oh6_kh3ph1",
    "transposed_mb1_ic20ih5_oc12oh10_kh4sh2ph1",
    "matmul_ic48iw20_oc37",
]


@functools.cache
def machine(threads: int) -> Target:
    return parse_target("native", threads=threads)


def default(name: str, problem: Problem, target: Target) -> Choice | None:
    """What the algorithm takes untuned."""
    algorithm = algorithms()[name]
    if refusal(algorithm, problem, target):
        return None
    configs = algorithm.space(problem, target)
    return Choice(name, min(configs, key=lambda c: algorithm.cost(problem, target, c))) if configs else None


def problems_of(name: str, target: Target) -> list[Problem]:
    found = [Problem.parse(text).canonical for text in PROBLEMS]
    return [p for p in found if default(name, p, target)]


# -- a real trial of each --


@functools.cache
def trials_of(threads: int) -> dict[tuple[str, str], list[Record]]:
    """By algorithm and epilogue, of every problem that it takes. The fallback, right first, tries one of them."""
    target, names = machine(threads), sorted(algorithms())
    candidates: dict[tuple[str, str], list[Candidate]] = {}
    for name in names:
        problems = problems_of(name, target)[: 1 if name == "fallback" else None]
        for epilogue in EPILOGUES:
            choices = [(p, default(name, p, target)) for p in problems]
            candidates[name, epilogue] = [Candidate(Workload(p, epilogue), c) for p, c in choices if c]
    device = LocalDevice()
    try:
        with Builders(target) as builders:
            flat = [c for group in candidates.values() for c in group]
            records = iter(Trials(target, builders, device, noisy=math.inf).run(flat))
            return {key: [next(records) for _ in group] for key, group in candidates.items()}
    finally:
        device.close()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("name", sorted(algorithms()))
def test_the_default_of_each_algorithm_passes(name: str, epilogue: str, threads: int) -> None:
    records = trials_of(threads)[name, epilogue]
    assert records, f"{name} takes none of the problems"
    assert [(r.problem, r.status, r.reason) for r in records] == [(r.problem, "ok", "") for r in records]
    for record in records:
        assert (record.algorithm, record.epilogue, record.threads) == (name, epilogue, threads)
        assert record.error is not None and record.error < 1e-5


# -- its data --


def cases() -> Iterator[tuple[Workload, Choice]]:
    target = parse_target("cpu/znver3")
    for text in PROBLEMS:
        problem = Problem.parse(text).canonical
        pairs = {}
        for name in sorted(algorithms()):
            if choice := default(name, problem, target):
                pairs.setdefault((choice.config["xb"], choice.config["yb"]), choice)
        for epilogue in EPILOGUES:
            for choice in pairs.values():
                yield Workload(problem, epilogue), choice


CASES = [pytest.param(w, c, id=f"{w} {c.config['xb']}->{c.config['yb']}") for w, c in cases()]


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "normal"])
@pytest.mark.parametrize(("workload", "choice"), CASES)
def test_expects_what_the_nodes_say(workload: Workload, choice: Choice, exact: bool) -> None:
    data = workload.data(choice, exact=exact)
    layouts, result = workload.layouts(choice)
    group = workload.group
    values = {
        read: kernels.read_back(array.reshape(layout.physical(read.shape)), read.shape, layout)
        for read, array, layout in zip(group.reads, data.reads, layouts, strict=True)
    }
    shape = workload.nodes[-1].shape
    expected = kernels.read_back(data.expected, shape, result)
    np.testing.assert_array_equal(expected, kernels.reference(workload.nodes, values))
    assert all(v.dtype == np.float32 for v in data.reads)
    assert (data.expected.dtype, data.tolerance.dtype) == (np.float64, np.float32)
    assert data.expected.shape == data.tolerance.shape == result.physical(shape)
    whole = all((v == np.round(v)).all() for v in values.values())
    assert whole == exact
    assert len(np.unique(expected)) > expected.size / 100, "results that say something"


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "normal"])
@pytest.mark.parametrize(("workload", "choice"), CASES)
def test_asks_for_everything_but_padding(workload: Workload, choice: Choice, exact: bool) -> None:
    data = workload.data(choice, exact=exact)
    layouts, result = workload.layouts(choice)
    node = workload.nodes[-1]
    lanes = np.ones(result.physical(node.shape), bool)
    if result.block > 1:
        for channel in range(node.shape[1]):
            lanes[:, channel // result.block, ..., channel % result.block] = False
    else:
        lanes[:] = False
    np.testing.assert_array_equal(data.tolerance == -1, lanes)
    assert (data.tolerance[~lanes] >= 0).all()
    for read, array, layout in zip(workload.group.reads, data.reads, layouts, strict=True):
        assert np.isnan(array).sum() == math.prod(layout.physical(read.shape)) - math.prod(read.shape)


@pytest.mark.parametrize(("workload", "choice"), CASES)
def test_allows_the_rounding_that_the_algorithm_states(workload: Workload, choice: Choice) -> None:
    """Not less than its bound, for which the sum of absolute products counts, and not so much that faults fit in."""
    whole, normal = (workload.data(choice, exact=exact) for exact in (True, False))
    asked = normal.tolerance >= 0
    scale = abs(normal.expected[asked]).max()
    assert (normal.tolerance[asked] > 0).all()
    assert normal.tolerance[asked].max() < 1e-3 * scale
    bound = choice.entry.error(workload.problem, choice.config) * ROUNDING["float32"]
    linear = [n for n in workload.nodes if not isinstance(n, Unary)]
    reads, (layouts, result) = workload.group.reads, workload.layouts(choice)
    sizes = {
        read: abs(kernels.read_back(array.reshape(layout.physical(read.shape)), read.shape, layout))
        for read, array, layout in zip(reads, normal.reads, layouts, strict=True)
    }
    least = bound * kernels.reference(linear[:1], {r: v for r, v in sizes.items() if r in linear[0].args})
    allowed = kernels.read_back(normal.tolerance, linear[0].shape, result)
    assert (allowed >= least).all()
    if workload.epilogue == "long":
        limit = 1.001 * LONG_ROUNDING * np.maximum(1, abs(whole.expected))
        assert (whole.tolerance[asked] <= limit[asked]).all()
    else:
        assert (whole.tolerance[asked] == 0).all()
        assert (whole.expected == whole.expected.astype(np.float32)).all(), "float32 holds every result exactly"


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_stands_for_its_class(epilogue: str) -> None:
    workload = Workload(Problem.parse(PROBLEMS[0]), epilogue)
    assert epilogue_of(workload.group) == epilogue
    assert workload.group.problem == workload.problem


def test_the_same_data_twice() -> None:
    workload, choice = next(cases())
    first, second = (Workload(workload.problem, "residual").data(choice, exact=False) for _ in range(2))
    for a, b in zip(first.reads, second.reads, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({array.tobytes() for array in first.reads}) == len(first.reads)


def test_an_epilogue_of_no_class() -> None:
    with pytest.raises(UsageError, match="'sometimes' is no class of epilogues; known: none, short, residual, long"):
        Workload(Problem.parse(PROBLEMS[0]), "sometimes")
