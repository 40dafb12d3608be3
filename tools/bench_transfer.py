"""Transfer: configs taken over from records of other problems, beside those tuned for the problem itself.

    python tools/bench_transfer.py cpu/znver3                        # of the logs that come with convc
    python tools/bench_transfer.py cpu/znver3 --threads 2 --every 8 --records tuning/ --json out.json

Every fourth problem of the log, in its order, is kept out with all its records; what the lookup then takes over for
its layouts runs in turns with the tuned config, on pinned CPUs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from convc.algorithm import Choice
from convc.problem import Problem
from convc.report.machine import pick_cpus
from convc.target import Target, parse_target
from convc.tune.build import Builders, Candidate, Compiled
from convc.tune.device import LocalDevice
from convc.tune.lookup import Lookup, lookup_for
from convc.tune.record import Record
from convc.tune.trials import Trials
from convc.tune.workload import Workload

TOGETHER = 16  # pairs whose code is built at once

Pair = tuple[Record, Candidate, Candidate]
"""A record, its candidate, and the candidate in its place."""


def pairs(known: Lookup, every: int) -> list[Pair]:
    """Of the problems kept out, those whose transferred config is another one, and those where it is the same."""
    own = [r for r in known.records if (r.target, r.threads) == (known.target.label, known.target.threads)]
    kept_out = set(sorted({r.problem for r in own})[::every])
    others = Lookup(known.target, tuple(r for r in known.records if r.problem not in kept_out))
    found = []
    for record in (r for r in own if r.problem in kept_out):
        workload = Workload(Problem.parse(record.problem), record.epilogue)
        blocks = record.config["xb"], record.config["yb"]
        taken = [m.choice for m in others(workload.problem, record.epilogue)]
        same = [c for c in taken if (c.config["xb"], c.config["yb"]) == blocks]
        if same:
            tuned = Choice(record.algorithm, record.config)
            found.append((record, Candidate(workload, tuned), Candidate(workload, same[0])))
    return found


def measure(found: list[Pair], target: Target) -> list[dict[str, object]]:
    """us of both, in turns."""
    rows: list[dict[str, object]] = []
    device = LocalDevice(cpus=pick_cpus(target.threads))
    with Builders(target) as builders:
        for start in range(0, len(found), TOGETHER):
            trials = Trials(target, builders, device)
            part = found[start : start + TOGETHER]
            needed = {str(c): c for _, tuned, taken in part for c in (tuned, taken)}
            built = trials.build(list(needed.values()))
            if refused := [r for r in built if not isinstance(r, Compiled)]:
                raise SystemExit(f"not built: {refused[0]}")
            for record, tuned, taken in part:
                us = [1.0, 1.0] if tuned == taken else [t.us for t in trials.race([tuned, taken])]
                row = {"problem": record.problem, "epilogue": record.epilogue, "tuned": str(tuned.choice),
                       "transferred": str(taken.choice), "reached": us[0] / us[1]}  # fmt: skip
                rows.append(row)
                print(f"{100 * us[0] / us[1]:6.1f} %  {record.problem} {record.epilogue}", flush=True)
    device.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    known = lookup_for(parse_target(options.target, threads=options.threads), options.records)
    rows = measure(pairs(known, options.every), known.target)
    reached = [float(str(row["reached"])) for row in rows]
    same = sum(row["tuned"] == row["transferred"] for row in rows)
    print(
        f"{len(rows)} records kept out, {same} with the very config: transferred configs reach "
        f"{100 * statistics.geometric_mean(reached):.1f} % of the tuned time's speed, least {100 * min(reached):.1f} %"
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
