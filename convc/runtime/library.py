"""The compiled library in this process: its functions by ctypes, each load a copy of its own."""

from __future__ import annotations

import ctypes
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convc.errors import BadArtifactError, ConvcError, UsageError
from convc.runtime.container import Bytes

STATUS = {
    1: "a kernel failed", 2: "an address is null or not a multiple of 64", 3: "the weights are not packed",
    4: "no memory for temporaries", 5: "out of range",
}
POINTER, INT, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "packed_bytes": (SIZE, ()), "workspace_bytes": (SIZE, ()), "init": (INT, (POINTER, POINTER)),
    "run": (INT, (POINTER,) * 4), "set_threads": (INT, (INT,)), "set_parallel_for": (None, (POINTER, POINTER)),
    "calls": (INT, ()), "call": (INT, (INT, *(POINTER,) * 4)), "close": (None, ()), "version": (ctypes.c_char_p, ()),
}


class Library:
    """The functions of one loaded copy of a library, unloaded with this object.

    Attributes are the ABI's functions without their prefix, as C defines them.
    """

    packed_bytes: Callable[[], int]
    workspace_bytes: Callable[[], int]
    init: Callable[[int, int], int]
    run: Callable[..., int]
    call: Callable[..., int]
    calls: Callable[[], int]
    version: Callable[[], bytes]
    set_threads: Callable[[int], int]
    set_parallel_for: Callable[..., None]

    def __init__(self, content: Bytes, prefix: str) -> None:
        handle, file = map_library(content)
        try:
            for name, (result, arguments) in SIGNATURES.items():
                function = getattr(handle, f"{prefix}_{name}")
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        except AttributeError as error:
            raise BadArtifactError(f"the library lacks a function: {error}; build the artifact again") from error
        # The threads end before the code is unmapped: joining them from within dlclose could deadlock. At the end of
        # the process nothing is unmapped, because daemon threads may still be running it.
        finalizer = weakref.finalize(self, _unload, handle, file, handle[f"{prefix}_close"])
        finalizer.atexit = False


def check(code: int, what: str) -> None:
    """Raise for a status other than 0."""
    if code == 5:
        raise UsageError(f"{what}: out of range")
    if code:
        raise ConvcError(f"{what} failed with status {code}: {STATUS.get(code, 'unknown')}")


def map_library(content: Bytes) -> tuple[ctypes.CDLL, int]:
    """The library at a path that no other has while it is loaded: the system's loader shares by path and by file."""
    try:
        file = os.memfd_create("convc", os.MFD_CLOEXEC)
    except OSError:
        return _map_from_folder(content)
    with os.fdopen(os.dup(file), "wb") as stream:
        stream.write(content)
    try:
        return _open(f"/proc/self/fd/{file}"), file
    except OSError:  # no /proc, or memory files must not be executed
        os.close(file)
        return _map_from_folder(content)


def _map_from_folder(content: Bytes) -> tuple[ctypes.CDLL, int]:
    with tempfile.TemporaryDirectory(prefix="convc-") as folder:
        path = Path(folder) / "model.so"
        path.write_bytes(content)
        try:
            return _open(str(path)), -1
        except OSError as error:
            raise ConvcError(
                f"the artifact's library cannot be loaded: {error}; if '{folder}' is mounted noexec, set TMPDIR to a "
                f"folder that is not"
            ) from error


def _open(path: str) -> ctypes.CDLL:
    return ctypes.CDLL(path, mode=os.RTLD_LOCAL | os.RTLD_NOW)


def _unload(handle: ctypes.CDLL, file: int, close: Callable[[], None]) -> None:
    import _ctypes  # noqa: PLC0415  ctypes has no public way to unload

    close()
    _ctypes.dlclose(handle._handle)
    if file >= 0:
        os.close(file)
