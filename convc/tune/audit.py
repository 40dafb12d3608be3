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
from convc.plan.epilogue import epilogue_of
from convc.plan.plan import Call, Kernel, Plan
from convc.target import Target
from convc.tune.search import Task
from convc.tune.workload import Workload

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
    rows = [
        {call.origin: (*known, time_) for call, time_ in zip(plan.run, times, strict=True) if (known := _task(call))}
        for plan, times in zip(plans, us, strict=True)
    ]
    both = [(row, rows[1][origin]) for origin, row in rows[0].items() if origin in rows[1]]
    return [(old, new) for old, new in both if old[0] == new[0]]


def _task(call: Call) -> tuple[Task, Choice] | None:
    kernel = call.kernel
    if not isinstance(kernel, Kernel) or kernel.choice is None or kernel.group.problem is None:
        return None
    workload = Workload(kernel.group.problem, epilogue_of(kernel.group))
    return Task(workload, (kernel.choice.config["xb"], kernel.choice.config["yb"])), kernel.choice


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
        us: list[list[list[float]]] = [[[] for _ in module.layers] for module in modules]
        end = time.monotonic() + SECONDS
        for _ in range(ROUNDS):
            for run, times in zip(bound, us, strict=True):
                for index, row in enumerate(times):
                    start = time.perf_counter_ns()
                    run.call(index)
                    row.append((time.perf_counter_ns() - start) / 1000)
            if time.monotonic() > end:
                break
    first, second = ([median(row) for row in times] for times in us)
    return first, second
