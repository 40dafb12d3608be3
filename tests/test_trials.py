"""Does a wrong, dying or endless candidate cost one trial and nothing else? Each fault is planted in a kernel written
in C, or in the compiler's process, between two right candidates of the same batch."""

from __future__ import annotations

import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest
from faults import CRASH, ENDLESS, WRONG
from planted import LOOSE, TIGHT, Compilers, Planted

from convc.algorithm import Choice
from convc.problem import Problem
from convc.target import Target, parse_target
from convc.tune.build import Builders, Candidate, Compiled, Refused
from convc.tune.child import Child, Ended, Failed
from convc.tune.device import LocalDevice, Timed
from convc.tune.record import Record
from convc.tune.search import Task
from convc.tune.session import Session
from convc.tune.trials import Trials
from convc.tune.workload import Data, Workload

THREADS = 2
MEMORY = 3 << 30  # bytes of address space; numpy and its threads take about one GiB of them
GENEROUS = 300.0  # seconds, where an answer comes
SHORT = 2.5  # seconds, where none ever comes


@functools.cache
def machine(threads: int = THREADS) -> Target:
    return parse_target("native", threads=threads)


@pytest.fixture(scope="module")
def device() -> Iterator[LocalDevice]:
    found = LocalDevice(seconds=GENEROUS, memory=MEMORY)
    yield found
    found.close()


def batch(between: Candidate, result: Compiled | Refused, device: LocalDevice, *, threads: int = THREADS) -> Record:
    """The record of one candidate that is tried between two right ones, which must not suffer from it."""
    right = [Planted().candidate(number) for number in (1, 2)]
    results = {str(c): Planted().compiled(f"right_{i}") for i, c in enumerate(right)} | {str(between): result}
    trials = Trials(machine(threads), Compilers(results), device, noisy=math.inf)
    candidates, told = [right[0], between, right[1]], list[Record]()
    records = trials.run(candidates, told=told.append)
    assert told == records, "one record each, told as it comes"
    assert [r.choice for r in records] == [str(c.choice) for c in candidates]
    assert [(r.status, r.reason) for r in (records[0], records[2])] == [("ok", "")] * 2
    assert all(r.us and r.us > 0 and r.spread is not None for r in (records[0], records[2]))
    return records[1]


def tried(fault: Planted, device: LocalDevice, *, threads: int = THREADS) -> Record:
    return batch(fault.candidate(0), fault.compiled("fault"), device, threads=threads)


def refused(record: Record, status: str, reason: str) -> None:
    assert (record.status, record.us, record.error) == (status, None, None)
    assert reason in record.reason


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("problem", [LOOSE, TIGHT])
def test_right(problem: str, threads: int, device: LocalDevice) -> None:
    record = tried(Planted(problem=problem), device, threads=threads)
    assert (record.status, record.threads) == ("ok", threads)
    assert record.us and record.us_warm and record.error is not None and record.error < 1e-6


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str, device: LocalDevice) -> None:
    fault, reason = WRONG[name]
    refused(tried(fault, device), "wrong", reason)


@pytest.mark.parametrize("name", CRASH)
def test_crash(name: str, device: LocalDevice) -> None:
    fault, reason = CRASH[name]
    refused(tried(fault, device), "crash", reason)


@pytest.mark.parametrize("name", ENDLESS)
def test_endless(name: str) -> None:
    impatient = LocalDevice(seconds=SHORT, memory=MEMORY)
    try:
        refused(tried(ENDLESS[name], impatient), "timeout", "no answer within 2.5")
    finally:
        impatient.close()


def test_temporaries_beyond_the_limit(device: LocalDevice) -> None:
    fault = Planted("void* t = take(20ull << 30); if (!t) return -1; give(t); return compute(x, w, y);")
    refused(tried(fault, device), "memory", "no memory")


def test_threads_are_what_is_asked_for(device: LocalDevice) -> None:
    assert tried(WRONG["wrong with two threads"][0], device, threads=1).status == "ok"
    refused(tried(WRONG["wrong with one thread"][0], device, threads=1), "wrong", "not written")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Planted("return missing();", "int missing(void);"), "undefined reference to `missing'"),
        (Planted(definitions="__attribute__((constructor)) static void start(void) { abort(); }"), "SIGABRT"),
    ],
    ids=["undefined symbol", "dies when loaded"],
)
def test_code_that_spoils_the_library(fault: Planted, reason: str, device: LocalDevice) -> None:
    refused(tried(fault, device), "build", reason)


def test_a_symbol_that_another_candidate_has(device: LocalDevice) -> None:
    fault = Planted(definitions="int k_right_0(void) { return 0; }")
    assert tried(fault, device).status == "ok", "each is right alone"


def test_an_object_that_is_none(device: LocalDevice) -> None:
    result = replace(Planted().compiled("garbage"), kernel_object=b"\x7fELF\x02\x01" + bytes(60))
    refused(batch(Planted().candidate(0), result, device), "build", "the C compiler failed")


def test_what_the_compiler_refused(device: LocalDevice) -> None:
    refused(batch(Planted().candidate(0), Refused("build", "no schedule"), device), "build", "no schedule")


def test_the_same_candidate_twice(device: LocalDevice) -> None:
    candidate = Planted().candidate(0)
    trials = Trials(machine(), Compilers({str(candidate): Planted().compiled("same")}), device, noisy=math.inf)
    assert [r.status for r in trials.run([candidate, candidate])] == ["ok", "ok"]


def test_a_batch_without_one_right_candidate(device: LocalDevice) -> None:
    faults = [WRONG["an error"][0], CRASH["abort"][0], Planted("return 0;")]
    candidates = [f.candidate(i) for i, f in enumerate(faults)]
    results = {str(c): f.compiled(f"bad_{i}") for i, (c, f) in enumerate(zip(candidates, faults, strict=True))}
    records = Trials(machine(), Compilers(results), device).run(candidates)
    assert [r.status for r in records] == ["wrong", "crash", "wrong"]


# -- timing --


@pytest.mark.parametrize("name", ["no computation after some runs", "wrong values after some runs"])
def test_a_race_is_not_won_by_leaving_out_the_work(name: str, device: LocalDevice) -> None:
    """Racers write to the same place, where the result of the one before lies."""
    faults = [Planted(), WRONG[name][0]]
    candidates = [f.candidate(i) for i, f in enumerate(faults)]
    results = {str(c): f.compiled(f"racer_{i}") for i, (c, f) in enumerate(zip(candidates, faults, strict=True))}
    trials = Trials(machine(), Compilers(results), device)
    trials.build(candidates)
    with pytest.raises(Failed, match="while it was timed: (elements of the result are not written|its values are)"):
        trials.race(candidates)
    assert [t.us > 0 for t in trials.race([candidates[0]])] == [True]


class Clock:
    """A device on which everything is right, and takes what it is told."""

    name, width = "a clock", 1

    def __init__(self, timed: Timed) -> None:
        self.timed = timed

    def load(self, library: bytes) -> None:
        pass

    def check(self, index: int, data: Data, *, threads: int) -> tuple[int, float]:
        return 0, 0.0

    def time(self, indices: Sequence[int], data: Data, *, threads: int, seconds: float) -> list[Timed]:
        return [self.timed] * len(indices)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "timed",
    [
        Timed(0.0, 0.0, 0.0, 5),
        Timed(-1.0, 0.0, 1.0, 5),
        Timed(math.nan, 0.0, 1.0, 5),
        Timed(math.inf, 0.0, 1.0, 5),
        Timed(1.0, math.nan, 1.0, 5),
        Timed(1.0, 0.0, math.nan, 5),
        Timed(1.0, 0.0, -1.0, 5),
        Timed(1.0, 0.6, 1.0, 5),
        Timed(0.05, 0.0, 0.05, 5),  # 72 GFLOP/s where the machine has 4
    ],
)
def test_silly_times(timed: Timed) -> None:
    candidate = Planted().candidate(0)
    results = {str(candidate): Planted().compiled("clocked")}
    (record,) = Trials(machine(), Compilers(results), Clock(timed), peak=4.0).run([candidate])
    refused(record, "noisy", "us")
    (fine,) = Trials(machine(), Compilers(results), Clock(Timed(1.0, 0.1, 1.0, 5)), peak=4.0).run([candidate])
    assert (fine.status, fine.us) == ("ok", 1.0)


# -- the session --


SPOILT = [WRONG["no computation after some runs"][0], CRASH["abort"][0], WRONG["4 bytes past the end"][0]]


@pytest.mark.parametrize("right", ["the last", "none"])
def test_no_refused_candidate_stands(right: str, device: LocalDevice) -> None:
    task = Task(Workload(Problem.parse(LOOSE)), (1, 1))
    choices = task.choices(machine())
    good = [str(choices[-1])] if right == "the last" else []
    results = {}
    for i, choice in enumerate(choices):
        candidate = Candidate(task.workload, choice)
        fault = Planted() if str(choice) in good else SPOILT[i % len(SPOILT)]
        results[str(candidate)] = fault.compiled(f"choice_{i}")
    written: list[Record] = []
    trials = Trials(machine(), Compilers(results), device, noisy=math.inf)
    session = Session(trials, written.extend, time.monotonic() + 1e6)
    session.add({task: 1})
    session.run()
    (entry,) = session.entries.values()
    assert sorted(r.choice for r in written) == sorted(map(str, choices)), "one trial each"
    assert [r.choice for r in written if r.status == "ok"] == good
    assert session.refused == len(choices) - len(good)
    assert [entry.standing.choice] == good if entry.standing else not good
    assert list(entry.records) == good


# -- the compiler's processes --


def compiled_by(
    faults: Sequence[int],
    *,
    seconds: float,
    prepare: Callable[[], Mapping[str, Callable[..., Any]]] = planted.compilers,
) -> list[Compiled | Refused]:
    workload = Planted().workload
    candidates = [
        Candidate(workload, Choice("fallback", {"xb": 1, "yb": 1, "fault": fault, "number": i}))
        for i, fault in enumerate(faults)
    ]
    with Builders(machine(), 2, seconds=seconds, memory=MEMORY, prepare=prepare) as builders:
        return list(builders.build(candidates))


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        (planted.HANGS, "timeout", f"no answer within {SHORT:.3g} s"),
        (planted.CALLS_ABORT, "crash", "it called abort; it said: LLVM ERROR: Cannot select: t42"),
        (planted.LEAVES, "crash", "ended with code 3"),
        (planted.RAISES, "build", "ValueError: the loops do not nest"),
        (planted.HOARDS, "memory", "more memory than the 3 GiB"),
    ],
    ids=["hangs", "aborts", "leaves", "raises", "hoards"],
)
def test_a_compiler_that_fails_costs_one_candidate(fault: int, status: str, reason: str, device: LocalDevice) -> None:
    seconds = SHORT if fault == planted.HANGS else GENEROUS
    before, bad, after = compiled_by([planted.RIGHTLY, fault, planted.RIGHTLY], seconds=seconds)
    assert isinstance(bad, Refused)
    assert bad.status == status
    assert reason in bad.reason
    for result in (before, after):
        assert isinstance(result, Compiled)
        record = batch(Planted().candidate(0), result, device)
        assert record.status == "ok"
    refused(batch(Planted().candidate(0), bad, device), status, reason)


def test_a_compiler_may_talk_at_length() -> None:
    results = compiled_by([planted.SPEAKS], seconds=GENEROUS)
    assert isinstance(results[0], Compiled)


def test_a_compiler_that_cannot_start() -> None:
    results = compiled_by([planted.RIGHTLY] * 3, seconds=GENEROUS, prepare=planted.compilers_that_cannot_start)
    assert results == [Refused("build", "ModuleNotFoundError: No module named 'tvm'")] * 3


def test_a_process_that_never_starts() -> None:
    child = Child(planted.compilers_that_never_start, start_seconds=SHORT)
    with pytest.raises(Ended, match="no start within 2.5 s") as caught:
        child.ask("build", seconds=GENEROUS)
    assert caught.value.status == "timeout"
    assert child.is_fresh


# -- processes and their end --


def test_an_interrupted_question_is_not_answered_later() -> None:
    child = Child(planted.conversation)
    try:
        assert child.ask("echo", 1, seconds=GENEROUS) == 1
        with pytest.raises(KeyboardInterrupt):
            child.ask("interrupt", seconds=GENEROUS)
        assert child.ask("echo", 2, seconds=GENEROUS) == 2
    finally:
        child.close()


def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    script, sign = Path(planted.__file__), tmp_path / "computing"
    parent = subprocess.Popen([sys.executable, str(script), str(sign)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        wait_until(sign.exists)
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_until(lambda: not is_running(child))
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Whether there is such a process, not counting one that has ended and that nobody has asked about."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
