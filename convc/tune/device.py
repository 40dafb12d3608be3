"""Where candidates run: a process of this machine that loads their library, or another machine's behind these calls."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from convc.tune.child import MEMORY, Child, Ended, Failed
from convc.tune.workload import Data

VERDICTS = (
    "right", "its values are wrong", "elements of the result are not written", "it writes outside of its buffers",
    "a second run gives other bits", "two of its tasks write the same place", "it keeps temporaries",
    "it returns an error", "no memory", "the trial was asked for wrongly",
    "it computes with what holds no value: memory beyond its inputs, padding, or what nobody has written",
    "a task of it needs what another one writes", "as one task it gives other bits",
)  # fmt: skip
OUT_OF_BOUNDS, NO_MEMORY = 3, 8  # their places
MAX_READS = 16
ROTATE = 128 << 20  # bytes of weights that take turns: several times a last-level cache, as those of a large network
SECONDS = 30.0  # that one answer may take


@dataclass(frozen=True)
class Timed:
    """Median and median absolute deviation, us, with weights that come from beyond the caches; `warm`, the median with
    weights in cache, where the candidate was alone; how many rounds."""

    us: float
    spread: float
    warm: float | None
    rounds: int


class Device(Protocol):
    """The name of the processor; a library made current; then checks and timings of its candidates by number, from up
    to `width` threads at once.

    Every call raises child.Ended where the candidate took the process with it; then the library must be loaded again.
    """

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    def load(self, library: bytes) -> None: ...
    def check(self, index: int, data: Data, *, threads: int) -> tuple[int, float]: ...
    def time(self, indices: Sequence[int], data: Data, *, threads: int, seconds: float) -> list[Timed]: ...
    def close(self) -> None: ...


class LocalDevice:
    """A process on `cpus` of this machine, of at most `memory` bytes; an answer may take `seconds`."""

    width = 1  # two would disturb each other

    def __init__(self, *, cpus: tuple[int, ...] = (), seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._child = Child(handlers, cpus=cpus, memory=memory)
        self._seconds = seconds
        self._library = b""

    @property
    def name(self) -> str:
        from convc.report.machine import cpu_name

        return cpu_name()

    def load(self, library: bytes) -> None:
        self._library = library
        self._child.ask("load", library, seconds=self._seconds)

    def check(self, index: int, data: Data, *, threads: int) -> tuple[int, float]:
        """The verdict, a place in VERDICTS, and the largest difference."""
        verdict, worst = self._ask("check", index, data, threads, seconds=self._seconds)
        if verdict == OUT_OF_BOUNDS:
            self._child.close()  # who knows what else it wrote
        return int(verdict), float(worst)

    def time(self, indices: Sequence[int], data: Data, *, threads: int, seconds: float) -> list[Timed]:
        """Interleaved, for about `seconds`. Raises Failed where a result is wrong, or no longer computed."""
        verdict, found = self._ask("time", list(indices), data, threads, seconds, seconds=self._seconds + seconds)
        if verdict == NO_MEMORY:
            raise Ended("memory", f"while it was timed: {VERDICTS[verdict]}")
        if verdict:
            raise Failed(f"while it was timed: {VERDICTS[verdict]}")
        return [Timed(us, spread, warm if len(indices) == 1 else None, int(n)) for us, spread, warm, n in found]

    def close(self) -> None:
        self._child.close()

    def _ask(self, handler: str, *args: Any, seconds: float) -> Any:
        if self._child.is_fresh:
            self._child.ask("load", self._library, seconds=self._seconds)
        return self._child.ask(handler, *args, seconds=seconds)


class Request(ctypes.Structure):
    """struct request of trial.c."""

    _fields_ = (
        ("read", ctypes.c_void_p * MAX_READS), ("read_bytes", ctypes.c_uint64 * MAX_READS), ("reads", ctypes.c_int32),
        ("threads", ctypes.c_int32), ("expected", ctypes.c_void_p), ("tolerance", ctypes.c_void_p),
        ("elements", ctypes.c_uint64),
    )  # fmt: skip


def request_of(data: Data, threads: int) -> Request:
    """Points into the arrays of `data`, which must outlive it."""
    found = Request(reads=len(data.reads), threads=threads, elements=data.expected.size)
    for i, read in enumerate(data.reads):
        found.read[i], found.read_bytes[i] = read.ctypes.data, read.nbytes
    found.expected, found.tolerance = data.expected.ctypes.data, data.tolerance.ctypes.data
    return found


def handlers() -> Mapping[str, Callable[..., Any]]:
    """Of the process that runs candidates."""
    loaded: dict[str, Any] = {}

    def load(library: bytes) -> None:
        from convc.runtime.library import map_library

        if loaded:
            loaded["handle"].convc_close()
        loaded["handle"], _ = map_library(library)

    def check(index: int, data: Data, threads: int) -> tuple[int, float]:
        worst = ctypes.c_double()
        verdict = loaded["handle"].convc_check(index, ctypes.byref(request_of(data, threads)), ctypes.byref(worst))
        return verdict, worst.value

    def time(indices: list[int], data: Data, threads: int, seconds: float) -> tuple[int, list[list[float]]]:
        found = np.zeros((len(indices), 4))
        numbers = (ctypes.c_int * len(indices))(*indices)
        code = loaded["handle"].convc_time(
            numbers, len(indices), ctypes.byref(request_of(data, threads)), ctypes.c_uint64(ROTATE),
            ctypes.c_double(seconds), ctypes.c_void_p(found.ctypes.data),
        )  # fmt: skip
        return code, found.tolist()

    return {"load": load, "check": check, "time": time}
