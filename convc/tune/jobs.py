"""A file of jobs: what to tune, for a machine with convc that cannot be reached; records come back from it.

A zip as artifacts are (stored, fixed dates), of one entry, jobs.json, in ASCII and of one spelling:

    {"schema":1,"target":"cpu/znver3,triple=x86_64-unknown-linux-gnu,threads=2","budget":600.0,"trials":null,
     "tasks":[{"problem":"g1mb1_ic64...","epilogue":"short","blocks":[16,16],"weight":3},...]}

The same jobs are the same bytes, and whatever `Jobs.content` would not write is refused. A file may come from anyone:
all that it can do is to name convolutions, of bounded size, to be tuned for a CPU.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convc.errors import BadArtifactError, BadInputError, ConvcError
from convc.plan.epilogue import EPILOGUES
from convc.problem import Problem
from convc.runtime.container import pack, unpack
from convc.target import TRIPLES, Target, parse_target
from convc.tune.search import Task
from convc.tune.workload import Workload

SCHEMA = 1
ENTRY = "jobs.json"
MAX_BYTES = 4 << 20
MAX_TASKS = 4096  # as many problems as no network has
MAX_TEXT = 512  # characters of a problem
MAX_EXTENT = 1 << 31
MAX_ELEMENTS = 1 << 28  # of one tensor with its padding: 1 GiB, and twice that for its reference
MAX_MACS = 1 << 37  # a minute of numpy for the reference; the largest layers of VGG have 2^31
MAX_SECONDS = 30 * 24 * 3600.0
MAX_COUNT = 1 << 31
MAX_THREADS = 256

_TRIPLE = rf"({'|'.join(TRIPLES)})(-[a-z0-9_]{{1,20}}){{1,3}}"  # of other machines LLVM may end the process
_TARGET = re.compile(rf"cpu/[A-Za-z0-9_.+-]{{1,40}},triple={_TRIPLE},threads=[1-9][0-9]{{0,2}}")


@dataclass(frozen=True)
class Jobs:
    """Tasks with how often their network computes each; the budget in seconds, and the most trials (None: any)."""

    target: Target
    budget: float
    trials: int | None
    tasks: Mapping[Task, int]

    @property
    def content(self) -> bytes:
        """The file."""
        rows = [
            {"problem": str(task.workload.problem), "epilogue": task.workload.epilogue, "blocks": list(task.blocks),
             "weight": weight}
            for task, weight in self.tasks.items()
        ]  # fmt: skip
        whole = {
            "schema": SCHEMA, "target": str(self.target), "budget": float(self.budget), "trials": self.trials,
            "tasks": rows,
        }  # fmt: skip
        return pack({ENTRY: json.dumps(whole, separators=(",", ":")).encode("ascii")})


def write_jobs(path: Path, jobs: Jobs) -> None:
    from convc.runtime.artifact import write_atomically

    write_atomically(path, jobs.content)


def read_jobs(path: Path) -> Jobs:
    """Raises BadInputError where the file is anything but what `write_jobs` writes."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            raise BadInputError(f"{path}: no file of jobs, which is a plain one of at most {MAX_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    return parse_jobs(data, str(path))


def parse_jobs(data: bytes, path: str) -> Jobs:
    """As `read_jobs`, of the file's content; `path` is for messages."""
    try:
        entries = unpack(data, path)
    except BadArtifactError as error:
        raise BadInputError(f"{path}: no file of jobs, or a damaged one; export it again") from error
    if list(entries) != [ENTRY]:
        raise BadInputError(f"{path}: a file of jobs holds {ENTRY} and nothing else; this is another zip")
    try:
        jobs = _jobs(json.loads(bytes(entries[ENTRY]).decode("ascii")))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise BadInputError(
            f"{path}: {ENTRY} is no list of jobs ({type(error).__name__}: {str(error)[:60]})"
        ) from error
    except ConvcError as error:
        raise BadInputError(f"{path}: {error}") from error
    if jobs.content != data:
        raise BadInputError(f"{path}: convc writes these jobs as other bytes, so the file was edited; export it again")
    return jobs


def _jobs(found: Any) -> Jobs:
    if found["schema"] != SCHEMA:
        raise BadInputError(f"schema {_shown(found['schema'])}; this version of convc reads {SCHEMA}")
    budget, trials, rows = found["budget"], found["trials"], found["tasks"]
    if type(budget) is not float or not 0 < budget <= MAX_SECONDS:
        raise BadInputError(f"budget is {_shown(budget)}, not a time of up to {MAX_SECONDS:.0f} s")
    if trials is not None and not _is_whole(trials, MAX_COUNT):
        raise BadInputError(f"trials is {_shown(trials)}, neither null nor a whole number from 1")
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_TASKS:
        raise BadInputError(f"tasks are {_shown(rows)}, not 1 to {MAX_TASKS} of them")
    target = _target(found["target"])
    tasks = dict(_task(row, target) for row in rows)
    if len(tasks) < len(rows):
        raise BadInputError("two tasks are the same")
    return Jobs(target, budget, trials, tasks)


def _target(text: Any) -> Target:
    if isinstance(text, str) and text.startswith("cuda"):
        raise BadInputError(f"target is {_shown(text)}, a GPU, and this version of convc tunes CPUs only")
    if not isinstance(text, str) or not _TARGET.fullmatch(text):
        raise BadInputError(f"target is {_shown(text)}, not as cpu/znver3,triple={TRIPLES['x86_64']},threads=1")
    target = parse_target(text)
    if target.threads > MAX_THREADS:
        raise BadInputError(f"target has {target.threads} threads; at most {MAX_THREADS} are possible")
    return target


def _task(row: Any, target: Target) -> tuple[Task, int]:
    text, epilogue, blocks, weight = row["problem"], row["epilogue"], row["blocks"], row["weight"]
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise BadInputError(f"a problem is {_shown(text)}, not text of up to {MAX_TEXT} characters")
    problem = Problem.parse(text)
    if fault := _too_large(problem):
        raise BadInputError(f"'{text}': {fault}")
    if Problem.of(problem.node()).canonical != problem:
        raise BadInputError(f"'{text}': its extents do not fit each other, or are not in canonical form")
    if problem.dtype != "float32":
        raise BadInputError(f"'{text}': only float32 is tuned")
    if epilogue not in EPILOGUES:
        raise BadInputError(f"'{text}': epilogue is {_shown(epilogue)}, none of {', '.join(EPILOGUES)}")
    if not isinstance(blocks, list) or len(blocks) != 2 or not all(_is_whole(b, MAX_EXTENT) for b in blocks):
        raise BadInputError(f"'{text}': blocks are {_shown(blocks)}, not two whole numbers")
    if not _is_whole(weight, MAX_COUNT):
        raise BadInputError(f"'{text}': weight is {_shown(weight)}, not a whole number from 1")
    task = Task(Workload(problem, epilogue), (blocks[0], blocks[1]))
    if not task.choices(target):
        raise BadInputError(f"'{task}': this version of convc has no algorithm for it on {target.label}")
    return task, weight


def _too_large(p: Problem) -> str | None:
    """Why its tensors or its reference must not be made, or None."""
    numbers = (p.mb, p.g, p.ic, p.oc, *p.i, *p.o, *p.k, *p.s, *p.p, *p.d)
    if max(numbers) >= MAX_EXTENT or max(abs(a) for a in p.after) >= MAX_EXTENT:
        return f"a number is not below {MAX_EXTENT}"
    padded = [i + before + max(0, after) for i, before, after in zip(p.i, p.p, p.after, strict=True)]
    spread = [(i - 1) * s + (k - 1) * d + 1 for i, s, k, d in zip(p.i, p.s, p.k, p.d, strict=True)]
    x = p.mb * p.ic * math.prod(p.i if p.kind == "transposed" else padded)
    y = p.mb * p.oc * max(math.prod(p.o), math.prod(spread) if p.kind == "transposed" else 0)
    if max(x, y, math.prod(p.weights)) > MAX_ELEMENTS:
        return f"a tensor has more than {MAX_ELEMENTS} elements"
    return f"more than {MAX_MACS} multiplications" if p.macs > MAX_MACS else None


def _is_whole(value: Any, most: int) -> bool:
    return type(value) is int and 0 < value < most


def _shown(value: Any) -> str:
    return ascii(value)[:60]
