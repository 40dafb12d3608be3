"""The journal: every trial of a session, appended to `<records>/journal/<name>.jsonl`, one record a line.

What `Journal.append` has returned from survives the process, the machine's power and a full disk. Writers take turns by
a lock on `.<name>.lock` beside the journal; a batch is one write of at most 64 KiB, then fsync. A writer that dies in
the middle leaves a torn last line: it has no valid crc, so readers skip it, and the next append starts on a new line.
Nothing in a journal is ever rewritten.

`read` takes journals and tuning logs alike. It skips and counts whatever is no record; empty lines are no fault.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO

from convc.errors import BadInputError, ConvcError, UsageError
from convc.tune.record import MAX_LINE, Record, RecordError, parse

MAX_BATCH = 64 << 10  # bytes of one write: more would be more to lose, and to hold up the other writers with
LISTED = 100  # bad lines that a Reading names; the others it counts
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class NotWrittenError(ConvcError):
    """Records that could not be written: a full or read-only disk, a quota, no permission. `safe` of those that were
    given are durable all the same; so is all that was acknowledged before."""

    exit_code = 3  # as for every file that cannot be read or written

    def __init__(self, message: str, *, safe: int = 0) -> None:
        super().__init__(message)
        self.safe = safe


@dataclass(frozen=True)
class BadLine:
    """A line that is no record: its file, its number from 1, and why."""

    file: str
    number: int
    reason: str


@dataclass(frozen=True)
class Reading:
    """What a file holds: `skipped` counts the lines that are no record, and `bad` names the first of them."""

    records: tuple[Record, ...] = ()
    skipped: int = 0
    bad: tuple[BadLine, ...] = ()


@dataclass(frozen=True)
class Journal:
    """The journal `name` of a folder of records. Any number of processes may append to it at once."""

    folder: Path
    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"{self.name[:120]!a} is no name of a journal: up to 100 letters, digits, _ . and -")

    @property
    def path(self) -> Path:
        return self.folder / "journal" / f"{self.name}.jsonl"

    def append(self, records: Sequence[Record]) -> None:
        """Make `records` durable. Raises NotWrittenError where that fails, with the number of those that are."""
        safe = 0
        try:
            make_folder(self.path.parent)
            with locked(self.path.with_name(f".{self.name}.lock")), _opened(self.path) as handle:
                for batch in _batches(records):
                    _write(handle, "".join(f"{record.line}\n" for record in batch).encode("ascii"))
                    safe += len(batch)
        except OSError as error:
            what = f"'{self.path}' takes no more records ({(error.strerror or str(error)).lower()})"
            kept = f"{safe} of {len(records)} new ones and all earlier ones are safe"
            advice = "free space, or set CONVC_RECORDS to a folder that can be written"
            raise NotWrittenError(f"{what}; {kept}; {advice}", safe=safe) from error


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """As many records at a time as MAX_BATCH bytes hold; no record is half as long as that."""
    batch: list[Record] = []
    size = 0
    for record in records:
        length = len(record.line) + 1
        if batch and size + length > MAX_BATCH:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Opened anew for each append: a file that was moved or deleted in between must not swallow records."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.fstat(handle).st_size == 0:
            sync_folder(path.parent)  # it may be new, and a file without an entry is lost
        yield handle
    finally:
        os.close(handle)


def _write(handle: int, data: bytes) -> None:
    """Append `data` durably, or leave the file as it was where the file system lets us."""
    end = os.fstat(handle).st_size
    if end and os.pread(handle, 1, end - 1) != b"\n":
        data = b"\n" + data  # a writer died here: its torn line costs only itself
    try:
        written = os.write(handle, data)
        if written < len(data):  # the rest would get the true error, but might also succeed and tear the batch apart
            raise OSError(errno.ENOSPC, f"no room for {len(data)} bytes, only for {written}")
        os.fsync(handle)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, end)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which is made if need be and never removed: others may be waiting on it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):  # a child forked meanwhile shares the lock, so closing is not enough
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def make_folder(folder: Path) -> None:
    """As mkdir -p, durably."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Make the entries of `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def journals(folder: Path) -> list[Path]:
    """The journals in a folder of records."""
    return sorted((folder / "journal").glob("*.jsonl"))


def read(path: Traversable, *, stranger: Callable[[Record], str | None] = lambda record: None) -> Reading:
    """The records of a journal or log; `stranger` says why one does not belong there, and is skipped as a bad line is.

    Raises BadInputError where the file cannot be read, whatever it holds.
    """
    records: list[Record] = []
    bad: list[BadLine] = []
    skipped = 0
    for number, found in scan(path):
        fault = stranger(found) if isinstance(found, Record) else found
        if isinstance(found, Record) and not fault:
            records.append(found)
            continue
        skipped += 1
        if len(bad) < LISTED:
            bad.append(BadLine(str(path), number, fault or ""))
    return Reading(tuple(records), skipped, tuple(bad))


def scan(path: Traversable) -> Iterator[tuple[int, Record | str]]:
    """The number of each line, and its record or why it is none; with one line in memory at a time."""
    try:
        with path.open("rb") as file:
            for number, line in _lines(file):
                if line:
                    yield number, _parsed(line)
    except OSError as error:
        raise BadInputError(f"'{path}' cannot be read: {(error.strerror or str(error)).lower()}") from error


def _parsed(line: bytes) -> Record | str:
    try:
        return parse(line.decode("latin-1"))  # which never fails; what is not ASCII is no record
    except RecordError as error:
        return str(error).removeprefix("no record: ")


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines without their ends, and of a longer one than any record as much as shows that."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        yield number, line.removesuffix(b"\n")
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE + 1) or b"\n"
