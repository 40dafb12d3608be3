"""What tuning gains: networks untuned, tuned under a short and under a long budget, and peers, in turns on one thread.

    python tools/bench_tuning.py zoo --budgets 60s,10m --records tuning/

Each network is tuned from nothing under every budget, in folders of its own under --records; what is there already is
not tuned again. Then all artifacts and peers run interleaved in one process on one pinned CPU; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench import subjects

import convc
from convc.cli.data import inputs_for
from convc.peers import RUNTIMES, Task
from convc.report.machine import pick_cpus, pinned
from convc.report.timing import race, timed
from convc.runtime.artifact import Artifact

UNTUNED = "untuned"


def tune(model: Path, folder: Path, budget: str, target: str) -> float:
    """Wall seconds that it took; 0 where it was done before."""
    if folder.exists():
        return 0.0
    command = [sys.executable, "-m", "convc.cli", "tune", str(model), "--budget", budget, "--target", target]
    begun = time.perf_counter()
    done = subprocess.run([*command, "--records", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - begun


def task_of(path: Path, model: Path) -> Task:
    """What a runtime is to compute on one thread: an artifact or its model, on made-up inputs."""
    artifact = Artifact.open(path)
    inputs = inputs_for({port.name: port.type for port in artifact.inputs}, path=None, seed=0)
    return Task(path, model, inputs, {port.name: port.type for port in artifact.outputs}, 1)


def measure(model: Path, records: dict[str, Path], target: str) -> dict[str, float]:
    """us of convc with each folder of records, and of the peers."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs: dict[str, Callable[[], object]] = {}
        for name, place in records.items():
            path = folder / f"{name}.convc"
            convc.compile(model, target=target, records=place).save(path)
            task = task_of(path, model)
            runs[name] = RUNTIMES["convc"].open(task).run
        for peer in ("ort", "openvino"):
            runs[peer] = RUNTIMES[peer].open(replace(task, artifact=path)).run
        return {name: timing.median for name, timing in race({n: timed_of(r) for n, r in runs.items()}).items()}


def timed_of(run: Callable[[], object]) -> Callable[[], float]:
    return lambda: timed(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+")
    parser.add_argument("--budgets", default="60s,10m")
    parser.add_argument("--target", default="native")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    budgets, rows = options.budgets.split(","), []
    os.environ["CONVC_RECORDS"] = os.environ["CONVC_TUNING_LOGS"] = str(options.records / "none")
    with tempfile.TemporaryDirectory() as folder:
        for model in map(Path, subjects(options.subjects, Path(folder))):
            places = {UNTUNED: options.records / "none"}
            spent = {}
            for budget in budgets:
                places[budget] = options.records / budget / model.stem
                spent[budget] = tune(model, places[budget], budget, options.target)
            with pinned(pick_cpus(1)):
                us = measure(model, places, options.target)
            rows.append({"network": model.stem, "us": us, "seconds": spent})
            took = " ".join(f"{b} {s:.0f} s" for b, s in spent.items())
            shown = "  ".join(f"{name} {value:.0f}" for name, value in us.items())
            print(f"{model.stem:28} {shown}   tuning took {took}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    last = budgets[-1]

    def mean(ratio: Callable[[dict[str, float]], float]) -> float:
        return statistics.geometric_mean(ratio(row["us"]) for row in rows)

    for name in (UNTUNED, *budgets[:-1]):
        print(f"{name} reaches {100 * mean(lambda us, name=name: us[last] / us[name]):.1f} % of {last}")
    print(f"best peer / {last}: x{mean(lambda us: min(us['ort'], us['openvino']) / us[last]):.3f}, least untuned / "
          f"{last}: x{min(row['us'][UNTUNED] / row['us'][last] for row in rows):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
