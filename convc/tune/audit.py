"""The audit: does what won alone win in its network, too?

A trial runs one kernel over and over: its input and result are in cache, as are its temporaries. In a network they are
where the kernels before have left them. What wins by a few percent alone may so lose there; on Zen 5 SqueezeNet's
first layer takes 162 us instead of 166 alone, and 298 instead of 267 in place.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from convc.algorithm import Choice
from convc.plan.plan import Kernel, Plan
from convc.target import Target
from convc.tune.search import Task

SECONDS = 3.0  # of timing
ROUNDS = 200
SLOWER = 1.01  # times what it replaces: what a choice may take in the network


@dataclass
class Audited:
    """us of all calls of a task with one choice and with the other."""

    before: Choice
    after: Choice
    us: list[float] = field(default_factory=lambda: [0.0, 0.0])

    @property
    def ratio(self) -> float:
        return self.us[1] / self.us[0]


def losers(before: Plan, after: Plan, target: Target) -> Mapping[Task, Audited]:
    """Tasks that both plans have and whose choice in `after` is slower there: the two run call by call, in turns."""
    from convc.plan.arena import place

    plans = place(before), place(after)
    found: dict[Task, Audited] = {}
    for (task, old, was), (_, new, now) in _pairs(plans, _timed(plans, target)):
        if old != new:
            audited = found.setdefault(task, Audited(old, new))
            audited.us = [audited.us[0] + was, audited.us[1] + now]
    return {task: audited for task, audited in found.items() if audited.ratio > SLOWER}


Row = tuple[Task, Choice, float]


def _pairs(plans: tuple[Plan, Plan], us: tuple[list[float], list[float]]) -> list[tuple[Row, Row]]:
    """The calls of the same nodes between the same layouts."""
    rows: list[dict[tuple[str, ...], Row]] = [{}, {}]
    for known, plan, times in zip(rows, plans, us, strict=True):
        for call, time_ in zip(plan.run, times, strict=True):
            kernel = call.kernel
            if isinstance(kernel, Kernel) and kernel.choice and (task := Task.of(kernel.group, kernel.choice)):
                known[call.origin] = task, kernel.choice, time_
    both = [(row, rows[1][origin]) for origin, row in rows[0].items() if origin in rows[1]]
    return [(old, new) for old, new in both if old[0] == new[0]]


def _timed(plans: tuple[Plan, Plan], target: Target) -> tuple[list[float], list[float]]:
    """Median us of each call."""
    from statistics import median

    from convc.lower.objects import build
    from convc.report.machine import pick_cpus, pinned
    from convc.runtime.loader import load
    from convc.runtime.package import golden_inputs, package

    artifacts = [package(build(plan, target), plan, target, b"") for plan in plans]
    with pinned(pick_cpus(target.threads)):
        modules = [load(artifact, threads=target.threads) for artifact in artifacts]
        bound = [module.bind(golden_inputs(plan)) for module, plan in zip(modules, plans, strict=True)]
        rounds: tuple[list[list[float]], list[list[float]]] = ([], [])
        end = time.monotonic() + SECONDS
        for _ in range(ROUNDS):
            for run, times in zip(bound, rounds, strict=True):
                times.append(run.steps_us())
            if time.monotonic() > end:
                break
    first, second = ([median(us) for us in zip(*times, strict=True)] for times in rounds)
    return first, second
