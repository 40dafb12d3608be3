"""CUDA C++ on a CPU: emitted kernels run without a GPU, and their faults become exceptions.

A text is compiled by g++ (cuda_text.py) behind shim/shim.h, which has CUDA's language as C++, after inline PTX
(cuda_asm.py) and `__shared__` declarations are rewritten. A launch runs its thread blocks in turn; the threads of a
block are coroutines that meet at barriers and at operations of a warp (shim/threads.cc). With `checked`, g++ puts a
call in front of every access (-fsanitize=thread and parts of -fsanitize=undefined, without their run times), which
shim/access.cc answers. What it reports, as `Fault.kind`:

out of bounds        an access outside an allocation, a shared array, a local array of known size, or to freed memory
misaligned           a vector access or cp.async at an address that is no multiple of its size
uninitialised        a read of shared memory that no thread of the block has written
race                 two threads of a block, one of them writing, at one byte of shared memory with no barrier between.
                     wgmma also wants a fence.proxy.async between what a thread writes and the barrier behind it.
                     Only `__syncwarp` of a whole warp orders its lanes; shuffles and matrix operations do not.
race between blocks  two blocks of a launch at one byte of device memory, one of them writing; atomics are exempt
                     from one another
unfinished copy      an access to the target of a cp.async that its thread has not waited for
unfinished product   a kernel that ends before a wgmma that it has not waited for
divergence           threads that wait at different barriers, or at one that others will not reach, having ended even;
                     lanes missing from an operation of a warp
launch               extents or shared memory that a device of this capability refuses, or a wrong number of arguments
trap                 `__trap()`

Left out: races within one block on device memory, the order of other blocks (they run in turn), time, the hardware's
order of summation in mma and wgmma (the shim sums over k in order, rounding to float32 each time), wgmma of operands in
registers, transposed or with a swizzle, TMA and wmma. What a wgmma multiplies is read, and its sums are written, when
its thread waits for it: who touches either before gets wrong numbers.
Without `checked` only misalignment, divergence and launches are looked at, and a wild access ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
from cuda_text import Fault, Program, Three, compile, kernels_of, lock, runtime, start

__all__ = ["Fault", "Program", "ShimDriver", "Three", "compile", "needs_shim", "on_shim", "start"]

PLAIN_SHARED = 48 << 10  # bytes that a block may have unless its kernel has asked for more
MOST_SHARED = {(7, 5): 64 << 10, (8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10}


def missing() -> str | None:
    """Why the shim cannot work here, or None."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        return "the shim switches threads on x86-64 only"
    return None if shutil.which("g++") else "the shim needs g++"


needs_shim = pytest.mark.skipif(missing() is not None, reason=missing() or "")


class ShimDriver:
    """What convc.runtime.driver.Driver is, over host memory: no stream waits, and every launch is done when it returns.

    Fresh memory is filled with 0xff, NaN in every floating type. A module's image is the text of its kernels.
    """

    name = "shim"
    ordinal = 0

    def __init__(self, capability: tuple[int, int] = (8, 0), *, checked: bool = True) -> None:
        self.capability, self.checked = capability, checked
        self.launches = 0
        """Kernels run so far."""
        self._recording: dict[int, list[Callable[[], None]]] = {}
        self._streams = 0

    def allocate(self, size: int) -> int:
        with lock:
            pointer = int(runtime().cuda_allocate(size))
        if not pointer:
            raise MemoryError(f"the shim has no {size} bytes of device memory left")
        return pointer

    def free(self, pointer: int) -> None:
        with lock:
            if runtime().cuda_free(pointer):
                raise ValueError(f"no allocation begins at {pointer:#x}")

    def copy_in(self, to: int, data: np.ndarray[Any, Any], stream: int = 0) -> None:
        assert data.flags.c_contiguous
        _hold(to, data.nbytes)
        self._do(stream, lambda: ctypes.memmove(to, data.ctypes.data, data.nbytes))

    def copy_out(self, to: np.ndarray[Any, Any], source: int, stream: int = 0) -> None:
        assert to.flags.c_contiguous
        _hold(source, to.nbytes)
        self._do(stream, lambda: ctypes.memmove(to.ctypes.data, source, to.nbytes))

    def copy(self, to: int, source: int, size: int, stream: int = 0) -> None:
        _hold(to, size)
        _hold(source, size)
        self._do(stream, lambda: ctypes.memmove(to, source, size))

    def load(self, image: bytes) -> Program:
        return compile(image.decode(), checked=self.checked, capability=self.capability)

    def unload(self, module: Program) -> None:
        """Nothing: a text stays compiled for the session."""

    def function(self, module: Program, name: str, shared: int) -> Loaded:
        if name not in module.kernels:
            raise KeyError(f"the text has no kernel {name}, only {', '.join(module.kernels)}")
        if shared > self._most_shared:
            raise Fault("launch", f"{shared} bytes of shared memory of {self._most_shared}", kernel=name)
        return Loaded(module, name, max(shared, PLAIN_SHARED))

    def launch(
        self, function: Loaded, grid: Three, block: Three, shared: int, args: Sequence[int], stream: int = 0
    ) -> None:
        given = tuple(args)

        def run() -> None:
            self.launches += 1
            if shared > function.granted:
                text = f"{shared} bytes of shared memory, {function.granted} asked for"
                raise Fault("launch", text, kernel=function.name)
            function.program.launch(function.name, grid, block, given, shared=shared, most_shared=self._most_shared)

        self._do(stream, run)

    def stream(self) -> int:
        self._streams += 1
        return self._streams

    def close(self, stream: int) -> None:
        """Nothing is held."""

    def synchronize(self, stream: int) -> None:
        """All is done already."""

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        self._recording[stream] = recorded = []
        try:
            enqueue()
        finally:
            del self._recording[stream]
        return recorded

    def replay(self, graph: Any, stream: int) -> None:
        for action in graph:
            self._do(stream, action)

    def forget(self, graph: Any) -> None:
        graph.clear()

    def event(self, *, timed: bool = False) -> Event:
        return Event()

    def record(self, event: Event, stream: int, *, in_graph: bool = False) -> None:
        self._do(stream, event.pass_)

    def wait(self, stream: int, event: Event) -> None:
        """All is done already."""

    def elapsed(self, start: Event, stop: Event) -> float:
        """us of wall time between two marks: they say nothing of a GPU."""
        return (stop.seconds - start.seconds) * 1e6

    def drop(self, event: Event) -> None:
        """Nothing is held."""

    @property
    def _most_shared(self) -> int:
        return MOST_SHARED.get(self.capability, 99 << 10)

    def _do(self, stream: int, action: Callable[[], object]) -> None:
        if stream in self._recording:
            self._recording[stream].append(action)
        else:
            action()


@dataclass(frozen=True)
class Loaded:
    """A kernel, and the bytes of dynamic shared memory that it has asked for."""

    program: Program
    name: str
    granted: int


class Event:
    seconds = 0.0

    def pass_(self) -> None:
        self.seconds = time.perf_counter()


@contextlib.contextmanager
def on_shim(*, capability: tuple[int, int] = (8, 0), checked: bool = True) -> Iterator[ShimDriver]:
    """Builds keep the source text in place of a fat binary, and artifacts for GPUs load on the driver that is given.

    The cache of objects keeps these texts apart from code, as it keeps the code of different compilers.
    """
    from convc.launch import Usage

    driver = ShimDriver(capability, checked=checked)

    def compile_source(text: str, target: Any) -> tuple[bytes, dict[str, tuple[Usage, ...]]]:
        start(text, checked=checked, capability=capability)
        usage = {name: tuple(Usage(arch, 32, 0, 0, 0, 0) for arch in target.archs) for name in kernels_of(text)}
        return text.encode(), usage

    with (
        mock.patch("convc.lower.gpu_compiler.compile_source", compile_source),
        mock.patch("convc.lower.gpu_compiler.identity", lambda: ("none: source text for the shim",)),
        mock.patch("convc.runtime.driver.Driver.open", lambda ordinal=0: driver),
    ):
        yield driver


def _hold(address: int, size: int) -> None:
    if size and not runtime().cuda_holds(address, size):
        raise ValueError(f"{size} bytes at {address:#x} are not in one allocation of the shim")
