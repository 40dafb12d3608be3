"""TVM's RPC tracker: how many devices are registered under a key, and one of them for a session.

Its messages are a length and JSON, so this needs nothing of TVM. The protocol knows neither passwords nor encryption,
and whoever is given a device may run code on it: use it within a trusted network.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from convc.errors import ConvcError, UsageError

MAGIC = 0x2F271
REQUEST, SUMMARY, SUCCESS = 4, 6, 0
MAX_MESSAGE = 1 << 20  # bytes, as TVM's own limit
SECONDS = 10.0  # for what the tracker knows at once
PRIORITY = 1  # TVM's default

_KEY = re.compile(r"[!-~]{1,100}")


class NoDeviceError(ConvcError):
    """There is no device to measure on: no tracker, none registered, all taken, or all lost."""

    exit_code = 10  # as where tuning ends without a result


@dataclass(frozen=True)
class Place:
    """Where a device listens for the one session that knows `match`."""

    host: str
    port: int
    match: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Tracker:
    """The devices under `key` of the tracker at host:port."""

    host: str
    port: int
    key: str

    def __str__(self) -> str:
        return f"the tracker at {self.host}:{self.port}"

    @classmethod
    def parse(cls, address: str | None, key: str | None) -> Tracker:
        """HOST:PORT, [IPV6]:PORT. Raises UsageError for other text, or where one of the two is missing."""
        if not address or not key:
            raise UsageError("a device behind a tracker needs both --rpc-tracker HOST:PORT and --rpc-key KEY")
        host, _, port = address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise UsageError(f"'{address}' is no tracker, as 10.0.0.1:9190 is")
        if not _KEY.fullmatch(key):
            raise UsageError(f"{key[:120]!a} is no key of a tracker: up to 100 characters of ASCII, no spaces")
        return cls(host.removeprefix("[").removesuffix("]"), int(port), key)

    def count(self) -> tuple[int, int]:
        """How many devices are registered, and how many of them are free. Raises NoDeviceError."""
        with self._line(SECONDS) as line:
            summary = self._asked(line, [SUMMARY])
        try:
            registered = sum(server.get("key") == f"server:{self.key}" for server in summary["server_info"])
            return registered, int(summary["queue_info"].get(self.key, {}).get("free", 0))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._stranger() from error

    def request(self, wait: float) -> Place:
        """A device for one session, within `wait` seconds. Raises NoDeviceError."""
        with self._line(SECONDS) as line:
            line.settimeout(wait)
            try:
                host, port, match = self._asked(line, [REQUEST, self.key, "", PRIORITY])
                return Place(str(host), int(port), str(match))
            except TimeoutError as error:
                raise NoDeviceError(f"{self} had no device free under '{self.key}' for {wait:.3g} s") from error
            except (TypeError, ValueError) as error:
                raise self._stranger() from error

    @contextmanager
    def _line(self, seconds: float) -> Iterator[socket.socket]:
        try:
            with socket.create_connection((self.host, self.port), timeout=seconds) as line:
                line.sendall(struct.pack("<i", MAGIC))
                if struct.unpack("<i", _read(line, 4)) != (MAGIC,):
                    raise self._stranger()
                yield line
        except OSError as error:
            why = (error.strerror or str(error) or type(error).__name__).lower()
            raise NoDeviceError(
                f"{self} cannot be asked: {why}; start one with `python -m tvm.exec.rpc_tracker --host "
                f"{self.host} --port {self.port}`"
            ) from error

    def _asked(self, line: socket.socket, question: list[Any]) -> Any:
        text = json.dumps(question).encode()
        line.sendall(struct.pack("<i", len(text)) + text)
        (length,) = struct.unpack("<i", _read(line, 4))
        if not 0 < length <= MAX_MESSAGE:
            raise self._stranger()
        try:
            code, found = json.loads(_read(line, length))
        except (ValueError, TypeError, RecursionError) as error:
            raise self._stranger() from error
        if code != SUCCESS:
            raise self._stranger()
        return found

    def _stranger(self) -> NoDeviceError:
        return NoDeviceError(f"what answers at {self.host}:{self.port} is no tracker of TVM")


def _read(line: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = line.recv(count - len(found))
        if not part:
            raise ConnectionResetError("it hung up")
        found += part
    return found
