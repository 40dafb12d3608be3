"""The file form of artifacts: a zip of one canonical shape, so that whatever differs from it is damage.

Entries are stored, their data 64-byte aligned (to be mapped), dates and order fixed. Every zip tool reads it; the
reader here takes only files that are, byte for byte, what `pack` writes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from convc.errors import BadArtifactError, UnsupportedError

ALIGNMENT = 64
MAX_BYTES = (1 << 32) - 2  # what a zip without extensions holds
MAX_ENTRIES = 4096
MAX_NAME = 100
LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
EXTRA = struct.Struct("<2H")
EXTRA_ID = 0xD935  # padding for alignment, as Android's zipalign marks it
VERSION = 20
DATE, TIME = (1 << 5) | 1, 0  # 1980-01-01, the first that a zip can say
MODE = 0o100644 << 16

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Entry:
    """A member: where its header and its data start, its length in bytes, its CRC-32."""

    name: bytes
    header: int
    start: int
    size: int
    crc: int

    @property
    def local(self) -> bytes:
        extra = self._extra
        head = LOCAL.pack(
            b"PK\3\4", VERSION, 0, 0, TIME, DATE, self.crc, self.size, self.size, len(self.name), len(extra)
        )
        return head + self.name + extra

    @property
    def central(self) -> bytes:
        head = CENTRAL.pack(
            b"PK\1\2", 3 << 8 | VERSION, VERSION, 0, 0, TIME, DATE, self.crc, self.size, self.size, len(self.name),
            0, 0, 0, 0, MODE, self.header,
        )
        return head + self.name

    @property
    def _extra(self) -> bytes:
        padding = self.start - self.header - LOCAL.size - len(self.name) - EXTRA.size
        return EXTRA.pack(EXTRA_ID, padding) + bytes(padding)


def pack(entries: Mapping[str, Bytes]) -> bytes:
    """The zip with these entries, in this order. Raises UnsupportedError above 4 GiB."""
    return b"".join(parts(entries))


def parts(entries: Mapping[str, Bytes]) -> list[Bytes]:
    """What `pack` puts together, for who writes it without needing it in one piece."""
    rows = _place([(name.encode("ascii"), len(data), zlib.crc32(data)) for name, data in entries.items()])
    end = rows[-1].start + rows[-1].size if rows else 0
    if end > MAX_BYTES or len(rows) > MAX_ENTRIES:
        raise UnsupportedError(f"{len(rows)} entries of {end} bytes: an artifact holds {MAX_ENTRIES} entries, 4 GiB")
    found: list[Bytes] = []
    for row, data in zip(rows, entries.values(), strict=True):
        found += [row.local, data]
    return [*found, _tail(rows, end)]


def unpack(data: Bytes, path: str) -> dict[str, memoryview]:
    """The entries of a zip made by `pack`, without a copy. Raises BadArtifactError for any other bytes.

    Of the contents only the first is checked, by its CRC; it is there to say what the others must be.
    """
    view = memoryview(data)
    if len(view) < END.size or len(view) > MAX_BYTES + (MAX_ENTRIES << 10):
        raise BadArtifactError(f"'{path}' is no artifact: {len(view)} bytes")
    rows = _place(_directory(view, path))
    end = rows[-1].start + rows[-1].size if rows else 0
    if view[end:] != _tail(rows, end):
        raise BadArtifactError(f"'{path}' is damaged: its directory does not fit its contents; build it again")
    for row in rows:
        if view[row.header : row.start] != row.local:
            raise BadArtifactError(f"'{path}' is damaged before the data of '{_text(row.name)}'; build it again")
    for row in rows[:1]:
        if zlib.crc32(view[row.start : row.start + row.size]) != row.crc:
            raise BadArtifactError(f"'{path}' is damaged in '{_text(row.name)}'; build it again")
    return {row.name.decode("ascii"): view[row.start : row.start + row.size] for row in rows}


def _directory(view: memoryview, path: str) -> list[tuple[bytes, int, int]]:
    """(name, size, crc) of each entry, as the directory at the file's end has them."""
    signature, _, _, _, count, length, at, _ = END.unpack(view[-END.size :])
    if signature != b"PK\5\6" or count > MAX_ENTRIES or at + length + END.size != len(view):
        raise BadArtifactError(f"'{path}' is no artifact, or cut short: it does not end as one")
    found: dict[bytes, tuple[bytes, int, int]] = {}
    for _ in range(count):
        if at + CENTRAL.size > len(view):
            raise BadArtifactError(f"'{path}' is damaged: its directory is cut short; build it again")
        fields = CENTRAL.unpack(view[at : at + CENTRAL.size])
        crc, size, name_length = fields[7], fields[8], fields[10]
        at += CENTRAL.size
        name = bytes(view[at : at + name_length])
        at += name_length
        if name in found or not name.isascii() or not 0 < len(name) <= MAX_NAME:
            raise BadArtifactError(f"'{path}' is damaged: the entry name {_text(name)!r} cannot be; build it again")
        found[name] = (name, size, crc)
    return list(found.values())


def _place(contents: list[tuple[bytes, int, int]]) -> list[Entry]:
    rows: list[Entry] = []
    at = 0
    for name, size, crc in contents:
        least = at + LOCAL.size + len(name) + EXTRA.size
        start = -(-least // ALIGNMENT) * ALIGNMENT
        rows.append(Entry(name, at, start, size, crc))
        at = start + size
    return rows


def _tail(rows: list[Entry], start: int) -> bytes:
    directory = b"".join(row.central for row in rows)
    return directory + END.pack(b"PK\5\6", 0, 0, len(rows), len(rows), len(directory), start, 0)


def _text(name: bytes) -> str:
    return name[:MAX_NAME].decode("ascii", "backslashreplace")
