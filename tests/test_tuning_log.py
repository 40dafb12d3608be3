"""Does the right record stand in a log, whoever writes and whatever the file held?"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cli_calls import complaint, document, isolate, told
from record_cases import DIRECT, forged, record, refused, writers
from record_writers import KEYS, WRITERS, trial

from convc.problem import Problem
from convc.runtime import artifact
from convc.tune.journal import Journal, NotWrittenError, Reading, read
from convc.tune.log import (
    Conflict,
    best,
    conflicts,
    default_folder,
    load,
    log_name,
    merge,
    prune,
    shipped_folder,
    usable,
)
from convc.tune.record import Record, RecordError

OLD = "0" * 12  # a schedule that no algorithm has
LOG = "cpu-znver3.jsonl"


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


def of(rows: int, us: float, **changes: Any) -> Record:
    """A record of another problem for each `rows`."""
    return record(problem=str(Problem.parse(f"ic8ih{rows}iw9oc8kh3ph1")), us=us, **changes)


def config(number: int) -> dict[str, int]:
    return {"xb": 8, "yb": 8, "n": number}


def standing(folder: Path) -> tuple[Record, ...]:
    found = load(folder, "cpu/znver3")
    assert found.skipped == 0
    return found.records


def test_the_best() -> None:
    small, large = of(1, 2.0, workspace=0, config=config(9)), of(1, 2.0, workspace=8, config=config(1))
    text = [of(2, 1.0, config=config(n)) for n in (2, 1)]
    slow, wrong = of(1, 3.0), refused()
    given = [slow, large, small, wrong, *text, of(3, 1.0), of(3, 1.0, device="Z")]
    for seed in range(20):
        Random(seed).shuffle(given)
        found = best(given)
        assert list(found.values()) == [small, text[1], of(3, 1.0)]
        assert list(found) == sorted(found) and all(key == each.key for key, each in found.items())
    assert best([wrong]) == {}


def test_a_stale_record_competes_with_none_that_is_not(tmp_path: Path) -> None:
    fast, slow, alone = of(1, 1.0, schedule=OLD), of(1, 2.0), of(2, 1.0, schedule=OLD)
    assert usable([fast, slow, alone, of(3, 1.0, algorithm="no_such")]) == {slow.key: slow}
    for order in ([fast, slow, alone], [slow, alone, fast]):
        folder = tmp_path / order[0].schedule
        for each in order:
            merge(folder, [each])
        assert standing(folder) == (slow, alone), "kept where a key has no other"


def test_a_log_is_sorted_and_changes_only_where_it_must(tmp_path: Path) -> None:
    given = [of(rows, 5.0 + rows, threads=threads) for rows in range(1, 30) for threads in (1, 2)]
    Random(0).shuffle(given)
    found = merge(tmp_path, given[:30])
    assert sorted(found.added, key=lambda r: r.key) == sorted(given[:30], key=lambda r: r.key)
    merge(tmp_path, given[30:])
    path = tmp_path / LOG
    before = path.read_text().splitlines()
    assert before == [each.line for each in sorted(given, key=lambda r: r.key)]
    age = path.stat().st_mtime_ns, path.stat().st_ino
    assert merge(tmp_path, [*given, refused(), of(3, 99.0)]).unused == len(given) + 2
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == age, "nothing to write"
    found = merge(tmp_path, [of(7, 1.0)])
    assert [(old.us, new.us) for old, new in found.replaced] == [(12.0, 1.0)] and not found.added
    after = path.read_text().splitlines()
    assert len(after) == len(before) and sum(a != b for a, b in zip(after, before, strict=True)) == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [".lock", LOG]


def test_records_go_to_the_log_of_their_target(tmp_path: Path) -> None:
    given = [of(1, 1.0), of(1, 2.0, target="cpu/x86-64-v3"), of(1, 3.0, target="cuda/sm_90a")]
    assert len(merge(tmp_path, given).added) == 3
    for each in given:
        assert load(tmp_path, each.target) == Reading((each,))
        assert (tmp_path / log_name(each.target)).read_text() == each.line + "\n"
    assert load(tmp_path, "cpu/znver4") == load(tmp_path / "none", "cpu/znver4") == Reading()


def test_a_judgement_stands_whatever_the_times_say(tmp_path: Path) -> None:
    earlier = of(1, 10.0, config=config(1))
    merge(tmp_path, [earlier])
    judged = of(1, 11.0, config=config(2), reason="x1.08 of direct(n=1,xb=8,yb=8), interleaved")
    assert merge(tmp_path, [judged]).replaced == () and standing(tmp_path) == (earlier,)
    with pytest.raises(RecordError, match="does not say why it is better"):
        merge(tmp_path, [of(2, 1.0), replace(judged, reason="")], against=[earlier])
    assert standing(tmp_path) == (earlier,), "nothing was written"
    assert merge(tmp_path, [judged], against=[earlier]).replaced == ((earlier, judged),)
    assert standing(tmp_path) == (judged,)


@pytest.mark.parametrize(("us", "wins"), [(11.0, False), (8.0, True)])
def test_a_judgement_against_what_stands_no_more_is_none(us: float, wins: bool, tmp_path: Path) -> None:
    earlier, other = of(1, 10.0, config=config(1)), of(1, 9.0, config=config(3))
    judged = of(1, us, config=config(2), reason="x1.08")
    merge(tmp_path, [earlier])
    merge(tmp_path, [other])  # another session, in the meantime
    merge(tmp_path, [judged], against=[earlier])
    assert standing(tmp_path) == ((judged,) if wins else (other,))


def test_a_judgement_by_stale_code_is_none(tmp_path: Path) -> None:
    earlier = of(1, 10.0)
    merge(tmp_path, [earlier])
    merge(tmp_path, [of(1, 9.0, schedule=OLD, reason="x1.08")], against=[earlier])
    assert standing(tmp_path) == (earlier,)


def test_what_is_stale_needs_no_judgement(tmp_path: Path) -> None:
    earlier, new = of(1, 10.0, schedule=OLD), of(1, 11.0)
    merge(tmp_path, [earlier])
    assert merge(tmp_path, [new], against=[earlier]).replaced == ((earlier, new),)


def test_conflicts_are_of_one_config_and_beyond_three_spreads() -> None:
    calm = [of(1, us, spread=0.01, date=f"2026-11-0{day}") for day, us in enumerate((10.0, 10.1, 10.3), 1)]
    assert list(conflicts(calm)) == []
    far = of(1, 10.4, spread=0.01)
    assert list(conflicts([far, *calm])) == [Conflict(calm[0], far)]
    others = [of(1, 10.4, spread=0.04), of(1, 99.0, config=config(1)), of(2, 99.0), of(1, 99.0, schedule=OLD)]
    assert list(conflicts([*calm, *others, refused()])) == []


def test_lines_that_are_none_are_told_and_go(tmp_path: Path) -> None:
    good, stranger = of(1, 1.0), of(1, 1.0, target="cpu/znver4")
    path = tmp_path / LOG
    path.write_text(f"<<<<<<< ours\n{good.line}\n=======\n{stranger.line}\n{of(1, 2.0).line}\n>>>>>>>\n")
    found = load(tmp_path, "cpu/znver3")
    assert found.records == (good, of(1, 2.0)) and [line.number for line in found.bad] == [1, 3, 4, 6]
    assert found.bad[2].reason == "it is of cpu/znver4"
    assert [line.number for line in merge(tmp_path, [of(2, 1.0)]).bad] == [1, 3, 4, 6]
    assert standing(tmp_path) == (good, of(2, 1.0))


def test_the_edits_of_a_log_by_hand(tmp_path: Path) -> None:
    good = of(5, 3.0)
    path = tmp_path / LOG
    for old, new in (("ih5", "ih6"), ("znver3", "znver4"), (DIRECT, OLD), ('"threads":2', '"threads":1')):
        path.write_text(good.line.replace(old, new) + "\n")
        assert load(tmp_path, "cpu/znver3").records == (), "the crc tells"
        changes = {"problem": good.problem.replace(old, new), "target": good.target.replace(old, new)}
        changes["schedule"] = good.schedule.replace(old, new)
        threads = 1 if "threads" in new else 2
        path.write_text(forged(good.line, **changes, threads=threads) + "\n")
        assert good.key not in usable(load(tmp_path, "cpu/znver3").records), "its key or its hash tells"
    path.write_text(forged(good.line) + "\n")
    assert usable(load(tmp_path, "cpu/znver3").records) == {good.key: good}


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    count = 300
    writers("race_logs", tmp_path, count)
    expected = best(trial(writer, index) for writer in range(WRITERS) for index in range(count))
    assert len(expected) == KEYS and standing(tmp_path) == tuple(expected.values())


def test_a_log_survives_whatever_fails_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(tmp_path, [of(1, 1.0)])

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(artifact.os, name, fail)
            with pytest.raises(NotWrittenError, match="no space left on device.*; they hold what they held") as caught:
                merge(tmp_path, [of(2, 1.0)])
        assert caught.value.exit_code == 3
        assert standing(tmp_path) == (of(1, 1.0),)
        assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [".lock", LOG]


def test_what_is_new_has_a_durable_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file outlives a power cut only once the folder that names it was written as well."""
    synced: list[str] = []
    true_sync = os.fsync

    def sync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        true_sync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    folder = tmp_path / "new" / "logs"
    merge(folder, [of(1, 1.0)])
    assert {str(tmp_path), str(tmp_path / "new")} <= set(synced) and synced[-1] == str(folder)
    assert synced[-2].startswith(f"{folder}/.{LOG}-"), "first what it names"
    synced.clear()
    night = Journal(folder, "night")
    night.append([of(1, 1.0)])
    assert {str(folder), str(folder / "journal"), str(night.path)} == set(synced)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".{LOG}-x1y2z3").write_text("half a l")
    merge(tmp_path, [of(1, 1.0)])
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [".lock", LOG]


def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "shipped"
    merge(folder, [of(1, 1.0), of(2, 2.0)])
    (folder / ".lock").unlink()
    folder.chmod(0o555)
    tmp_path.chmod(0o755)
    try:
        found = writers("readonly", folder)
    finally:
        folder.chmod(0o755)
    assert found["read"] == [of(1, 1.0).line, of(2, 2.0).line]
    assert [said.partition(":")[0] for said in found["said"]] == ["NotWrittenError", "NotWrittenError"]
    assert all("permission denied" in said for said in found["said"])


def test_the_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("CONVC_RECORDS", raising=False)
    assert default_folder() == tmp_path / "convc" / "records"
    monkeypatch.setenv("CONVC_RECORDS", "somewhere")
    assert default_folder() == Path("somewhere")
    monkeypatch.setenv("CONVC_TUNING_LOGS", "others")
    assert shipped_folder() == Path("others")
    monkeypatch.delenv("CONVC_TUNING_LOGS")
    shipped = shipped_folder()
    assert shipped.joinpath("__init__.py").is_file()
    for log in (entry for entry in shipped.iterdir() if entry.name.endswith(".jsonl")):
        found = read(log)
        assert found.skipped == 0 and {log_name(each.target) for each in found.records} == {log.name}
        assert [each.line for each in found.records] == [each.line for each in best(found.records).values()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log with two usable, a stale, a foreign, a refused and a beaten record, and a line that is none."""
    place = tmp_path / "logs"
    place.mkdir()
    rows = [of(1, 2.0), of(2, 1.0), of(3, 1.0, schedule=OLD), of(4, 1.0, algorithm="no_such"), refused("timeout")]
    rows += [of(1, 3.0), of(5, 1.0, target="cpu/znver4")]
    (place / LOG).write_text("".join(f"{row.line}\n" for row in rows) + "{}\n")
    return place


def test_prune(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / LOG).read_bytes()
    for dry in (True, False):
        found = document(capsys, "records", "prune", folder, *(["--dry-run"] if dry else []))
        assert (found["kept"], found["lines"], found["dry_run"]) == (2, 1, dry)
        assert [row["because"] for row in found["dropped"]] == [
            f"algorithm direct was {OLD} when it was measured and is {DIRECT}",
            "algorithm no_such is not installed",
            "it is timeout",
            "another record of its key is better",
            "it is of cpu/znver4",
        ]
        if dry:
            assert (folder / LOG).read_bytes() == before and prune(folder, dry_run=True)[0].skipped == 1
            assert "would drop 5 records and 1 lines" in told(capsys, "records", "prune", folder, "--dry-run")
    assert standing(folder) == (of(1, 2.0), of(2, 1.0))
    assert "dropped 0 records and 0 lines" in told(capsys, "records", "prune", folder)
    assert "is no folder of records" in complaint(capsys, "records", "prune", folder / LOG, code=3)


def test_stats(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = document(capsys, "records", "stats", folder)
    assert (found["records"], found["usable"], found["usable_share"]) == (7, 3, 3 / 7) and found["skipped"] == 1
    rows = {(row["target"], row["algorithm"]): (row["records"], row["usable"]) for row in found["groups"]}
    assert rows == {
        ("cpu/znver3", "direct"): (5, 2), ("cpu/znver3", "no_such"): (1, 0), ("cpu/znver4", "direct"): (1, 1),
    }  # fmt: skip
    assert "7 records, 3 usable (42.9 %)" in told(capsys, "records", "stats", folder)
    monkeypatch.setenv("CONVC_RECORDS", str(folder))
    assert document(capsys, "records", "--json", "stats") == found
    monkeypatch.setenv("CONVC_RECORDS", str(folder / "none"))
    assert document(capsys, "records", "stats")["usable_share"] is None


def test_merge(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    into = tmp_path / "new" / "logs"
    merge(into, [of(2, 5.0, config=config(1))])
    Journal(folder, "night").append([of(1, 1.0), refused("crash"), of(6, 1.0)])
    found = document(capsys, "records", "merge", folder, folder / LOG, "--into", into)
    assert (found["read"], found["skipped"], found["unused"]) == (17, 2, 11)
    assert [row["problem"] for row in found["added"]] == [of(rows, 1.0).problem for rows in (1, 3, 4, 6, 5)], (
        "by target, then by problem"
    )
    assert [(row["earlier"]["us"], row["new"]["us"]) for row in found["replaced"]] == [(5.0, 1.0)]
    assert [(row["fast"]["us"], row["slow"]["us"]) for row in found["conflicts"]] == [(1.0, 3.0)]
    assert standing(into)[:2] == (of(1, 1.0), of(2, 1.0))
    text = told(capsys, "records", "merge", folder, "--into", into)
    assert "0 added, 0 replaced, 10 of 10 not used" in text and "1 conflicts, to be measured again:" in text
    assert "none.jsonl' cannot be read" in complaint(capsys, "records", "merge", "none.jsonl", "--into", into, code=3)


def test_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    merge(a, [of(1, 1.0), of(2, 2.0), of(3, 3.0), of(4, 4.0)])
    merge(b, [of(1, 1.0), of(2, 4.0), of(3, 1.5, config=config(1)), of(5, 5.0)])
    found = document(capsys, "records", "diff", a, b / LOG)
    assert (found["same"], found["only_a"], found["only_b"]) == (1, 1, 1)
    assert [(row["ratio"], row["change"]) for row in found["differences"]] == [
        (2.0, ""),
        (0.5, "direct(rw=6,v=2,xb=8,yb=8) -> direct(n=1,xb=8,yb=8)"),
        (None, "only A: direct(rw=6,v=2,xb=8,yb=8)"),
        (None, "only B: direct(rw=6,v=2,xb=8,yb=8)"),
    ]
    assert "4 of 5 differ; only A has 1, only B 1" in told(capsys, "records", "diff", a, b)
    assert "0 of 4 differ" in told(capsys, "records", "diff", a, a)


def test_lint(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "records", "lint", folder, code=3)
    assert found["records"] == 7 and found["error"]["kind"] == "bad-input"
    assert [(line["number"], line["reason"][:21]) for line in found["bad"]] == [(8, "does not end in a crc")]
    text = told(capsys, "records", "lint", folder / LOG, code=3)
    assert text.startswith(f"{folder / LOG}:8: does not end in a crc")
    many = tmp_path / "many.jsonl"
    many.write_text("\x1b[31m\n" * 500)
    assert len(told(capsys, "records", "lint", many, code=3).splitlines()) == 500, "every one"
    merge(tmp_path / "good", [of(1, 1.0)])
    assert told(capsys, "records", "lint", tmp_path / "good") == "1 lines, each a record\n"


@pytest.mark.parametrize("action", ["merge", "stats", "prune", "diff", "lint"])
def test_help_starts_with_an_example(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    usage, _, first, *rest = told(capsys, "records", action, "--help").splitlines()
    assert usage.startswith(f"Usage: convc records {action} ") and first.startswith(f"  $ convc records {action} ")
    assert any(line.startswith("  --json ") for line in rest)


def test_an_action_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "see `convc records --help`" in complaint(capsys, "records", code=2)
    assert "No such command 'tune'" in complaint(capsys, "records", "tune", code=2)
