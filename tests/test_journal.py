"""Does a journal keep every record that it acknowledged, and nothing else, whatever happens to the writer and disk?"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from record_cases import record, refused, writers
from record_writers import MOST, WRITERS, batches, trial

from convc.errors import BadInputError, UsageError
from convc.tune import journal
from convc.tune.journal import LISTED, MAX_BATCH, BadLine, Journal, NotWrittenError, journals, read
from convc.tune.record import MAX_LINE, Record


def test_gives_back_what_was_appended_in_order(tmp_path: Path) -> None:
    night = Journal(tmp_path / "new" / "records", "night")
    night.append([record(us=1.0), refused("crash")])
    night.append([])
    night.append([record(us=1.0)])
    assert read(night.path) == journal.Reading((record(us=1.0), refused("crash"), record(us=1.0)))
    assert night.path.read_text().count("\n") == 3
    assert journals(tmp_path / "new" / "records") == [night.path] and journals(tmp_path) == []


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../a", "a\n", "x" * 101])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no name of a journal"):
        Journal(tmp_path, name)


def test_a_batch_is_one_write_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    true_write, true_sync, synced = os.write, os.fsync, []

    def write(handle: int, data: bytes) -> int:
        writes.append(len(data))
        return true_write(handle, data)

    def sync(handle: int) -> None:
        synced.append(len(writes))
        true_sync(handle)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", sync)
    many = [trial(0, i) for i in range(500)]
    Journal(tmp_path, "few").append(many[:20])
    assert len(writes) == 1 and synced[-1] == 1
    Journal(tmp_path, "many").append(many)
    assert max(writes) <= MAX_BATCH and min(writes[1:-1]) > MAX_BATCH - 1024
    assert set(range(1, len(writes) + 1)) <= set(synced), "each write is made durable before the next"
    assert read(Journal(tmp_path, "many").path).records == tuple(many)


def test_a_line_torn_at_any_byte_costs_only_itself(tmp_path: Path) -> None:
    night = Journal(tmp_path, "night")
    first, last, new = record(us=1.0), record(us=2.0), record(us=3.0)
    night.append([first, last])
    data = night.path.read_bytes()
    start = data.index(b"\n") + 1
    for length in range(start, len(data) + 1):
        night.path.write_bytes(data[:length])
        whole = length >= len(data) - 1  # the crc is there, so that only the line's end can be missing
        torn = 0 if whole or length == start else 1
        kept = (first, last) if whole else (first,)
        found = read(night.path)
        assert (found.records, found.skipped) == (kept, torn)
        night.append([new])
        found = read(night.path)
        assert (found.records, found.skipped) == ((*kept, new), torn)
        assert [line.number for line in found.bad] == [2] * torn


def test_foreign_lines_are_told_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    good = [record(us=float(i)).line.encode() for i in range(1, 5)]
    foreign = [b'{"i":[["cuda"]],"v":0.6}', b"<<<<<<< ours", b"\xff\xfe\x00", good[0].replace(b"direct", b"Direct")]
    long = [b"x" * n for n in (MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE + 2, 2 * MAX_LINE + 3)]
    path.write_bytes(b"\n".join([good[0], *foreign, good[1], b"", b"", *long, good[2], b"[" * 30_000, good[3]]))
    found = read(path)
    assert found.records == tuple(record(us=float(i)) for i in range(1, 5))
    assert found.skipped == 10 and [line.number for line in found.bad] == [2, 3, 4, 5, 9, 10, 11, 12, 13, 15]
    assert found.bad[0] == BadLine(str(path), 2, "does not end in a crc, so it is torn or something else")
    assert "longer than" in found.bad[6].reason and "longer than" not in found.bad[5].reason


def test_bytes_of_any_kind_are_read_past(tmp_path: Path) -> None:
    path, random = tmp_path / "noise.jsonl", Random(0)
    good = record()
    for _ in range(200):
        noise = [random.randbytes(random.randrange(300)).replace(b"\n", b"\0") for _ in range(5)]
        path.write_bytes(b"\n".join([*noise, good.line.encode(), *noise]))
        found = read(path)
        assert found.records == (good,) and found.skipped == 2 * sum(1 for line in noise if line)


def test_bad_lines_are_counted_beyond_those_listed(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("no record\n" * (LISTED + 50))
    found = read(path)
    assert (found.records, found.skipped, len(found.bad)) == ((), LISTED + 50, LISTED)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.jsonl", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(BadInputError, match=words):
            read(path)


@pytest.mark.parametrize("seed", range(4))
def test_killed_writers_lose_nothing_acknowledged(seed: int, tmp_path: Path) -> None:
    acknowledged = writers("kill", tmp_path, seed, 250)
    found = read(Journal(tmp_path, "night").path)
    survivors: dict[int, list[Record]] = {}
    for each in found.records:
        survivors.setdefault(each.config["writer"], []).append(each)
    for writer, count in enumerate(acknowledged):
        safe, in_flight = [], batches(writer, most=MOST)
        for batch in islice(in_flight, count):
            safe += batch
        kept = survivors.pop(writer, [])
        assert kept[: len(safe)] == safe, f"writer {writer} lost what was acknowledged"
        rest = kept[len(safe) :]  # was written and not acknowledged any more
        assert rest == next(in_flight)[: len(rest)], f"writer {writer} left what it was not given"
    assert not survivors and found.skipped <= len(acknowledged)


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    count = 500
    writers("race", tmp_path, count)
    found = read(Journal(tmp_path, "race").path)
    assert found.skipped == 0 and len(found.records) == WRITERS * count
    for writer in range(WRITERS):
        own = [each for each in found.records if each.config["writer"] == writer]
        assert own == [trial(writer, i) for i in range(count)]


def test_a_file_size_limit(tmp_path: Path) -> None:
    limit = 100_000
    found = writers("full", tmp_path, limit)
    kept = read(Journal(tmp_path, "full").path)
    assert kept.skipped == 0 and len(kept.records) == found["done"]["journal"] > 0
    assert limit - 60 * 1024 < found["sizes"]["full.jsonl"] <= limit
    assert "takes no more records (" in found["said"]["journal"]
    logged = read(tmp_path / "cpu-znver3.jsonl")
    assert logged.skipped == 0 and len(logged.records) == found["done"]["log"] > 0
    assert "file too large); they hold what they held" in found["said"]["log"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".cpu")] == [], "no litter"


def test_a_full_device(tmp_path: Path) -> None:
    night = Journal(tmp_path, "night")
    night.path.parent.mkdir()
    night.path.symlink_to("/dev/full")
    with pytest.raises(NotWrittenError, match="no space left on device.*0 of 2 new ones and all earlier ones are safe"):
        night.append([record(), record()])


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(argv, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path, "256k"):
        night, given = Journal(tmp_path, "night"), batches(0, most=100)
        kept: list[Record] = []
        with pytest.raises(NotWrittenError) as caught:
            for batch in given:
                night.append(batch)
                kept += batch
        assert "no space left on device" in str(caught.value) or "no room for" in str(caught.value)
        kept += batch[: caught.value.safe]
        found = read(night.path)
        assert found.records == tuple(kept) and found.skipped == 0 and len(kept) > 300
        (tmp_path / "journal" / "more").touch()  # still possible: what failed was undone
        night.append([record()])
        assert read(night.path).records == (*kept, record())


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("fault", ["short write", "no write", "not durable"])
def test_what_fails_is_undone(fault: str, cuts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file cannot be cut back (`cuts` is False), so that a torn line is left."""
    night, first = Journal(tmp_path, "night"), [trial(0, i) for i in range(100)]
    night.append(first)
    size = night.path.stat().st_size
    with monkeypatch.context() as patch:
        _break(patch, fault, cuts=cuts)
        with pytest.raises(NotWrittenError, match="all earlier ones are safe") as caught:
            night.append([trial(1, i) for i in range(10)])
    assert caught.value.safe == 0 and caught.value.exit_code == 3
    if cuts:
        assert night.path.stat().st_size == size
    night.append([record()])
    found = read(night.path).records
    assert found[:100] == tuple(first) and found[-1] == record()
    assert set(found[100:-1]) <= (set() if cuts else {trial(1, i) for i in range(10)})


def _break(patch: pytest.MonkeyPatch, fault: str, *, cuts: bool) -> None:
    true_write = os.write

    def fail(*_: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    if fault == "short write":
        patch.setattr(os, "write", lambda handle, data: true_write(handle, data[: len(data) // 2]))
    else:
        patch.setattr(os, "write" if fault == "no write" else "fsync", fail)
    if not cuts:
        patch.setattr(os, "ftruncate", fail)


def test_batches_before_the_failing_one_are_told_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    night, true_write, sizes = Journal(tmp_path, "night"), os.write, []

    def write(handle: int, data: bytes) -> int:
        sizes.append(len(data))
        if len(sizes) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true_write(handle, data)

    given: Sequence[Record] = [trial(0, i) for i in range(800)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(NotWrittenError) as caught:
            night.append(given)
    assert 0 < caught.value.safe < 800
    assert read(night.path).records == tuple(given[: caught.value.safe])
