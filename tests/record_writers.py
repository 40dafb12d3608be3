"""Processes that write records, for tests that kill them, run several at once, or take the disk or the right to write
away. Run as a script, so that what forks here is small; prints JSON."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from record_cases import PROBLEM, record

from convc.errors import ConvcError
from convc.problem import Problem
from convc.runtime import artifact  # noqa: F401  so that a process that may not read the library has it
from convc.tune.journal import Journal, NotWrittenError
from convc.tune.log import load, merge
from convc.tune.record import Record

WRITERS = 8
KEYS = 40
MOST = 25  # records that a writer who is to be killed appends at once


Write = Callable[[list[Record]], object]


def trial(writer: int, index: int) -> Record:
    """A record that no other writer or index has, with one of KEYS keys."""
    random = Random(writer * 1_000_003 + index)
    rows = random.randrange(1, KEYS + 1)
    problem = str(Problem.parse(f"ic8ih{rows}iw9oc8kh3ph1"))
    us, config = random.uniform(1, 2), {"xb": 8, "yb": 8, "writer": writer, "index": index}
    return record(problem=problem, config=config, us=us, spread=1.0, reason="x" * random.randrange(200))


def batches(writer: int, *, most: int) -> Iterator[list[Record]]:
    """Without end."""
    random, index = Random(writer), 0
    while True:
        size = random.randint(1, most)
        yield [trial(writer, i) for i in range(index, index + size)]
        index += size


def kill(folder: Path, seed: int, count: int) -> list[int]:
    """Kill `count` writers of one journal, one after the other; of each the batches that it was told are durable."""
    random = Random(seed)
    gc.freeze()  # the children copy less
    return [_killed(folder, writer, random) for writer in range(count)]


def _killed(folder: Path, writer: int, random: Random) -> int:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        for batch in batches(writer, most=MOST):
            Journal(folder, "night").append(batch)
            os.write(theirs, b".")
    os.close(theirs)
    acknowledged = b"".join(os.read(ours, 1) for _ in range(random.randrange(3)))
    time.sleep(random.uniform(0, 0.003))  # somewhere between making records, locking, writing, and making durable
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(ours, 4096):
        acknowledged += more
    os.close(ours)
    return len(acknowledged)


def race(folder: Path, count: int) -> None:
    """WRITERS processes append `count` records each to one journal."""
    _together(lambda writer: _all(writer, count, Journal(folder, "race").append))


def race_logs(folder: Path, count: int) -> None:
    """WRITERS processes merge `count` records each into the logs of one folder."""
    _together(lambda writer: _all(writer, count, lambda batch: merge(folder, batch)))


def _all(writer: int, count: int, write: Write) -> None:
    done = 0
    for batch in batches(writer, most=30):
        write(batch[: count - done])
        done += len(batch)
        if done >= count:
            return


def _together(work: Callable[[int], None]) -> None:
    """Run `work` in WRITERS processes that start at the same moment."""
    gate, starter = os.pipe()
    children = []
    for writer in range(WRITERS):
        child = os.fork()
        if child == 0:
            os.close(starter)
            os.read(gate, 1)  # until the parent closes the other end
            work(writer)
            os._exit(0)
        children.append(child)
    os.close(starter)
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert not any(codes), codes


def full(folder: Path, limit: int) -> dict[str, object]:
    """Append to a journal and merge into a log where no file may grow beyond `limit` bytes: the records that each then
    claims to hold, what it said, and the bytes of the files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    ways = {"journal": Journal(folder, "full").append, "log": lambda batch: merge(folder, batch)}
    ends = {name: _until_full(write) for name, write in ways.items()}
    return {
        "done": {name: done for name, (done, _) in ends.items()},
        "said": {name: said for name, (_, said) in ends.items()},
        "sizes": {path.name: path.stat().st_size for path in folder.rglob("*.jsonl")},
    }


def _until_full(write: Write) -> tuple[int, str]:
    done = 0
    try:
        for batch in batches(0, most=60):
            write([_apart(each) for each in batch])
            done += len(batch)
    except NotWrittenError as error:
        return done + error.safe, str(error)
    raise AssertionError("batches never end")


def _apart(found: Record) -> Record:
    """With a key of its own, so that a log grows."""
    return record(problem=str(Problem.parse(f"ic8ih{found.config['index'] + 1}iw9oc8kh3ph1")))


def readonly(folder: Path) -> dict[str, object]:
    """What reading and writing a folder without the right to write come to, as somebody who is not root."""
    os.chdir(folder.parent)  # which the user below may not reach by its full name
    assert record().problem == PROBLEM  # imports what is imported late
    if os.geteuid() == 0:
        os.setuid(65534)
    place, said = Path(folder.name), []
    ways: list[Write] = [lambda batch: merge(place, batch), Journal(place, "night").append]
    for write in ways:
        try:
            write([record(us=1.0)])
        except ConvcError as error:
            said.append(f"{type(error).__name__}: {error}")
    return {"read": [each.line for each in load(place, "cpu/znver3").records], "said": said}


if __name__ == "__main__":
    mode, place, *numbers = sys.argv[1:]
    modes: dict[str, Callable[..., object]] = {f.__name__: f for f in (kill, race, race_logs, full, readonly)}
    print(json.dumps(modes[mode](Path(place), *map(int, numbers))))
