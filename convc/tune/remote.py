"""One device behind TVM's RPC tracker: code is compiled and linked here and measured there.

A device needs TVM with its small runtime, and cloudpickle; the tracker needs tornado as well; neither needs convc:

    python -m tvm.exec.rpc_tracker --host HOST --port 9190
    TVM_USE_RUNTIME_LIB=1 taskset -c 3 python -m tvm.exec.rpc_server --tracker HOST:9190 --key KEY

Candidates die, or run for ever, in processes of their own on the device (packed.c), which is an answer like any other:
whatever ends a session is the device, or the way to it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from convc.errors import MissingDependencyError, TargetMismatchError, UsageError
from convc.ir import Array
from convc.target import Target
from convc.tune.child import Child, Ended, Failed, ended_by
from convc.tune.client import handlers
from convc.tune.device import ROTATE, SECONDS, VERDICTS, Timed
from convc.tune.tracker import Place
from convc.tune.workload import Data

SESSION = 900.0  # seconds that a session lasts at most: who shares the devices gets a turn, and whoever vanishes ends
RENEW = 120.0  # of them, with how many left it is given back and asked for anew: the longest call takes less
SLACK = 20.0  # seconds beyond the device's own deadline after which it is taken for lost
BYTES_PER_SECOND = 1 << 20  # the slowest way to a device that is waited for
HELD = 256 << 20  # bytes of arrays that are kept on a device
LATE, NO_PROCESS, EXITED = -1, -2, 256  # packed.c


class Lost(Exception):  # noqa: N818  as child.Ended: not an error of ours
    """There is no session any more. `status` is what a candidate would get that is to blame for it."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class RemoteDevice:
    """One session with the device at `place`: the processor's name; the calls of a `Device`, which raise Lost as well.

    `probe` is a library without candidates. Raises Lost where there is no session, TargetMismatchError where the device
    does not run the target's code, UsageError where it has fewer processors than the target has threads.
    """

    def __init__(self, place: Place, target: Target, probe: bytes) -> None:
        self.place = place
        self._child = Child(handlers)
        self._held: OrderedDict[str, int] = OrderedDict()
        self._named: tuple[Data | None, list[str]] = (None, [])
        self._library = b""
        self._until = time.monotonic() + SESSION - RENEW
        try:
            self._ask("open", place.host, place.port, place.match, SESSION, seconds=SECONDS)
            self.name = self._examined(target, probe)
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return f"{self.place} ({self.name})"

    @property
    def is_due(self) -> bool:
        """Whether the session is about to end of itself."""
        return time.monotonic() > self._until

    def load(self, library: bytes) -> None:
        """Make it current, unless it is. Raises Ended where the device refuses it."""
        if library == self._library:
            return
        try:
            self._ask("load", library, seconds=SECONDS + len(library) / BYTES_PER_SECOND)
        except Failed as error:
            raise Ended("build", f"{self} does not load it: {error}") from error
        self._library = library

    def ping(self) -> None:
        """Raise Lost unless the device answers."""
        self._ask("machine", seconds=SECONDS)

    def check(self, index: int, data: Data, *, threads: int) -> tuple[int, float]:
        names = self._sent(data)
        numbers = _numbers(self._ask("check", index, threads, SECONDS, names, seconds=SECONDS), SECONDS)
        return int(numbers[0]), numbers[1]

    def time(self, indices: Sequence[int], data: Data, *, threads: int, seconds: float) -> list[Timed]:
        names, deadline = self._sent(data), SECONDS + seconds
        answer = self._ask("time", list(indices), threads, deadline, ROTATE, seconds, names, seconds=deadline)
        verdict, *numbers = _numbers(answer, deadline)
        if verdict:
            raise Failed(VERDICTS[int(verdict)])
        rows = [numbers[4 * i : 4 * i + 4] for i in range(len(indices))]
        alone = len(rows) == 1
        return [Timed(us, spread, warm if alone else None, int(rounds)) for us, spread, warm, rounds in rows]

    def leave(self) -> None:
        """End the session, so that the device is free at once."""
        if not self._child.is_fresh:
            with suppress(Ended, Failed):
                self._child.ask("leave", seconds=SLACK)
        self.close()

    def close(self) -> None:
        self._child.close()

    def _examined(self, target: Target, probe: bytes) -> str:
        """The name of its processor, as records have it: up to 100 characters of ASCII."""
        from convc.report.machine import name_in
        from convc.runtime.features import required_features
        from convc.target import features_in

        try:
            self.load(probe)
        except Ended as error:
            raise TargetMismatchError(f"{self.place} runs no code for {target.label}: {error.reason}") from error
        processors, cpuinfo = self._ask("machine", seconds=SECONDS)
        found = features_in(cpuinfo)
        if found and (missing := [f for f in required_features(target) if f not in found]):
            raise TargetMismatchError(
                f"{self.place} is a {name_in(cpuinfo)} without {' '.join(missing)}, which code for {target.label} needs"
            )
        if processors < target.threads:
            raise UsageError(f"{self.place} has {processors} processors for {target.threads} threads; see --threads")
        return re.sub(r"[^ -~]", "?", name_in(cpuinfo))[:100]

    def _sent(self, data: Data) -> list[str]:
        """The names of its arrays on the device, sent where they are not there yet; the longest unused go first."""
        arrays = (data.expected, data.tolerance, *data.reads)
        if self._named[0] is not data:
            self._named = data, [_name(array) for array in arrays]
        names = self._named[1]
        for name, array in zip(names, arrays, strict=True):
            if name in self._held:
                self._held.move_to_end(name)
                continue
            while self._held and sum(self._held.values()) + array.nbytes > HELD:
                oldest = next((held for held in self._held if held not in names), None)
                if oldest is None:
                    break
                self._ask("drop", oldest, seconds=SECONDS)
                del self._held[oldest]
            self._ask("send", name, array, seconds=SECONDS + array.nbytes / BYTES_PER_SECOND)
            self._held[name] = array.nbytes
        return names

    def _ask(self, handler: str, *args: Any, seconds: float) -> Any:
        """Raises Failed where the device answers with an error, Lost where it does not answer."""
        try:
            kind, found = self._child.ask(handler, *args, seconds=seconds + SLACK)
        except Ended as error:  # our own process: it waited for too long, or its client died
            raise Lost(error.status, error.reason) from error
        except Failed as error:
            raise Lost("crash", str(error)) from error
        if kind == "missing":
            raise MissingDependencyError(f"the Python package '{found}' is missing; run `pip install 'convc[rpc]'`")
        if kind == "lost":
            self.close()
            raise Lost("crash", found)
        if kind == "refused":
            raise Failed(found)
        return found


def _numbers(answer: tuple[int, list[float]], deadline: float) -> list[float]:
    """What the process of a call has answered, else Ended with how it ended."""
    ended, numbers = answer
    if ended == 0:
        return numbers
    if ended == LATE:
        raise Ended("timeout", f"no answer within {deadline:.3g} s")
    if ended == NO_PROCESS:
        raise Ended("memory", "the device has no room for another process")
    if ended < 0:
        raise Failed(VERDICTS[-1])
    raise ended_by(ended) if ended < EXITED else Ended("crash", f"ended with code {ended - EXITED}")


def _name(array: Array) -> str:
    return f"{array.dtype.str} {hashlib.blake2b(array.reshape(-1).data, digest_size=16).hexdigest()}"
