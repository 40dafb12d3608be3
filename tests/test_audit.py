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
from convc.plan.arena import place
from convc.plan.offers import MAX_REL_ERR, Measured
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


def nothing(problem: Problem, epilogue: str) -> list[Measured]:
    return []


def the_choice(plan: Plan) -> Choice:
    (choice,) = plan.choices.values()
    return choice


def plans() -> tuple[Task, Plan, Plan]:
    """The one task of the network, the model's plan, and one under records that say that another choice is fast."""
    (task,), modelled = network()(nothing), network().chosen(nothing)
    other = next(c for c in task.choices(NATIVE) if c != the_choice(modelled))
    return task, modelled, network().chosen(lambda problem, epilogue: [Measured(other, 1e-12)])


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
        assert (found[task].before, found[task].after) == (the_choice(old), the_choice(new))


def test_the_same_choice_never_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    told(10.0, 99.0, monkeypatch)
    _, old, _ = plans()
    assert not audit.losers(old, old, NATIVE)


def test_both_plans_run_and_every_call_is_timed() -> None:
    _, *both = plans()
    placed = place(both[0]), place(both[1])
    times = audit._timed(placed, NATIVE)
    assert [len(us) for us in times] == [len(plan.run) for plan in placed]
    assert min(min(us) for us in times) > 0
    assert all(audited.ratio > audit.SLOWER for audited in audit.losers(*both, NATIVE).values())


@pytest.mark.parametrize("loses", [False, True])
def test_the_log_keeps_what_is_fast_in_the_network(
    loses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose winner is not the default, audited."""
    told(10.0, 20.0 if loses else 10.0, monkeypatch)
    default = the_choice(network().chosen(nothing))
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
