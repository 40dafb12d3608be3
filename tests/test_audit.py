"""Does what won alone give way where it loses in its network, and only there?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from onnx_models import conv_model

from convc.algorithm import Choice
from convc.pipeline import run_until
from convc.plan import select
from convc.plan.offers import MAX_REL_ERR, Measured, Records
from convc.plan.plan import Plan
from convc.problem import Problem
from convc.target import Target, parse_target
from convc.tune import audit
from convc.tune.build import Builders
from convc.tune.device import LocalDevice
from convc.tune.record import Record
from convc.tune.search import Task
from convc.tune.session import Entry
from convc.tune.trials import Trials
from convc.tune.tuner import Network, Tuner

NATIVE = parse_target("native")


def network() -> Network:
    plan = run_until("plan", conv_model().SerializeToString(), target="native")
    return Network(plan, lambda plan, records: select(plan, NATIVE, max_rel_err=MAX_REL_ERR, records=records))


def other_choice() -> tuple[Task, Choice, Records]:
    """The one task of the network, a choice for it that is not the model's, and records that say it is fast."""
    (task,) = network()(lambda problem, epilogue: ())
    chosen = next(iter(network().chosen(lambda problem, epilogue: ()).choices.values()))
    other = next(c for c in task.choices(NATIVE) if c != chosen)

    def records(problem: Problem, epilogue: str) -> list[Measured]:
        return [Measured(other, 1e-12)]

    return task, other, records


def plans() -> tuple[Task, Plan, Plan]:
    task, _, records = other_choice()
    return task, network().chosen(lambda problem, epilogue: ()), network().chosen(records)


def told(before: float, after: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(plans: tuple[Plan, Plan], target: Target) -> tuple[list[float], list[float]]:
        return [before] * len(plans[0].run), [after] * len(plans[1].run)

    monkeypatch.setattr(audit, "_timed", timed)


@pytest.mark.parametrize(("after", "loses"), [(9.0, False), (10.0, False), (10.05, False), (10.2, True), (30.0, True)])
def test_what_is_slower_in_the_network_loses(after: float, loses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told(10.0, after, monkeypatch)
    task, old, new = plans()
    found = audit.losers(old, new, NATIVE)
    assert set(found) == ({task} if loses else set())
    if loses:
        assert (found[task].before, found[task].after) == tuple(next(iter(p.choices.values())) for p in (old, new))


def test_the_same_choice_never_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    told(10.0, 99.0, monkeypatch)
    _, old, _ = plans()
    assert not audit.losers(old, old, NATIVE)


def test_both_plans_run_and_are_timed() -> None:
    _, old, new = plans()
    for audited in audit.losers(old, new, NATIVE).values():
        assert audited.ratio > audit.SLOWER
        assert min(audited.us) > 0


@pytest.mark.parametrize("loses", [False, True])
def test_the_log_keeps_what_is_fast_in_the_network(
    loses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose winner is not the default, audited."""
    told(10.0, 20.0 if loses else 10.0, monkeypatch)
    default = next(iter(network().chosen(lambda problem, epilogue: ()).choices.values()))
    with Builders(NATIVE, 1) as builders:
        tuner = Tuner(Trials(NATIVE, builders, LocalDevice()), float("inf"), tmp_path, most=6)
        take = tuner.session._take

        def taken(entry: Entry, record: Record) -> None:
            """All but the default seem ten times as fast."""
            other = record.us is not None and record.choice != str(default)
            take(entry, replace(record, us=record.us / 10) if record.us and other else record)

        def won(entry: Entry, standing: Record, rivals: Sequence[Record]) -> None:
            entry.standing = rivals[0]

        monkeypatch.setattr(tuner.session, "_take", taken)
        monkeypatch.setattr(tuner.session, "_race", won)
        outcome = tuner.run([network()])
        tuner.trials.device.close()
    stands = {row.record.choice for row in outcome.rows if row.record}
    assert (str(default) in stands) == loses
