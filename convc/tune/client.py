"""TVM's client of a device, in a process of its own: its calls block in C++, where only the end of a process ends them.

Each handler returns one of ("fine", result); ("refused", why), the device answered with an error, and the session goes
on; ("lost", why), there is no session any more; ("missing", package). Devices need TVM's small runtime only, and so
does this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convc.ir import Array

ANSWERED = "Error caught from RPC call"  # TVM's words for an error of the device
EXPIRED = "RPCSessionTimeoutError"  # and for its last one
NUMBERS = 1 + 4 * 16  # what packed.c answers at most: a verdict and four numbers of each racer
CPUINFO_BYTES = 64 << 10

Answer = tuple[str, Any]


class Client:
    """One session: `open` it, then load a library, send arrays, and call the library's functions with these."""

    def __init__(self) -> None:
        self._session: Any = None
        self._module: Any = None
        self._file = 0
        self._arrays: dict[str, Any] = {}
        self._numbers: Any = None

    def open(self, host: str, port: int, match: str, seconds: float) -> None:
        """The device ends the session of itself after `seconds`."""
        import numpy as np
        from tvm import rpc

        self._session = rpc.connect(host, port, match, session_timeout=seconds)
        self._numbers = self._sent(np.zeros(NUMBERS))

    def load(self, library: bytes) -> None:
        """Under a new name, as a device maps a file of one name once."""
        self._module = None
        if self._file:
            self._session.remove(f"trial{self._file}.so")
        self._file += 1
        self._session.upload(bytearray(library), f"trial{self._file}.so")
        self._module = self._session.load_module(f"trial{self._file}.so")

    def machine(self) -> tuple[int, str]:
        """How many processors the session may use, and the text of /proc/cpuinfo."""
        import numpy as np

        text = self._sent(np.zeros(CPUINFO_BYTES, np.uint8))
        count = int(self._module["convc_processors"](text))
        return count, text.numpy().tobytes().partition(b"\0")[0].decode("ascii", "replace")

    def send(self, name: str, array: Array) -> None:
        self._arrays[name] = self._sent(array.reshape(-1))

    def drop(self, name: str) -> None:
        del self._arrays[name]

    def check(self, index: int, threads: int, deadline: float, names: Sequence[str]) -> tuple[int, list[float]]:
        """How it ended (packed.c), and a verdict with the largest difference."""
        arrays = [self._arrays[name] for name in names]
        ended = self._module["convc_check"](index, threads, deadline, self._numbers, *arrays)
        return int(ended), self._numbers.numpy().tolist()

    def time(
        self, indices: Sequence[int], threads: int, deadline: float, rotate: int, seconds: float, names: Sequence[str]
    ) -> tuple[int, list[float]]:
        """How it ended, and a verdict with four numbers of each candidate."""
        import numpy as np

        numbers, arrays = self._sent(np.array(indices, np.int32)), [self._arrays[name] for name in names]
        ended = self._module["convc_time"](numbers, threads, deadline, self._numbers, rotate, seconds, *arrays)
        return int(ended), self._numbers.numpy().tolist()

    def leave(self) -> None:
        """Say goodbye, so that the device is free at once."""
        self._arrays.clear()
        self._numbers = self._module = self._session = None

    def _sent(self, array: Array) -> Any:
        import tvm

        return tvm.runtime.tensor(array, self._session.cpu())


def handlers() -> Mapping[str, Callable[..., Answer]]:
    """Of the process that talks to one device."""
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"  # the compiler's library takes a second and 250 MB more
    client = Client()
    names = ("open", "load", "machine", "send", "drop", "check", "time", "leave")
    return {name: answering(getattr(client, name)) for name in names}


def answering(function: Callable[..., Any]) -> Callable[..., Answer]:
    """`function`, with what it raises as an answer."""

    def call(*args: Any) -> Answer:
        try:
            return "fine", function(*args)
        except ModuleNotFoundError as error:
            return "missing", str(error.name)
        except Exception as error:  # whatever TVM raises: it has no class for a session that is gone
            text = str(error)
            kind = "refused" if ANSWERED in text and EXPIRED not in text else "lost"
            return kind, f"{type(error).__name__}: {text[-500:]}"

    return call
