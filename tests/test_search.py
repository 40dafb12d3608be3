"""Does the search of one task find what is fast in few trials? Times come from a formula, so every number is exact."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from told import TARGET, TASKS, skewed, task, times

from convc.algorithm import Choice
from convc.tune.build import Candidate
from convc.tune.search import LATER, SURE, UNSURE, Search
from convc.tune.surrogate import Surrogate, expected_improvement


def proposals(search: Search, us: Mapping[str, float | None], count: int = 4) -> list[str]:
    """What the search proposes, in order, until nothing is left."""
    found: list[str] = []
    while batch := search.propose(count):
        assert len(batch) <= count
        for choice in batch:
            found.append(str(choice))
            search.tell(choice, us[str(choice)])
    return found


@pytest.mark.parametrize("number", range(len(TASKS)))
def test_finds_the_optimum_sooner_than_chance(number: int) -> None:
    search = Search(task(number), Surrogate(TARGET))
    us = times(search, skewed)
    best = min(us, key=lambda name: us[name] or 0.0)
    assert best != str(search.default), "else there is nothing to search for"
    order = proposals(search, us)
    needed, soon = order.index(best) + 1, min(us[name] or math.inf for name in order[:16])
    names, generator, chance = list(us), random.Random(0), []
    for _ in range(200):
        generator.shuffle(names)
        chance.append(names.index(best) + 1)
    assert soon <= 1.1 * (us[best] or 0.0)
    assert 2 * needed < sum(chance) / len(chance)


@pytest.mark.parametrize("count", [1, 4, 1000])
def test_proposes_every_candidate_once(count: int) -> None:
    search = Search(task(3), Surrogate(TARGET))
    found = proposals(search, times(search, skewed), count)
    assert Counter(found) == Counter(search.choices.keys())
    assert search.is_exhausted
    assert search.gain() == 0


def test_proposes_every_candidate_where_all_are_wrong() -> None:
    search = Search(task(), Surrogate(TARGET))
    found = proposals(search, dict.fromkeys(search.choices))
    assert Counter(found) == Counter(search.choices.keys())
    assert search.best is None


def test_begins_with_the_hint_then_with_different_ideas() -> None:
    def idea(c: Choice) -> tuple[object, ...]:
        return c.algorithm, c.config.get("rw", c.config.get("r")), c.config.get("v")

    plain = Search(task(), Surrogate(TARGET))
    ideas = {idea(c) for c in plain.propose(4)}
    hint = next(c for c in list(plain.choices.values())[40:] if idea(c) not in ideas)
    search = Search(task(), Surrogate(TARGET), hint)
    first = search.propose(4)
    assert first[0] == search.default == hint
    assert plain.propose(1) == [plain.default] == [next(iter(plain.choices.values()))]
    assert len({idea(c) for c in first}) == 4
    stranger = Choice(hint.algorithm, dict(hint.config) | {"rw": 77})
    assert Search(task(), Surrogate(TARGET), stranger).hint is None, "no config of the space"


def test_the_outlook_falls_from_what_is_expected_now_to_nothing() -> None:
    """By numbers of right candidates: known now, at least UNSURE until there are SURE of them, less and less after."""
    search = Search(task(), Surrogate(TARGET))
    us = times(search, skewed)
    for right in (0, 4, 12):
        while len(search.us) < right:
            for choice in search.propose(4):
                search.tell(choice, us[str(choice)])
        now, *later, last = search.outlook(2)
        left = len(search.choices) - right
        level = now * right if right >= SURE else LATER
        assert (now, last, len(later)) == (search.gain(), 0.0, (left - 1) // 2)
        assert later[:12] == [UNSURE if right + n < SURE else level / (right + n) for n in range(2, 26, 2)]
    assert Search(task(), Surrogate(TARGET), tried=set(search.choices)).outlook(2) == [0.0]


def test_a_measurement_elsewhere_changes_what_is_expected_here() -> None:
    """The expectations that are kept between two measurements are those of all tasks."""
    surrogate = Surrogate(TARGET)
    here, there = Search(task(0), surrogate), Search(task(1), surrogate)
    for search in (here, there):
        for choice in search.propose(4):
            search.tell(choice, skewed(Candidate(search.task.workload, choice)))
    before = here.propose(3), here._promise()[0].tolist()
    assert (here.propose(3), here._promise()[0].tolist()) == before
    (choice,) = there.propose(1)
    there.tell(choice, skewed(Candidate(there.task.workload, choice)))
    assert here._promise()[0].tolist() != before[1]


def test_the_same_session_twice() -> None:
    found = [proposals(s := Search(task(2), Surrogate(TARGET)), times(s, skewed)) for _ in range(2)]
    assert found[0] == found[1]


# -- the surrogate --


def test_knows_the_model_only_until_it_is_told() -> None:
    surrogate = Surrogate(TARGET)
    search = Search(task(), surrogate)
    choices = list(search.choices.values())
    problem = search.task.workload.problem
    model = np.log([search.modelled(c) for c in choices])
    mean, deviation = surrogate.predict(problem, choices)
    np.testing.assert_allclose(mean, model)
    assert (deviation > 0).all()
    for choice in choices[:3]:  # too few for a forest
        surrogate.add(problem, choice, 2 * search.modelled(choice))
    np.testing.assert_allclose(surrogate.predict(problem, choices)[0], model + math.log(2))


def test_doubts_the_model_as_far_as_it_was_off() -> None:
    surrogate = Surrogate(TARGET)
    search = Search(task(), surrogate)
    choices, problem = list(search.choices.values()), search.task.workload.problem
    for choice, factor in zip(choices, (0.2, 1.0, 5.0), strict=False):
        surrogate.add(problem, choice, factor * search.modelled(choice))
    deviation = surrogate.predict(problem, choices)[1]
    np.testing.assert_allclose(deviation, np.std(np.log([0.2, 1.0, 5.0])))


def test_learns_from_one_problem_for_another() -> None:
    surrogate = Surrogate(TARGET)
    for name, choice in Search(task(0), surrogate).choices.items():
        us = skewed(Candidate(task(0).workload, choice))
        assert name == str(choice)
        surrogate.add(task(0).workload.problem, choice, us)
    other = Search(task(1), surrogate)
    truth = np.log([us for us in times(other, skewed).values() if us])
    choices = list(other.choices.values())
    told, untold = (s.predict(task(1).workload.problem, choices)[0] for s in (surrogate, Surrogate(TARGET)))
    assert np.corrcoef(told, truth)[0, 1] > np.corrcoef(untold, truth)[0, 1]
    assert abs(told - truth).mean() < abs(untold - truth).mean() / 3


@pytest.mark.parametrize(("mean", "deviation", "best"), [(1.0, 0.1, 3.0), (1.2, 0.3, 3.0), (0.5, 0.05, 3.0)])
def test_expected_improvement_is_the_integral(mean: float, deviation: float, best: float) -> None:
    z = np.linspace(-8, 8, 200_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    saved = np.maximum(0, 1 - np.exp(mean + deviation * z) / best)
    expected = float((density * saved).sum() * (z[1] - z[0]))
    (found,) = expected_improvement(np.array([mean]), np.array([deviation]), best)
    assert found == pytest.approx(expected, rel=1e-4)
