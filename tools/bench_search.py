"""Search against random search: regret after 32 trials, against the best of the whole space, median of five seeds.

    python tools/bench_search.py measured.json            # measures every candidate of the problems below, once
    python tools/bench_search.py measured.json --trials 16

The file keeps what was measured; the searches are then replayed on it, so that their figures are repeatable.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from convc.problem import Problem
from convc.report.machine import pick_cpus
from convc.target import Target, parse_target
from convc.tune.build import Builders, Candidate
from convc.tune.device import LocalDevice
from convc.tune.search import Search, Task
from convc.tune.surrogate import Surrogate
from convc.tune.trials import Trials
from convc.tune.workload import Workload

SEEDS = 5
PROBLEMS = (
    ("mb1_ic64ih56_oc64oh56_kh3ph1", "short", "blocked"),
    ("mb1_ic256ih14_oc256oh14_kh3ph1", "short", "blocked"),
    ("mb1_ic512ih7_oc512oh7_kh3ph1", "short", "blocked"),
    ("mb1_ic128ih56_oc128oh28_kh3sh2ph1", "short", "blocked"),
    ("mb1_ic3ih224_oc64oh112_kh7sh2ph3", "short", "stem"),
    ("mb1_ic256ih56_oc64oh56_kh1", "short", "blocked"),
    ("mb1_ic256ih14_oc1024oh14_kh1", "residual", "blocked"),
    ("mb1_ic2048ih7_oc512oh7_kh1", "short", "blocked"),
    ("mb1_ic256ih56_oc512oh28_kh1sh2", "short", "blocked"),
    ("g96mb1_ic96ih56_oc96_kh7ph3", "short", "blocked"),
    ("g384mb1_ic384ih14_oc384_kh3ph1", "short", "blocked"),
    ("matmul_ic384iw196_oc1536", "long", "matrix"),
)


def tasks(target: Target) -> list[Task]:
    found = []
    for text, epilogue, layouts in PROBLEMS:
        problem = Problem.parse(text).canonical
        lanes = target.lanes
        pair = {"blocked": (lanes, lanes), "stem": (1, lanes), "matrix": (problem.ic, problem.oc)}[layouts]
        found.append(Task(Workload(problem, epilogue), pair))
    return found


def measure(target: Target, path: Path) -> dict[str, dict[str, float]]:
    """us of every candidate of every task, by their texts; what the file lacks is measured now."""
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    missing = [task for task in tasks(target) if str(task) not in known]
    if missing:
        device = LocalDevice(cpus=pick_cpus(target.threads))
        with Builders(target) as builders:
            trials = Trials(target, builders, device)
            for task in missing:
                choices, rows = task.choices(target), {}
                for start in range(0, len(choices), 24):
                    part = [Candidate(task.workload, c) for c in choices[start : start + 24]]
                    for candidate, record in zip(part, trials.run(part), strict=True):
                        if record.us is None:
                            print(f"  refused {candidate}: {record.status} {record.reason}", flush=True)
                        else:
                            rows[str(candidate.choice)] = record.us
                known[str(task)] = rows
                path.write_text(json.dumps(known, indent=0))
                print(f"{task}: {len(rows)} candidates, best {min(rows.values()):.1f} us", flush=True)
        device.close()
    return known


def searched(task: Task, target: Target, us: dict[str, float], trials: int, seed: int) -> list[float]:
    """Best us after each trial. The seed shuffles candidates that promise the same."""
    search = Search(task, Surrogate(target, seed=seed))
    best: list[float] = []
    while len(best) < trials and not search.is_exhausted:
        batch = search.propose(min(4, trials - len(best)))
        for choice in batch:
            search.tell(choice, us.get(str(choice)))
            best.append(min(search.us.values(), default=float("inf")))
    return best


def at_random(us: dict[str, float], trials: int, seed: int) -> list[float]:
    order = random.Random(seed).sample(sorted(us), len(us))[:trials]
    return [min(us[name] for name in order[: i + 1]) for i in range(len(order))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--target", default="native")
    parser.add_argument("--trials", type=int, default=32)
    options = parser.parse_args()
    target = parse_target(options.target)
    known = measure(target, options.measured)
    rows: list[dict[str, Any]] = []
    for task in tasks(target):
        us = known[str(task)]
        best = min(us.values())

        def regret(curves: list[list[float]], at: int, best: float = best) -> float:
            return statistics.median(c[min(at, len(c)) - 1] for c in curves) / best - 1

        ours = [searched(task, target, us, options.trials, seed) for seed in range(SEEDS)]
        others = [at_random(us, options.trials, seed) for seed in range(SEEDS)]
        n = options.trials
        rows.append({"first": regret(ours, 1), "search 8": regret(ours, 8), "search": regret(ours, n),
                     "random 8": regret(others, 8), "random": regret(others, n)})  # fmt: skip
        print(f"{str(task)[:84]:84} {len(us):4}  " + "  ".join(f"{k} {100 * v:5.1f} %" for k, v in rows[-1].items()))
    mean = {k: statistics.mean(r[k] for r in rows) for k in rows[0]}
    print(f"{'mean regret':84}       " + "  ".join(f"{k} {100 * v:5.1f} %" for k, v in mean.items()))


if __name__ == "__main__":
    main()
