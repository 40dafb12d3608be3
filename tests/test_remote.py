"""Does measuring behind a tracker tell the same as measuring here, and what becomes of devices that are lost?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rpc_servers import Server, devices, tracker, wait_for

from convc.cli.tune import command
from convc.errors import MissingDependencyError, UsageError
from convc.problem import Problem
from convc.report.machine import cpu_name
from convc.runtime.link import COMPILE_FLAGS, compile_c, find_compiler
from convc.target import Target, parse_target
from convc.tune import fleet, remote, trials
from convc.tune.build import Builders, Candidate, Compiled, Refused
from convc.tune.client import answering
from convc.tune.device import LocalDevice
from convc.tune.fleet import Fleet
from convc.tune.journal import journals, read
from convc.tune.record import Record
from convc.tune.remote import RemoteDevice
from convc.tune.tracker import NoDeviceError, Tracker
from convc.tune.trials import Trials
from convc.tune.tuner import tasks_of_problem
from convc.tune.workload import Workload

SEGFAULT = "*(volatile int*)8 = 1; return 0;"
ENDLESS = "for (volatile int i = 0;; ++i) {}"
NOTHING = "return 0;"
ENDS_ITS_SESSION = "kill(getppid(), SIGKILL); pause(); return 0;"


@dataclass(frozen=True)
class Built:
    """Stands for Builders: candidates with what became of them, built once for all tests."""

    known: Mapping[str, Compiled | Refused]

    def build(self, candidates: Sequence[Candidate]) -> Iterator[Compiled | Refused]:
        return (self.known[str(candidate)] for candidate in candidates)

    def planted(self, bodies: Mapping[str, str], target: Target, folder: Path) -> Built:
        """Kernels of some candidates with these bodies in C."""
        changed = {}
        for candidate, body in bodies.items():
            compiled = self.known[candidate]
            assert isinstance(compiled, Compiled)
            text = f"#include <signal.h>\n#include <unistd.h>\nint {compiled.kernel}(void) {{ {body} }}\n"
            (folder / "planted.c").write_text(text)
            hidden = [flag for flag in COMPILE_FLAGS if flag != "-fvisibility=hidden"]
            compile_c([*find_compiler(target), *hidden, "planted.c", "-o", "planted.o"], folder)
            changed[candidate] = replace(compiled, kernel_object=(folder / "planted.o").read_bytes())
        return Built({**self.known, **changed})


@pytest.fixture(scope="module")
def target() -> Target:
    return parse_target("native", threads=1)


@pytest.fixture(scope="module")
def candidates(target: Target) -> list[Candidate]:
    """Of two workloads, in two pairs of layouts each."""
    found = []
    for text, epilogue in (("mb1_ic16ih9_oc16oh9_kh3ph1", "residual"), ("mb1_ic16ih7_oc32oh7_kh1", "long")):
        workload = Workload(Problem.parse(text).canonical, epilogue)
        for task in tasks_of_problem(workload, target)[:2]:
            found += [Candidate(workload, choice) for choice in task.choices(target)[:2]]
    return found


@pytest.fixture(scope="module")
def built(target: Target, candidates: list[Candidate]) -> Built:
    with Builders(target) as builders:
        found = dict(zip(map(str, candidates), builders.build(candidates), strict=True))
    assert all(isinstance(result, Compiled) for result in found.values())
    return Built(found)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    with tracker(tmp_path_factory.mktemp("tracker"), "unused") as found:
        yield found


@pytest.fixture(autouse=True)
def _whatever_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is too noisy here: other work must not change what a record says."""
    monkeypatch.setattr(trials, "NOISY", 1e9)


def told_apart(records: Sequence[Record]) -> set[tuple[str, str, str]]:
    return {(record.problem, record.choice, record.status) for record in records}


def ports(notes: Sequence[str], word: str) -> list[int]:
    """Of the devices that notes with this word begin with."""
    return [int(note.partition(" ")[0].rpartition(":")[2]) for note in notes if f" {word} " in note]


@pytest.mark.slow
def test_two_devices_tell_what_this_machine_tells(
    place: Tracker, target: Target, candidates: list[Candidate], built: Built, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Candidates that crash and that are wrong among them; no array goes to a device twice."""
    mixed = built.planted({str(candidates[1]): SEGFAULT, str(candidates[4]): NOTHING}, target, tmp_path)
    sent: list[tuple[str, str]] = []
    ask = RemoteDevice._ask

    def counted(self: RemoteDevice, handler: str, *args: Any, seconds: float) -> Any:
        if handler == "send":
            sent.append((str(self.place), args[0]))
        return ask(self, handler, *args, seconds=seconds)

    monkeypatch.setattr(RemoteDevice, "_ask", counted)
    here = LocalDevice()
    local = Trials(target, mixed, here).run(candidates)
    notes: list[str] = []
    with devices(tmp_path, replace(place, key="alike"), 2) as servers:
        group = Fleet(replace(place, key="alike"), target, told=notes.append)
        assert group.width == 2 and group.name == here.name[:100]
        found = Trials(target, mixed, group).run(candidates)
        assert group.width == 2, notes  # nobody was lost by the crash
        group.close()
    here.close()
    assert told_apart(found) == told_apart(local)
    assert [r.status for r in found] == [{1: "crash", 4: "wrong"}.get(i, "ok") for i in range(len(candidates))]
    assert found[1].reason == local[1].reason and found[1].reason.startswith("ended by SIGSEGV")
    assert len(sent) == len(set(sent)) and {p.rpartition(":")[2] for p, _ in sent} == {str(s.port) for s in servers}


def killed_before_timing(servers: Sequence[Server], monkeypatch: pytest.MonkeyPatch, *, spared: int = 0) -> None:
    """Each of these is killed when it is about to time a candidate, but for the first `spared` times."""
    doomed = {server.port: server for server in servers}
    times = dict.fromkeys(doomed, 0)
    ask = RemoteDevice._ask

    def asked(self: RemoteDevice, handler: str, *args: Any, seconds: float) -> Any:
        if handler == "time" and (server := doomed.get(self.place.port)):
            times[server.port] += 1
            if times[server.port] > spared:
                server.kill()
        return ask(self, handler, *args, seconds=seconds)

    monkeypatch.setattr(RemoteDevice, "_ask", asked)


@pytest.mark.slow
def test_a_device_that_is_lost_costs_no_candidate(
    place: Tracker, target: Target, candidates: list[Candidate], built: Built, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    notes: list[str] = []
    key = replace(place, key="lost")
    with devices(tmp_path, key, 2) as servers:
        killed_before_timing(servers[:1], monkeypatch)
        group = Fleet(key, target, told=notes.append)
        found = Trials(target, built, group).run(candidates)
        assert group.width == 1
        group.close()
    assert [r.status for r in found] == ["ok"] * len(candidates), [r.reason for r in found]
    assert [r.choice for r in found] == [str(c.choice) for c in candidates]
    assert ports(notes, "was lost:") == [servers[0].port], notes


@pytest.mark.slow
def test_where_all_devices_are_lost_nobody_gets_the_blame(
    place: Tracker, target: Target, candidates: list[Candidate], built: Built, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Not even the candidate that both devices were lost with: none is there to say that it was not them."""
    monkeypatch.setattr(fleet, "WAIT", 1.0)
    told: list[Record] = []
    key = replace(place, key="gone")
    with devices(tmp_path, key, 2) as servers:
        killed_before_timing(servers, monkeypatch)
        group = Fleet(key, target)
        with pytest.raises(NoDeviceError, match="no device free under 'gone'"):
            Trials(target, built, group).run(candidates, told=told.append)
        group.close()
    assert not told


@pytest.mark.slow
def test_a_candidate_that_never_ends_costs_its_trial(
    place: Tracker, target: Target, candidates: list[Candidate], built: Built, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(remote, "SECONDS", 3.0)
    notes: list[str] = []
    with devices(tmp_path, replace(place, key="endless"), 1):
        group = Fleet(replace(place, key="endless"), target, told=notes.append)
        mixed = built.planted({str(candidates[0]): ENDLESS}, target, tmp_path)
        found = Trials(target, mixed, group).run(candidates[:2])
        group.close()
    assert [r.status for r in found] == ["timeout", "ok"]
    assert found[0].reason == "no answer within 3 s" and not ports(notes, "was lost:")


@pytest.mark.slow
def test_a_candidate_that_two_devices_do_not_survive_is_to_blame(
    place: Tracker, target: Target, candidates: list[Candidate], built: Built, tmp_path: Path
) -> None:
    """It ends its session from within. TVM's server then serves nobody any more, so the third device does the rest."""
    notes: list[str] = []
    with devices(tmp_path, replace(place, key="deadly"), 3) as servers:
        group = Fleet(replace(place, key="deadly"), target, told=notes.append)
        mixed = built.planted({str(candidates[0]): ENDS_ITS_SESSION}, target, tmp_path)
        found = Trials(target, mixed, group).run(candidates[:3])
        assert group.width == 1
        group.close()
    assert [r.status for r in found] == ["crash", "ok", "ok"]
    lost = ports(notes, "was lost:")
    assert len(lost) == 2 and set(lost) < {s.port for s in servers}
    assert all(f"127.0.0.1:{port}" in found[0].reason for port in lost)


@pytest.mark.slow
def test_devices_of_other_names_are_left_to_others(
    place: Tracker, target: Target, candidates: list[Candidate], built: Built, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    names = {}
    examined = RemoteDevice._examined

    def renamed(self: RemoteDevice, target: Target, probe: bytes) -> str:
        examined(self, target, probe)
        return names.setdefault(self.place.port, f"board {len(names)}")

    monkeypatch.setattr(RemoteDevice, "_examined", renamed)
    notes: list[str] = []
    key = replace(place, key="unlike")
    with devices(tmp_path, key, 2):
        group = Fleet(key, target, told=notes.append)
        found = Trials(target, built, group).run(candidates[:2])
        assert group.width == 1
        wait_for(key, (2, 1))  # the other one can be had
        group.close()
    assert {(r.status, r.device) for r in found} == {("ok", "board 0")}
    assert ports(notes, "is left to others:") == [port for port, name in names.items() if name == "board 1"]


@pytest.mark.slow
def test_a_session_gives_its_device_back_before_it_expires(
    place: Tracker, target: Target, candidates: list[Candidate], built: Built, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(remote, "RENEW", remote.SESSION)  # at once
    notes: list[str] = []
    key = replace(place, key="renewed")
    with devices(tmp_path, key, 1) as servers:
        group = Fleet(key, target, told=notes.append)
        (found,) = Trials(target, built, group).run(candidates[4:5])
        group.close()
        wait_for(key, (1, 1))
    assert found.status == "ok"
    assert len(notes) > 2  # its check and its timings had sessions of their own
    assert all(note.startswith(f"measuring on 127.0.0.1:{servers[0].port} ") for note in notes), notes


@pytest.mark.slow
def test_the_command_line_measures_behind_a_tracker(
    place: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where its only device is lost, what was measured until then is kept."""
    key = replace(place, key="verb")
    flags = ("--rpc-tracker", f"{key.host}:{key.port}", "--rpc-key", key.key, "--threads", "1", "--json")

    def tune(records: Path, trials: int) -> Result:
        asked = ("mb1_ic16ih7_oc16oh7_kh3ph1", "--records", str(records), "--trials", str(trials))
        return CliRunner().invoke(command, [*asked, *flags], standalone_mode=False)

    with devices(tmp_path, key, 1) as servers:
        whole = tune(tmp_path / "whole", 2)
        wait_for(key, (1, 1))
        monkeypatch.setattr(fleet, "WAIT", 1.0)
        killed_before_timing(servers, monkeypatch, spared=2)
        cut = tune(tmp_path / "cut", 4)
    assert whole.exception is None and json.loads(whole.stdout)["trials"] == 2
    assert f"measuring on 127.0.0.1:{servers[0].port} " in whole.stderr
    assert isinstance(cut.exception, NoDeviceError) and str(tmp_path / "cut") in str(cut.exception)
    for folder, least in (("whole", 2), ("cut", 1)):
        (journal,) = journals(tmp_path / folder)
        records = read(journal).records
        assert len(records) >= least and {(r.status, r.device) for r in records} == {("ok", cpu_name()[:100])}


def test_a_tracker_needs_an_address_and_a_key() -> None:
    assert Tracker.parse("[::1]:9190", "zen3") == Tracker("::1", 9190, "zen3")
    for address in ("host", "host:0", "host:99999", ":1", "host:x"):
        with pytest.raises(UsageError, match="is no tracker"):
            Tracker.parse(address, "zen3")
    for pair in ((None, "zen3"), ("host:1", None)):
        with pytest.raises(UsageError, match="needs both"):
            Tracker.parse(*pair)
    with pytest.raises(UsageError, match="is no key"):
        Tracker.parse("host:1", "two words")


def test_where_nobody_answers_there_is_no_device(target: Target) -> None:
    with pytest.raises(NoDeviceError, match=r"cannot be asked: .*refused; start one with"):
        Fleet(Tracker("127.0.0.1", 1, "k"), target)
    assert NoDeviceError.exit_code == 10


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ModuleNotFoundError("No module named 'cloudpickle'", name="cloudpickle")

    device = object.__new__(RemoteDevice)
    child = type("Answers", (), {"ask": lambda self, handler, *args, seconds: answering(absent)()})()
    monkeypatch.setattr(device, "_child", child, raising=False)
    with pytest.raises(MissingDependencyError, match=r"'cloudpickle' is missing; run `pip install 'convc\[rpc\]'`"):
        device.ping()
