"""Tensor data beside the model. A model names the file, so nothing but a plain file inside its own folder is opened."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convc.errors import BadInputError
from convc.frontend.names import quoted

KEYS = frozenset({"location", "offset", "length", "checksum"})
_STEP = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_external(folder: Path, entries: dict[str, str], *, size: int) -> bytes:
    """The `size` bytes that the external_data `entries` of a tensor point to, from below `folder`.

    Raises BadInputError for an absolute path, `..`, a link of any kind, anything that is not a plain file, and an
    offset and length outside the file.
    """
    offset = number(entries, "offset", default=0)
    length = number(entries, "length", default=size)
    if length != size:
        raise BadInputError(f"external data of {length} bytes, the dimensions need {size}")
    with opened(folder, steps_of(entries.get("location", ""))) as file:
        check_file(file, offset + length)
        return read_exactly(file, offset=offset, size=size)


def number(entries: dict[str, str], key: str, *, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadInputError(f"the {key} of external data is {quoted(text)}, not a count of bytes")
    return int(text)


def steps_of(location: str) -> list[str]:
    """Folders and file name on the way from the model's folder."""
    steps = location.split("/")
    if not location or "\0" in location or "\\" in location or any(s in ("", "..") for s in steps):
        raise BadInputError(f"external data at {quoted(location)}: only a path below the model's folder is read")
    return [s for s in steps if s != "."] or [""]


@contextmanager
def opened(folder: Path, steps: list[str]) -> Iterator[int]:
    """Open step by step, each relative to the one before and never through a link: no race can lead outside."""
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for i, step in enumerate(steps):
            # Without O_NONBLOCK a named pipe would block for ever.
            kind = os.O_DIRECTORY if i + 1 < len(steps) else os.O_NONBLOCK
            inner = open_step(step, kind, place)
            os.close(place)
            place = inner
        yield place
    finally:
        os.close(place)


def open_step(step: str, kind: int, place: int) -> int:
    try:
        return os.open(step, _STEP | kind, dir_fd=place)
    except OSError as error:
        raise BadInputError(
            f"external data {quoted(step)} cannot be opened ({error.strerror}): it must lie in the model's folder, "
            "as a plain file and not through a link"
        ) from error


def check_file(file: int, end: int) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise BadInputError("external data must be a plain file")
    if found.st_nlink != 1:
        raise BadInputError("external data is a hard link, which may lead outside the model's folder; copy the file")
    if end > found.st_size:
        raise BadInputError(f"external data ends at byte {end}, its file has {found.st_size}")


def read_exactly(file: int, *, offset: int, size: int) -> bytes:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = os.preadv(file, [view[done:]], offset + done)
        if count == 0:
            raise BadInputError(f"external data ended after {done} of {size} bytes")
        done += count
    return bytes(data)
