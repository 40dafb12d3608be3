"""Fits the rates that no small program measures (what a step loses, how many registers tiles fill) to measured times.

    python tools/bench_search.py measured.json --target cpu/znver5       # every candidate of twelve problems, once
    python tools/fit_rates.py measured.json --target cpu/znver5          # prints the best rates of a grid
    python tools/fit_rates.py measured.json --target cpu/znver5 --write  # and puts them into tuning_logs/rates.json

What is minimised, over the problems: how much slower the model's first guess is than the best of all, half of the same
for its first three, and a fifth of the spread of measured / modelled among the good ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from convc.algorithm import algorithms
from convc.problem import Problem
from convc.rates import FILE, parse_rates, rates_text
from convc.report.rates import measure
from convc.target import Target, parse_target

GRID = {
    "step": (0.0, 0.25, 0.5, 0.75, 1.0), "crowd": (0.01, 0.02, 0.04, 0.08), "l2": (24, 32, 48), "far": (8, 12, 16, 24),
}  # fmt: skip
Measured = Mapping[str, list[tuple[str, dict[str, int], float]]]


def read(path: Path, target: Target) -> Measured:
    """By task: algorithm, config and us of each candidate that the present spaces have."""
    found = {}
    for task, rows in json.loads(path.read_text()).items():
        problem, known = Problem.parse(task.split()[0]), {}
        for algorithm in algorithms().values():
            if algorithm.refuses(problem, target) is None:
                for config in algorithm.space(problem, target):
                    text = ",".join(f"{k}={v}" for k, v in sorted(config.items()))
                    known[f"{algorithm.name}({text})"] = (algorithm.name, dict(config))
        found[task] = [(*known[name], us) for name, us in rows.items() if name in known]
    return found


def loss(measured: Measured, target: Target, *, show: bool = False) -> float:
    total = 0.0
    for task, rows in measured.items():
        problem, best = Problem.parse(task.split()[0]), min(us for _, _, us in rows)
        ranked = sorted((algorithms()[a].cost(problem, target, c) * 1e6, us) for a, c, us in rows)
        first = [us / best for _, us in ranked[:3]]
        off = [math.log(us / cost) for cost, us in ranked if us < 1.25 * best]
        total += math.log(first[0]) + 0.5 * statistics.mean(map(math.log, first)) + 0.2 * statistics.pstdev(off)
        if show:
            ratio = math.exp(statistics.median(off))
            print(f"{task[:76]:76} first guess {100 * (first[0] - 1):5.1f} %, measured/modelled {ratio:.2f}")
    return total / len(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--target", default="native")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    target = parse_target(options.target)
    measured = read(options.measured, target)
    print("as it is:")
    loss(measured, target, show=True)
    core = measure(target)
    room = range(target.registers * 5 // 8, target.registers + 1)
    best, rates = math.inf, target.rates
    for values in itertools.product(room, *GRID.values()):
        tried = replace(
            target.rates, clock=core.clock, fma=round(core.fma), load=round(core.load), latency=round(core.latency),
            room=values[0], **dict(zip(GRID, values[1:], strict=True)),
        )  # fmt: skip
        if (now := loss(measured, replace(target, rates=tried))) < best:
            best, rates = now, tried
    print(f"fitted: {rates}")
    loss(measured, replace(target, rates=rates), show=True)
    if options.write:
        path = Path(__file__).parent.parent / "tuning_logs" / FILE
        known = dict(parse_rates(path.read_text(), str(path))) if path.exists() else {}
        path.write_text(rates_text({**known, target.label: vars(rates)}))


if __name__ == "__main__":
    main()
