"""Does a file of jobs bring the same tasks to another machine, and is nothing else ever taken for one?"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_calls import isolate, network
from click.testing import CliRunner

from convc.cli.tune import command
from convc.errors import BadInputError, ConvcError, TargetMismatchError, UsageError
from convc.pipeline import run_until
from convc.problem import Problem
from convc.runtime.container import pack, unpack
from convc.target import parse_target
from convc.tune import trials
from convc.tune.jobs import ENTRY, MAX_BYTES, Jobs, parse_jobs, read_jobs
from convc.tune.journal import journals, read
from convc.tune.record import Record
from convc.tune.search import Task
from convc.tune.tuner import tasks_of_plan
from convc.tune.workload import Workload

PROBLEM = "mb1_ic16ih7_oc16oh7_kh3ph1"
OTHER = "mb1_ic32ih8_oc16oh8_kh1"


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setenv("CONVC_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(trials, "NOISY", 1e9)  # other work must not change what a record says


def tuned(*argv: object) -> dict[str, Any]:
    """The document of `convc tune --json`; what it raises is raised."""
    found = CliRunner().invoke(command, [*map(str, argv), "--json"], standalone_mode=False)
    if found.exception:
        raise found.exception
    return dict(json.loads(found.stdout))


def jobs() -> Jobs:
    target = parse_target("cpu/x86-64-v3", threads=2)
    tasks = {Task(Workload(Problem.parse(text).canonical, "short"), (8, 8)): 3 for text in (PROBLEM, OTHER)}
    return Jobs(target, 90.0, None, tasks)


def written(records: Path) -> list[Record]:
    (journal,) = journals(records)
    return list(read(journal).records)


@pytest.mark.slow
def test_what_is_exported_and_run_is_what_is_tuned_here(tmp_path: Path) -> None:
    """The first candidates of a task do not depend on times, so that two sessions of these try the same."""
    few = ("--trials", 4, "--threads", 1)
    here = tuned(PROBLEM, "--records", tmp_path / "here", *few)
    told = tuned(PROBLEM, "--export", tmp_path / "jobs.zip", *few)
    there = tuned("--run", tmp_path / "jobs.zip", "--records", tmp_path / "there")
    assert told["tasks"] == len(here["tasks"]) > 1
    assert [row["task"] for row in there["tasks"]] == [row["task"] for row in here["tasks"]]
    first, second = (written(tmp_path / place) for place in ("here", "there"))
    assert len(first) >= 4 and {r.status for r in first} == {"ok"}

    def told_apart(records: list[Record]) -> set[tuple[str, str, str, str]]:
        return {(r.problem, r.epilogue, r.choice, r.status) for r in records if not r.reason}

    assert told_apart(first) == told_apart(second)


def test_a_model_is_exported_as_the_tasks_of_its_plan(tmp_path: Path) -> None:
    """With how often it computes each."""
    model, where = tmp_path / "model.onnx", ("--target", "cpu/x86-64-v3", "--threads", 2)
    model.write_bytes(network().SerializeToString())
    told = tuned(model, "--export", tmp_path / "jobs.zip", *where, "--budget", "90s", "--trials", 7)
    found = read_jobs(tmp_path / "jobs.zip")
    plan = run_until("chosen", model, target="cpu/x86-64-v3", threads=2)
    assert found.tasks == tasks_of_plan(plan) and told["tasks"] == len(found.tasks) > 1
    assert (found.target, found.budget, found.trials) == (jobs().target, 90.0, 7)


def test_the_same_jobs_are_the_same_bytes_and_a_plain_zip(tmp_path: Path) -> None:
    data = jobs().content
    assert data == jobs().content and parse_jobs(data, "j") == jobs()
    (tmp_path / "jobs.zip").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "jobs.zip") as file:
        (entry,) = file.infolist()
        assert (entry.filename, entry.compress_type) == (ENTRY, zipfile.ZIP_STORED)
        assert json.loads(file.read(ENTRY))["tasks"][0]["weight"] == 3


def test_run_refuses_what_its_file_already_says(tmp_path: Path) -> None:
    (tmp_path / "jobs.zip").write_bytes(jobs().content)
    for flags in ((PROBLEM,), ("--target", "cpu/znver3"), ("--threads", 2), ("--export", tmp_path / "again.zip")):
        with pytest.raises(UsageError, match="--run tunes what its file says"):
            tuned("--run", tmp_path / "jobs.zip", *flags)
    with pytest.raises(UsageError, match="nothing to tune"):
        tuned()


def test_jobs_for_another_cpu_do_not_run_here(tmp_path: Path) -> None:
    tuned(PROBLEM, "--target", "cpu/cortex-a72", "--export", tmp_path / "jobs.zip")
    with pytest.raises(TargetMismatchError, match="cpu/cortex-a72 does not run on this machine"):
        tuned("--run", tmp_path / "jobs.zip")


# -- files that are none --


def entry() -> dict[str, Any]:
    return dict(json.loads(bytes(unpack(jobs().content, "")[ENTRY])))


def packed(text: str) -> bytes:
    return pack({ENTRY: text.encode()})


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    found = entry()
    change(found)
    return packed(json.dumps(found, separators=(",", ":")))


def task_with(**changes: object) -> bytes:
    return edited(lambda found: found["tasks"][0].update(changes))


def target_of(text: object) -> bytes:
    return edited(lambda found: found.update(target=text))


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no file of jobs"),
    "no zip": (b"PK\3\4" + bytes(200), "no file of jobs"),
    "another zip": (pack({"manifest.json": b"{}"}), "holds jobs.json and nothing else"),
    "an entry more": (pack({ENTRY: b"{}", "x": b""}), "holds jobs.json and nothing else"),
    "no JSON": (packed("{"), "no list of jobs"),
    "no ASCII": (packed('"\u00e9"'), "no list of jobs"),
    "a list": (packed("[1]"), "no list of jobs"),
    "deep": (packed("[" * 100_000), "no list of jobs"),
    "a number of many digits": (packed('{"schema":' + "9" * 5000 + "}"), "no list of jobs"),
    "no keys": (packed("{}"), "no list of jobs"),
    "a key more": (edited(lambda j: j.update(more=1)), "was edited"),
    "a key twice": (packed(json.dumps(entry())[:-1] + ',"schema":1}'), "was edited"),
    "spaces": (packed(json.dumps(entry())), "was edited"),
    "another schema": (edited(lambda j: j.update(schema=2)), "schema 2; this version of convc reads 1"),
    "a schema that is true": (edited(lambda j: j.update(schema=True)), "was edited"),
    "no time": (edited(lambda j: j.update(budget=0.0)), "budget is 0.0"),
    "a whole time": (edited(lambda j: j.update(budget=90)), "budget is 90"),
    "time without end": (edited(lambda j: j.update(budget=float("inf"))), "budget is inf"),
    "time that is none": (edited(lambda j: j.update(budget=float("nan"))), "budget is nan"),
    "no trials": (edited(lambda j: j.update(trials=0)), "trials is 0"),
    "trials that are true": (edited(lambda j: j.update(trials=True)), "trials is True"),
    "no tasks": (edited(lambda j: j.update(tasks=[])), "not 1 to"),
    "tasks by name": (edited(lambda j: j.update(tasks={})), "not 1 to"),
    "too many tasks": (edited(lambda j: j.update(tasks=[0] * 5000)), "not 1 to"),
    "a task that is none": (edited(lambda j: j.update(tasks=[0])), "no list of jobs"),
    "a task twice": (edited(lambda j: j["tasks"].append(j["tasks"][0])), "two tasks are the same"),
    "no target": (target_of(None), "target is None"),
    "this machine": (target_of("native"), "target is 'native'"),
    "a GPU": (target_of("cuda/sm_80"), "target is 'cuda/sm_80'"),
    "a machine that ends LLVM": (target_of("cpu/znver3,triple=foo-bar,threads=1"), "target is"),
    "no CPU": (target_of("cpu/x,triple=x86_64-unknown-linux-gnu,threads=1"), "LLVM knows no CPU 'x'"),
    "too many threads": (target_of("cpu/znver3,triple=x86_64-unknown-linux-gnu,threads=999"), "999 threads"),
    "a problem that is none": (task_with(problem="rm -rf"), "benchdnn"),
    "a problem that is a number": (task_with(problem=3), "a problem is 3"),
    "a problem without end": (task_with(problem="ic1_" * 200), "a problem is"),
    "a problem in other words": (task_with(problem=PROBLEM), "was edited"),
    "a problem not canonical": (task_with(problem="mb1_ic16ih7iw7_oc16_kh1"), "canonical form"),
    "extents that do not fit": (task_with(problem="mb1_ic16ih9_oc16oh2_kh3ph1"), "do not fit each other"),
    "an output that is cropped": (task_with(problem="transposed_mb1_ic1iw9_oc1ow9_kw1_sw2"), "output_pad"),
    "another type": (task_with(problem=f"{PROBLEM}_int32"), "only float32 is tuned"),
    "a tensor too large": (task_with(problem="mb1_ic4096ih4096_oc4096_kh3ph1"), "elements"),
    "weights too large": (task_with(problem="mb1_ic65536_oc65536"), "elements"),
    "padding too large": (task_with(problem="mb1_ic1iw2_oc1ow2_kw1_sw1000000000"), "elements"),
    "a stride too large": (task_with(problem="transposed_mb1_ic1iw9_oc1ow9_kw1_sw1000000000"), "elements"),
    "a number too large": (task_with(problem="mb1_ic1iw2_oc1ow2_sw99999999999999999999"), "not below"),
    "too much work": (task_with(problem="mb1_ic1024ih256_oc1024_kh5ph2"), "multiplications"),
    "no class": (task_with(epilogue="gelu"), "epilogue is 'gelu'"),
    "a class that is a list": (task_with(epilogue=["short"]), r"epilogue is \['short'\]"),
    "no layouts": (task_with(blocks=[16]), "not two whole numbers"),
    "layouts below 1": (task_with(blocks=[16, 0]), "not two whole numbers"),
    "layouts of no algorithm": (task_with(blocks=[3, 5]), "no algorithm for it"),
    "no weight": (task_with(weight=0), "weight is 0"),
    "a weight that is a fraction": (task_with(weight=1.5), "weight is 1.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_file_of_jobs_is_refused(tmp_path: Path, name: str) -> None:
    data, why = BAD[name]
    path = tmp_path / "bad.zip"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=why) as caught:
        read_jobs(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 3 and len(str(caught.value)) < 400


def test_what_is_no_plain_file_of_that_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        read_jobs(tmp_path / "absent.zip")
    large = tmp_path / "large.zip"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path in (tmp_path, Path("/dev/zero"), large):
        with pytest.raises(BadInputError, match="a plain one of at most"):
            read_jobs(path)


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    data = jobs().content
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(BadInputError):
            parse_jobs(bytes(damaged), "jobs.zip")
        with pytest.raises(BadInputError):
            parse_jobs(data[:at], "jobs.zip")


def test_no_edit_does_worse_than_to_be_refused() -> None:
    """Characters of the text exchanged at random, in a zip that is whole."""
    random = np.random.default_rng(7)
    text, alphabet = json.dumps(entry(), separators=(",", ":")), '0123456789{}[]",:_-.eghickmopswNI'
    refused = 0
    for _ in range(2000):
        found = list(text)
        for at in random.integers(0, len(found), random.integers(1, 4)):
            found[at] = alphabet[random.integers(len(alphabet))]
        try:
            again = parse_jobs(packed("".join(found)), "jobs.zip")
        except BadInputError:
            refused += 1
        except ConvcError as error:
            pytest.fail(f"{error!r} for {''.join(found)}")
        else:
            assert bytes(unpack(again.content, "")[ENTRY]).decode() == "".join(found)
    assert refused > 1000
