"""What a loaded artifact holds of a GPU: handles that are given back on their own, and arrays that lie there."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from convc.errors import ConvcError
from convc.ir import Array, TensorType
from convc.runtime.dlpack import CUDA, LEGACY_STREAM, lend
from convc.runtime.driver import Driver


class Owned:
    """A handle of the driver; given back when this object goes, and with everything else when the process ends."""

    def __init__(self, value: Any, release: Callable[[Any], None]) -> None:
        self.value = value
        weakref.finalize(self, _give_back, release, value).atexit = False


def _give_back(release: Callable[[Any], None], value: Any) -> None:
    with contextlib.suppress(ConvcError):  # an error of a kernel takes all that the context held with it
        release(value)


def memory(driver: Driver, size: int) -> Owned:
    """`size` bytes on the device."""
    return Owned(driver.allocate(size), driver.free)


class Mark:
    """A place in a stream: all that was put there before."""

    def __init__(self, driver: Driver, stream: int) -> None:
        self.stream = stream
        self._driver = driver
        self._event = Owned(driver.event(), driver.drop)
        driver.record(self._event.value, stream)

    def precede(self, stream: int) -> None:
        """What is put on `stream` from now on comes after it."""
        if stream != self.stream:  # a stream keeps its own order
            self._driver.wait(stream, self._event.value)


class DeviceArray:
    """A result in the memory of a GPU, row-major. torch, CuPy and others take it by DLPack where it lies.

    A later run of the same `Bound` writes it again.
    """

    def __init__(self, driver: Driver, type_: TensorType, own: Owned) -> None:
        self.type = type_
        self.done: Mark | None = None
        """When its values are there, if the run was not waited for."""
        self._driver, self._own = driver, own
        self._memory = memory(driver, type_.bytes)

    @property
    def address(self) -> int:
        return int(self._memory.value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.type.dtype)

    def numpy(self) -> Array:
        """A copy on the host; waits for the run."""
        found = np.empty(self.shape, self.dtype)
        stream = self._own.value
        if self.done:
            self.done.precede(stream)
        self._driver.copy_out(found, self.address, stream)
        self._driver.synchronize(stream)
        return found

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._driver.ordinal

    def __dlpack__(
        self, *, stream: int | None = None, max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None, copy: bool | None = None,
    ) -> Any:  # fmt: skip
        """A capsule with the tensor, ready on `stream` (-1: whoever asks takes care of that)."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("convc lends its tensors where they lie and copies none")
        if self.done and stream != -1:
            self.done.precede(LEGACY_STREAM if stream is None else stream)
        return lend(self.address, self.type, self._driver.ordinal, self._memory)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3,
            "stream": (self.done.stream or LEGACY_STREAM) if self.done else None,
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"DeviceArray({self.type}, GPU {self._driver.ordinal})"
