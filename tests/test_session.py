"""Does a session spend its budget as it says, and let stand only what is right and won? Times come from a formula."""

from __future__ import annotations

import math
import random
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import product

import pytest
from told import TARGET, TASKS, Formula, Told, modelled, record, skewed, task, times, wild

from convc.algorithm import Choice
from convc.problem import Problem
from convc.tune import session as sessions
from convc.tune.build import Candidate
from convc.tune.child import Ended, Failed
from convc.tune.record import Record
from convc.tune.search import Search, Task
from convc.tune.session import Progress, Session, standing_records
from convc.tune.surrogate import Surrogate
from convc.tune.workload import Workload

FOREVER = 1e9  # seconds


def session(
    trials: Told,
    tasks: Mapping[Task, int] | None = None,
    *,
    most: int | None = None,
    known: Iterable[Record] = (),
    told: Callable[[Progress], None] = lambda progress: None,
    deadline: float = FOREVER,
) -> tuple[Session, list[Record]]:
    """A session that has run, and what it wrote."""
    written: list[Record] = []
    found = Session(trials, written.extend, deadline, most, told)  # type: ignore[arg-type]
    found.add(tasks or {task(): 1}, known)
    found.run()
    return found, written


def standing(found: Session) -> str | None:
    (entry,) = found.entries.values()
    return entry.standing.choice if entry.standing else None


@pytest.mark.parametrize("most", [1, 5, 16, 17, 40])
def test_respects_the_number_of_trials(most: int) -> None:
    trials = Told(wild)
    found, _ = session(trials, {task(0): 1, task(1): 2}, most=most)
    assert found.count == len(trials.ran) == most
    assert len(set(trials.ran)) == most


def test_begins_nothing_after_the_deadline() -> None:
    trials = Told(skewed)
    session(trials, deadline=0.0)
    assert not trials.ran


@pytest.mark.parametrize("batch_seconds", [0.5, 3.0, 40.0])
def test_respects_the_deadline(batch_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own, where a batch takes so long; at most half of a batch ends too late."""
    clock = [1000.0]
    monkeypatch.setattr(sessions, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def pass_time() -> None:
        clock[0] += batch_seconds

    trials = Told(wild, during=pass_time)
    session(trials, {task(n): 1 for n in range(5)}, deadline=1100.0)
    assert trials.ran
    assert clock[0] < 1100.0 + batch_seconds / 2


def test_ends_when_little_is_to_be_gained() -> None:
    trials = Told(modelled)
    found, _ = session(trials)
    (entry,) = found.entries.values()
    assert found.count < len(entry.search.choices) / 3
    assert standing(found) == str(entry.search.default)


def test_goes_on_while_much_is_to_be_gained() -> None:
    exact, _ = session(Told(modelled))
    unknown, _ = session(Told(wild))
    assert unknown.count > 2 * exact.count


def test_the_budget_goes_where_the_time_goes() -> None:
    """Three tasks that differ in nothing but how often the network computes them."""
    trials = Told(lambda c: wild(replace(c, workload=task().workload)))
    workloads = [replace(task().workload, epilogue=name) for name in ("none", "short", "residual")]
    tasks = [Task(workload, task().blocks) for workload in workloads]
    for heavy in tasks:
        found, _ = session(trials, {t: 20 if t == heavy else 1 for t in tasks}, most=60)
        counts = {t: len(e.search.tried) for t, e in found.entries.items()}
        assert all(counts[heavy] > 2 * n for t, n in counts.items() if t != heavy), counts
        assert min(counts.values()) >= 4, "each gets its first guesses"


@pytest.mark.parametrize("number", range(len(TASKS)))
def test_finds_what_is_fast(number: int) -> None:
    trials = Told(skewed)
    found, written = session(trials, {task(number): 1})
    (entry,) = found.entries.values()
    us = [us for us in times(entry.search, skewed).values() if us]
    assert found.count < len(us) / 2
    assert entry.standing and entry.standing.us is not None
    assert entry.standing.us <= 1.1 * min(us)
    assert entry.default_us == skewed(Candidate(entry.task.workload, entry.search.default))
    assert written[-1] == entry.standing or entry.standing in written
    assert standing_records(found) == [entry.standing]


def test_what_is_wrong_never_stands() -> None:
    """The fastest algorithm is wrong throughout, the default with it."""
    fastest = Search(task(), Surrogate(TARGET)).default.algorithm

    def formula(candidate: Candidate) -> float | None:
        return None if candidate.choice.algorithm == fastest else skewed(candidate)

    seen: list[Progress] = []
    trials = Told(formula)
    found, written = session(trials, told=seen.append)
    (entry,) = found.entries.values()
    assert found.refused == sum(r.status != "ok" for r in written) > 0
    assert entry.default_us is None
    assert entry.standing and entry.standing.algorithm != fastest
    assert all(fastest not in name for race in trials.races for name in race)
    assert all(p.best is None or p.best.algorithm != fastest for p in seen)
    assert not any(fastest in name for name in entry.records)


def test_nothing_stands_where_all_is_wrong() -> None:
    trials = Told(lambda candidate: None)
    found, written = session(trials, {task(0): 1, task(3): 1})
    assert standing_records(found) == []
    assert found.refused == found.count == len(written) == sum(len(e.search.choices) for e in found.entries.values())
    assert len(set(trials.ran)) == len(trials.ran)


def test_one_hopeless_task_leaves_the_budget_to_the_others() -> None:
    hopeless = str(task(0).workload)
    trials = Told(lambda c: None if str(c.workload) == hopeless else wild(c))
    found, _ = session(trials, {task(0): 1, task(1): 1}, most=60)
    counts = [len(e.search.tried) for e in found.entries.values()]
    assert counts[1] >= 16, counts
    assert found.entries[task(1)].standing


# -- races --


def default() -> Choice:
    return Search(task(), Surrogate(TARGET)).default


def default_name() -> str:
    return str(default())


def in_turns(factor: float) -> Formula:
    """What a race says: the default takes 1 us, every other candidate `factor`."""
    return lambda candidate: 1.0 if str(candidate.choice) == default_name() else factor


@pytest.mark.parametrize("factor", [1.5, 1.0, 0.995])
def test_a_lost_race_changes_nothing(factor: float) -> None:
    trials = Told(skewed, raced=in_turns(factor))
    found, written = session(trials, most=40)
    assert trials.races, "others looked faster, measured alone"
    assert standing(found) == default_name()
    (entry,) = found.entries.values()
    assert [r.us for r in standing_records(found)] == [entry.default_us]
    assert len(written) == found.count, "no record of a race"


def test_a_won_race_is_written_down() -> None:
    trials = Told(skewed, raced=in_turns(0.5))
    found, written = session(trials, most=16)
    (entry,) = found.entries.values()
    assert entry.standing and entry.standing.choice != default_name()
    assert (entry.standing.us, entry.standing.spread) == (0.5, 0.01)
    assert f"x2.000 of {default_name()} in turns" in entry.standing.reason
    assert entry.standing in written


def test_only_what_looks_faster_races() -> None:
    trials = Told(modelled)
    session(trials)
    assert not trials.races


@pytest.mark.parametrize("error", [Ended("crash", "ended by SIGSEGV"), Failed("its values are wrong")], ids=repr)
def test_a_race_that_breaks_off_changes_nothing(error: Exception) -> None:
    trials = Told(skewed, ends=error)
    found, _ = session(trials, most=40)
    assert trials.races
    assert standing(found) == default_name()


def test_the_same_race_is_run_once() -> None:
    """Three candidates of the first batch stay the fastest, and lose to the default in turns."""
    first = {str(c) for c in Search(task(), Surrogate(TARGET)).propose(4)} - {default_name()}

    def formula(candidate: Candidate) -> float:
        return (0.1 if str(candidate.choice) in first else 0.9) * wild(candidate)

    trials = Told(formula, raced=in_turns(1.5))
    found, _ = session(trials, known=[record(Candidate(task().workload, default()), 1e6)])
    assert found.count > 16, "batches after the first"
    assert [set(race) for race in trials.races] == [first | {default_name()}]


def test_what_an_earlier_session_measured_can_race() -> None:
    """It must be compiled for that, but not be tried again."""
    _, written = session(Told(skewed), most=1)
    trials = Told(skewed)
    session(trials, most=20, known=written)
    assert any(default_name() in race for race in trials.races)
    assert not any(default_name() in name for name in trials.ran)


# -- going on --


def test_goes_on_where_an_earlier_session_ended() -> None:
    first = Told(wild)
    _, written = session(first, most=20)
    second = Told(wild)
    found, more = session(second, most=20, known=written)
    assert len(second.ran) == found.count == 20
    assert not set(first.ran) & set(second.ran), "nothing is measured twice"
    whole, _ = session(Told(wild), most=40)
    (entry,), (other,) = found.entries.values(), whole.entries.values()
    assert set(entry.search.tried) == {r.choice for r in [*written, *more]}
    assert entry.standing and other.standing and entry.standing.us == other.standing.us


def test_knows_what_stood_when_nothing_is_left_to_measure() -> None:
    before, written = session(Told(wild))
    again = Told(wild)
    found, more = session(again, most=0, known=written)
    assert not again.ran
    assert not more
    assert standing(before) != default_name()
    assert standing_records(found) == standing_records(before)
    assert [e.default_us for e in found.entries.values()] == [e.default_us for e in before.entries.values()]


def test_earlier_refusals_are_not_tried_again() -> None:
    choices = list(Search(task(), Surrogate(TARGET)).choices.values())
    known = [record(Candidate(task().workload, c), None) for c in choices[:10]]
    trials = Told(skewed)
    session(trials, known=known, most=30)
    assert not set(trials.ran) & {str(Candidate(task().workload, c)) for c in choices[:10]}


def test_records_of_other_things_are_passed_over() -> None:
    """Another problem, another class of epilogue, other layouts, and a config that the space does not have."""
    choice = Search(task(), Surrogate(TARGET)).default
    workload = task().workload
    other = Workload(workload.problem, "long")
    known = [
        record(Candidate(task(1).workload, choice), 1.0),
        record(Candidate(other, choice), 1.0),
        record(Candidate(workload, choice), 1.0, config=dict(choice.config) | {"yb": 1}),
        record(Candidate(workload, choice), 1.0, config=dict(choice.config) | {"rw": 77}),
    ]
    trials = Told(skewed)
    found, _ = session(trials, known=known, most=8)
    plain = Told(skewed)
    session(plain, most=8)
    assert trials.ran == plain.ran
    (entry,) = found.entries.values()
    assert set(entry.search.tried) <= set(entry.search.choices)
    assert all(us is not None and us > 1.0 for us in entry.search.us.values())


def test_tasks_may_be_added_later() -> None:
    trials = Told(skewed)
    found, _ = session(trials, {task(0): 1}, most=None)
    before = len(trials.ran)
    found.add({task(0): 3, task(1): 1})
    assert [e.weight for e in found.entries.values()] == [3, 1]
    found.run()
    assert found.entries[task(1)].standing
    assert len(set(trials.ran)) == len(trials.ran) > before


def test_says_where_it_is() -> None:
    seen: list[Progress] = []
    trials = Told(wild)
    found, written = session(trials, {task(0): 2, task(1): 1}, most=48, told=seen.append)
    assert [p.trials for p in seen] == sorted(p.trials for p in seen)
    last = seen[-1]
    assert (last.trials, last.tasks, last.refused) == (48, 2, 0)
    assert last.us == pytest.approx(sum(e.us for e in found.entries.values()))
    defaults = sum(e.weight * (e.default_us or 0) for e in found.entries.values())
    assert last.default_us == pytest.approx(defaults)
    assert last.us < last.default_us
    assert last.best in written


# -- the forecast --


def network(blocks: int) -> dict[Task, int]:
    """A network of inverted residuals: three tasks each."""
    found: dict[Task, int] = {}
    for n in range(blocks):
        c, side = 16 * (n + 1), (56, 28, 28, 14, 14, 7)[n]
        expand = f"mb1_ic{c}ih{side}_oc{4 * c}oh{side}_kh1"
        spatial = f"g{4 * c}mb1_ic{4 * c}ih{side}_oc{4 * c}oh{side}_kh3ph1"
        for text in (expand, spatial, f"mb1_ic{4 * c}ih{side}_oc{c}oh{side}_kh1"):
            found[Task(Workload(Problem.parse(text).canonical, "short"), (8, 8))] = 1 + n % 3
    return found


def clocked(
    monkeypatch: pytest.MonkeyPatch, blocks: int, off: float, *, budget: float = FOREVER, most: int | None = None
) -> list[tuple[float, Progress]]:
    """When a session with a network told what, where a batch takes 4 s and the model is off by `off`."""
    clock, seen = [1000.0], []
    monkeypatch.setattr(sessions, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def pass_time() -> None:
        clock[0] += 4.0

    def formula(candidate: Candidate) -> float:
        return modelled(candidate) * math.exp(random.Random(str(candidate)).gauss(0, off))

    def told(progress: Progress) -> None:
        seen.append((clock[0] - 1000, progress))

    trials = Told(formula, during=pass_time)
    found = Session(trials, lambda records: None, 1000 + budget, most, told, started=1000.0)  # type: ignore[arg-type]
    found.add(network(blocks))
    found.run()
    return seen


def test_forecasts_its_end_from_a_quarter_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 30 % of what it then takes, whether the time or the gain comes to an end; nearly always: what is found
    cannot be known before."""
    ratios = []
    for blocks, off, budget in product((2, 4, 6), (0.03, 0.15), (30.0, FOREVER)):
        seen = clocked(monkeypatch, blocks, off, budget=budget)
        end = seen[-1][0]
        now, progress = next((t, p) for t, p in seen if t >= end / 4)
        ratios.append(progress.left / (end - now))
    assert sum(abs(ratio - 1) <= 0.3 for ratio in ratios) >= 0.9 * len(ratios), ratios
    assert all(0.5 < ratio < 2 for ratio in ratios), ratios


def test_the_end_is_the_deadline_or_the_last_trial_where_that_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    at, progress = clocked(monkeypatch, 4, 0.1, budget=12.0)[0]
    assert (at, progress.left) == (4.0, 8.0)
    at, progress = clocked(monkeypatch, 4, 0.1, most=20)[0]
    assert (at, progress.trials) == (4.0, 16)
    assert progress.left == 4 * 4.0 / 20, "of four trials"
    assert clocked(monkeypatch, 4, 0.1, most=20)[-1][1].left == 0


def test_a_task_of_which_nothing_is_right_takes_all_its_trials() -> None:
    hopeless, other = task(0), task(1)
    trials = Told(lambda c: None if str(c.workload) == str(hopeless.workload) else modelled(c))
    found, _ = session(trials, {hopeless: 1, other: 1}, most=64)
    search = found.entries[hopeless].search
    assert not search.us
    assert found._trials_left() >= len(search.choices) - len(search.tried) > 0
