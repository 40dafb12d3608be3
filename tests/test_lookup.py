"""What do records say of a problem that is compiled? Its own record first, then the nearest, then nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cli_calls import complaint, document, isolate, told
from onnx_models import conv_model

from convc.algorithm import algorithms
from convc.errors import UntunedError
from convc.pipeline import compile as compile_model
from convc.pipeline import run_until
from convc.plan.plan import Plan
from convc.problem import Problem
from convc.target import Target, parse_target
from convc.tune.log import merge
from convc.tune.lookup import Lookup, lookup_for
from convc.tune.record import Record, schedule_hash
from convc.tune.search import Task
from convc.tune.workload import Workload

ONE, TWO = parse_target("cpu/znver3"), parse_target("cpu/znver3", threads=2)
PROBLEM = Problem.parse("mb1_ic64ih28_oc64oh28_kh3ph1")


def record(problem: Problem, place: int = 0, *, target: Target = ONE, **changes: object) -> Record:
    """Of direct's config at `place` among those of blocked layouts."""
    space = [c for c in algorithms()["direct"].space(problem, target) if (c["xb"], c["yb"]) == (8, 8)]
    values = {
        "problem": str(problem), "epilogue": "short", "target": target.label, "threads": target.threads,
        "algorithm": "direct", "config": dict(space[place]), "schedule": schedule_hash(algorithms()["direct"]),
        "status": "ok", "us": 100.0, "us_warm": None, "spread": 0.01, "peak": None, "error": 0.0, "workspace": 0,
        "reason": "", "tvm": "0", "device": "formula", "date": "2026-11-24",
    }  # fmt: skip
    return Record(**{**values, **changes})  # type: ignore[arg-type]


def blocked(found: Sequence[object]) -> object:
    (only,) = [m for m in found if (m.choice.config["xb"], m.choice.config["yb"]) == (8, 8)]  # type: ignore[attr-defined]
    return only


def test_the_record_of_the_very_problem_goes_first() -> None:
    own, near = record(PROBLEM, 5, error=2e-7), record(replace(PROBLEM, oc=128), 0, us=1.0)
    found = blocked(Lookup(ONE, (near, own))(PROBLEM, "short"))
    assert (found.origin, dict(found.choice.config), found.seconds) == ("tuned", own.config, pytest.approx(100e-6))
    assert found.error == 2e-7


def test_seconds_are_processor_time() -> None:
    found = blocked(Lookup(TWO, (record(PROBLEM, target=TWO),))(PROBLEM, "short"))
    assert (found.origin, found.seconds) == ("tuned", pytest.approx(200e-6))


@pytest.mark.parametrize("what", ["epilogue", "threads", "extent"])
def test_a_near_record_is_transferred(what: str) -> None:
    other = replace(PROBLEM, oc=128) if what == "extent" else PROBLEM
    target, epilogue = TWO if what == "threads" else ONE, "none" if what == "epilogue" else "short"
    given = record(other, 7, target=target, epilogue=epilogue, error=2e-7)
    found = blocked(Lookup(ONE, (given,))(PROBLEM, "short"))
    assert (found.origin, found.error) == ("transferred", None), "nobody measured that error here"
    assert found.choice.config in algorithms()["direct"].space(PROBLEM, ONE)
    assert {k: found.choice.config[k] for k in ("rw", "v")} == {k: given.config[k] for k in ("rw", "v")}


def test_a_transferred_time_is_scaled_by_the_model() -> None:
    other, direct = replace(PROBLEM, oc=128), algorithms()["direct"]
    given = record(other, 3)
    found = blocked(Lookup(ONE, (given,))(PROBLEM, "short"))
    off = 100e-6 / direct.cost(other, ONE, given.config)
    assert found.seconds == pytest.approx(off * direct.cost(PROBLEM, ONE, found.choice.config))


@pytest.mark.parametrize(
    "other",
    [replace(PROBLEM, k=(5, 5), p=(2, 2)), replace(PROBLEM, s=(2, 2), o=(14, 14)), replace(PROBLEM, ic=4096, oc=2048)],
)
def test_a_record_of_another_family_or_far_away_says_nothing(other: Problem) -> None:
    assert Lookup(ONE, (record(other),))(PROBLEM, "short") == ()


def test_a_config_that_the_space_lacks_is_not_taken_as_it_is() -> None:
    given = record(PROBLEM)
    forged = replace(given, config={**given.config, "rw": 999})
    for found in Lookup(ONE, (forged,))(PROBLEM, "short"):
        assert found.choice.config in algorithms()["direct"].space(PROBLEM, ONE)
        assert found.origin == "transferred"


def test_logs_are_read_once_they_are_written_and_stale_ones_are_not(tmp_path: Path) -> None:
    given = record(PROBLEM, 4)
    merge(tmp_path, [given])
    assert blocked(lookup_for(ONE, tmp_path)(PROBLEM, "short")).origin == "tuned"
    other = tmp_path / "other"
    merge(other, [replace(given, schedule="0" * 12)])
    assert all(m.choice.config != given.config for m in lookup_for(ONE, other)(PROBLEM, "short"))


def plan_of(records: Path | None, **options: object) -> Plan:
    model = conv_model().SerializeToString()
    plan: Plan = run_until("chosen", model, target="cpu/znver3", records=records, **options)
    return plan


def test_compile_takes_what_is_recorded_and_tells(tmp_path: Path) -> None:
    ((group, before),) = plan_of(tmp_path).choices.items()
    problem = group.problem
    assert problem is not None
    task = Task(Workload(problem, "none"), (before.config["xb"], before.config["yb"]))
    other = [c for c in task.choices(ONE) if c != before][-1]
    hashed = schedule_hash(algorithms()[other.algorithm])
    changes = {"algorithm": other.algorithm, "config": dict(other.config), "schedule": hashed, "us": 0.5}
    merge(tmp_path, [replace(record(PROBLEM), problem=str(problem), epilogue="none", **changes)])
    (choice,) = plan_of(tmp_path).choices.values()
    assert choice == other
    said = lookup_for(ONE, tmp_path).behind(problem, "none", choice)
    assert said and said.origin == "tuned"
    assert plan_of(tmp_path, require_tuned=True).choices


def test_bound_and_measured_error_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the manifest, and where `explain` tells of the artifact, of the model and, by its record, of the problem."""
    isolate(tmp_path, monkeypatch)
    model, records, built = tmp_path / "net.onnx", tmp_path / "records", tmp_path / "net.convc"
    model.write_bytes(conv_model().SerializeToString())
    ((group, choice),) = plan_of(tmp_path).choices.items()
    algorithm, problem = algorithms()[choice.algorithm], str(group.problem)
    bound = algorithm.error(Problem.parse(problem), choice.config) * 2.0**-24
    changes = {"algorithm": choice.algorithm, "config": dict(choice.config), "schedule": schedule_hash(algorithm)}
    own = replace(record(PROBLEM), problem=problem, epilogue="none", us=0.5, error=2e-7, **changes)
    merge(records, [own])
    for folder, measured in ((records, 2e-7), (tmp_path / "none", None)):
        artifact = compile_model(model, target="cpu/znver3", records=folder)
        artifact.save(built)
        (layer,) = [layer for layer in artifact.layers if layer.problem]
        assert (layer.bound, layer.measured) == (bound, measured)
        asked = ("--target", "cpu/znver3", "--records", folder)
        for argv in ((built,), (model, *asked), *([(problem, *asked)] if measured else [])):
            (found,) = document(capsys, "explain", *argv)["problems"]
            assert (found["choice"], found["bound"], found["measured"]) == (str(choice), bound, measured)
            words = f"error {'' if measured is None else '2.0e-07 measured, '}bound {bound:.1e}"
            assert f"{choice}; {words}\n" in told(capsys, "explain", *argv)


def test_require_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    isolate(tmp_path, monkeypatch)
    with pytest.raises(UntunedError, match="1 problems have no record for cpu/znver3 on 1 threads; run `convc tune`"):
        plan_of(tmp_path, require_tuned=True)
    model = tmp_path / "net.onnx"
    model.write_bytes(conv_model().SerializeToString())
    empty = tmp_path / "empty"
    message = complaint(
        capsys, "compile", model, "-o", tmp_path / "x.convc", "--records", empty, "--require-tuned", code=9
    )
    assert "g1mb1_ic3ih8iw8_oc4oh6ow6" in message
    (found,) = document(capsys, "explain", model, "--records", empty)["problems"]
    assert found["source"] == "modelled"
