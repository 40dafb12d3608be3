"""TVM's tracker and servers as child processes on this machine: what stands for devices in tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from convc.tune.tracker import NoDeviceError, Tracker

SECONDS = 120  # to start, on a machine that has other things to do


@dataclass(frozen=True)
class Server:
    """A process group: the server, what it serves a session with, and what that runs."""

    process: subprocess.Popen[bytes]
    port: int

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def tracker(folder: Path, key: str) -> Iterator[Tracker]:
    port = _free_port()
    server = _start(folder, "rpc_tracker", port)
    found = Tracker("127.0.0.1", port, key)
    try:
        wait_for(found, (0, 0), server)
        yield found
    finally:
        server.kill()


@contextmanager
def devices(folder: Path, tracker: Tracker, count: int) -> Iterator[list[Server]]:
    """`count` servers under the tracker's key, with TVM's small runtime only."""
    at = f"{tracker.host}:{tracker.port}"
    found = [_start(folder, "rpc_server", _free_port(), "--tracker", at, "--key", tracker.key) for _ in range(count)]
    try:
        wait_for(tracker, (count, count), *found)
        yield found
    finally:
        for server in found:
            server.kill()


def wait_for(tracker: Tracker, count: tuple[int, int], *servers: Server) -> None:
    """Until it has so many devices, and so many of them free; `servers` must not end meanwhile."""
    end = time.monotonic() + SECONDS
    found: object = None
    while found != count:
        with suppress(NoDeviceError):  # it does not answer yet
            found = tracker.count()
        assert all(server.process.poll() is None for server in servers), "a server ended at once; see its log"
        assert time.monotonic() < end, f"{found} devices instead of {count}"
        time.sleep(0.05)


def _start(folder: Path, module: str, port: int, *args: str) -> Server:
    place = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    with (folder / f"{module}-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tvm.exec.{module}", *place, *args],
            env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    return Server(process, port)


def _free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])
