"""CUDA C++ on a CPU: emitted kernels run without a GPU, and their faults become exceptions.

A text is compiled by g++ behind tests/shim/shim.h, which has CUDA's language as C++, after inline PTX (cuda_asm.py) and
`__shared__` declarations are rewritten. A launch runs its thread blocks in turn; the threads of a block are coroutines
that meet at barriers and at operations of a warp (shim/threads.cc). With `checked`, g++ puts a call in front of every
access (-fsanitize=thread and parts of -fsanitize=undefined, without their run times), which shim/memory.cc answers.
What it reports, as `Fault.kind`:

out of bounds        an access outside an allocation, a shared array, a local array of known size, or to freed memory
misaligned           a vector access or cp.async at an address that is no multiple of its size
uninitialised        a read of shared memory that no thread of the block has written
race                 two threads of a block, one of them writing, at one byte of shared memory with no barrier between.
                     Only `__syncwarp` of a whole warp orders its lanes; shuffles and matrix operations do not.
race between blocks  two blocks of a launch at one byte of device memory, one of them writing; atomics are exempt
                     from one another
unfinished copy      an access to the target of a cp.async that its thread has not waited for
divergence           threads that wait at different barriers, or at one that others will not reach, having ended even;
                     lanes missing from an operation of a warp
launch               extents or shared memory that a device of this capability refuses, or a wrong number of arguments
trap                 `__trap()`

Left out: races within one block on device memory, the order of other blocks (they run in turn), time, the hardware's
order of summation in mma (the shim sums over k in order, rounding to float32 each time), and wgmma, TMA and wmma.
Without `checked` only misalignment, divergence and launches are looked at, and a wild access ends the process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from cuda_asm import translate

Three = tuple[int, int, int]
SOURCES = Path(__file__).parent / "shim"
COMMON = ("-O2", "-fPIC", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing")
TEXT = (
    *COMMON, "-std=gnu++17", "-w", "-g1", "-fno-tree-vectorize", "-fno-tree-slp-vectorize",
    "-fno-tree-loop-distribute-patterns", "-fno-optimize-sibling-calls", "-fsanitize=alignment",
)  # fmt: skip
CHECKED = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fsanitize=bounds,object-size")
PLAIN_SHARED = 48 << 10  # bytes that a block may have unless its kernel has asked for more
MOST_SHARED = {(7, 5): 64 << 10, (8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10}

KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\(([^)]*)\)\s*)?(\w+)\s*\(([^)]*)\)")
HEADER = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<(?:cuda[\w/]*|mma|sm_\w+|math_constants)(?:\.h)?>", re.M)
ALIGN = r"(?:(?:__align__|alignas)\s*\(\s*(\d+)\s*\)\s*)?"
DYNAMIC = re.compile(rf"\bextern\s+__shared__\s+{ALIGN}([\w ]+?)\s*\b(\w+)\s*\[\s*\]\s*;")
STATIC = re.compile(rf"\b(?:static\s+)?__shared__\s+{ALIGN}([\w: ]+?)\s*\b(\w+)((?:\s*\[[^\]]+\])*)\s*;")


def missing() -> str | None:
    """Why the shim cannot work here, or None."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        return "the shim switches threads on x86-64 only"
    return None if shutil.which("g++") else "the shim needs g++"


needs_shim = pytest.mark.skipif(missing() is not None, reason=missing() or "")


class Fault(Exception):  # noqa: N818 - the word for what a kernel does wrong
    """What a kernel did wrong. `line` and `source` are of its text, 0 and "" where they are not known."""

    def __init__(
        self, kind: str, text: str, *, kernel: str, block: Three = (0, 0, 0), thread: Three = (0, 0, 0),
        address: int = 0, line: int = 0, source: str = "",
    ) -> None:  # fmt: skip
        where = f" at line {line}: {source}" if line else ""
        super().__init__(f"{kind}: kernel {kernel}, block {block}, thread {thread}: {text}{where}")
        self.kind, self.text, self.kernel, self.block, self.thread = kind, text, kernel, block, thread
        self.address, self.line, self.source = address, line, source


@dataclass(frozen=True)
class Kernel:
    """A kernel of a text: the names of its parameters, and the most threads that a block may have."""

    name: str
    parameters: tuple[str, ...]
    most_threads: int


@dataclass(frozen=True)
class Program:
    """A text, compiled."""

    text: str
    path: Path
    checked: bool
    kernels: Mapping[str, Kernel]
    library: ctypes.CDLL = field(repr=False)

    def launch(
        self, kernel: str, grid: Three, block: Three, args: Sequence[int], *, shared: int = 0,
        most_shared: int = 227 << 10,
    ) -> None:  # fmt: skip
        """Run a kernel; `args` are device addresses, or the bits of numbers. Raises Fault."""
        known = self.kernels[kernel]
        if reason := _refusal(known, grid, block, shared, len(args), most_shared):
            raise Fault("launch", reason, kernel=kernel)
        run = _runtime()
        with _lock:
            run.cuda_image(_symbol(self.library, "cuda_begin"), _symbol(self.library, "cuda_end"))
            call = ctypes.cast(getattr(self.library, f"cuda_call_{kernel}"), ctypes.c_void_p)
            values = (ctypes.c_uint64 * max(1, len(args)))(*args)
            if run.cuda_launch(call, values, len(args), _three(grid), _three(block), shared, int(self.checked)):
                raise self._fault(kernel)

    def _fault(self, kernel: str) -> Fault:
        found = _FaultRecord.in_dll(_runtime(), "cuda_fault")
        line = found.line or _line_of(self.path, self.library, found.pc)
        rows = self.text.splitlines()
        source = rows[line - 1].strip() if 0 < line <= len(rows) else ""
        names = self.kernels[kernel].parameters
        text = re.sub(r"argument (\d+)", lambda match: f"of {names[int(match[1])]}", found.text.decode())
        return Fault(
            found.kind.decode(), text, kernel=kernel, block=tuple(found.block),
            thread=tuple(found.thread), address=found.address, line=line if source else 0, source=source,
        )  # fmt: skip


def compile(text: str, *, checked: bool = True, capability: tuple[int, int] = (8, 0)) -> Program:  # noqa: A001
    """The kernels of a CUDA C++ text. Raises ValueError with g++'s words where it refuses them."""
    return start(text, checked=checked, capability=capability).result()


def start(text: str, *, checked: bool = True, capability: tuple[int, int] = (8, 0)) -> Future[Program]:
    """`compile`, on another thread. The same text is compiled once in a session."""
    key = (text, checked, capability)
    with _lock:
        if key not in _programs:
            _programs[key] = _workers().submit(_compile, *key)
        return _programs[key]


def rewritten(text: str) -> str:
    """A CUDA text as C++ behind shim.h, line by line; a function `cuda_call_<kernel>` for each kernel ends it."""
    ids = iter(range(1, 1 << 14))

    def dynamic(match: re.Match[str]) -> str:
        alignment, kind, name = match.groups()
        return f"{kind}* {name} = ({kind}*)cuda_shared_dynamic(\"{name}\", {alignment or f'alignof({kind})'});"

    def static(match: re.Match[str]) -> str:
        alignment, kind, name, extents = match.groups()
        return f'auto& {name} = cuda_shim::shared_array<{kind}{extents}, {alignment or 0}, {next(ids)}>("{name}");'

    body = STATIC.sub(static, DYNAMIC.sub(dynamic, translate(HEADER.sub("", text))))
    calls = [
        f'extern "C" void cuda_call_{name}(const uint64_t* a) {{ cuda_shim::call({name}, a); }}'
        for name in kernels_of(text)
    ]
    image = 'extern "C" { const void *cuda_begin = cuda_shim::__ehdr_start, *cuda_end = cuda_shim::_end; }'
    return "\n".join([body, *calls, image, ""])


def kernels_of(text: str) -> dict[str, Kernel]:
    found = {}
    for bounds, name, parameters in KERNEL.findall(text):
        names = tuple(match[1] for part in parameters.split(",") if (match := re.search(r"(\w+)\s*$", part)))
        found[name] = Kernel(name, names, int(bounds.split(",")[0]) if bounds.strip() else 1024)
    return found


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
        with _lock:
            pointer = int(_runtime().cuda_allocate(size))
        if not pointer:
            raise MemoryError(f"the shim has no {size} bytes of device memory left")
        return pointer

    def free(self, pointer: int) -> None:
        with _lock:
            if _runtime().cuda_free(pointer):
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
        mock.patch("convc.lower.nvcc.compile_source", compile_source),
        mock.patch("convc.lower.nvcc.version", lambda: "none: source text for the shim"),
        mock.patch("convc.runtime.driver.Driver.open", lambda ordinal=0: driver),
    ):
        yield driver


_lock = threading.RLock()
_programs: dict[tuple[str, bool, tuple[int, int]], Future[Program]] = {}


class _FaultRecord(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_char_p), ("block", ctypes.c_uint * 3), ("thread", ctypes.c_uint * 3),
        ("address", ctypes.c_uint64), ("pc", ctypes.c_uint64), ("line", ctypes.c_int), ("text", ctypes.c_char * 600),
    )  # fmt: skip


def _three(values: Three) -> Any:
    return (ctypes.c_uint * 3)(*values)


def _symbol(library: ctypes.CDLL, name: str) -> int:
    return ctypes.c_void_p.in_dll(library, name).value or 0


def _refusal(kernel: Kernel, grid: Three, block: Three, shared: int, args: int, most_shared: int) -> str | None:
    threads = block[0] * block[1] * block[2]
    if args != len(kernel.parameters):
        return f"{args} arguments for the parameters {', '.join(kernel.parameters)}"
    if not 1 <= threads <= kernel.most_threads or block[2] > 64 or min(block) < 1:
        return f"a block of {block} threads, of {kernel.most_threads} at most"
    if min(grid) < 1 or max(grid[1:]) > 65535 or grid[0] >= 1 << 31:
        return f"a grid of {grid} blocks"
    return f"{shared} bytes of shared memory, of {most_shared} at most" if shared > most_shared else None


def _hold(address: int, size: int) -> None:
    if size and not _runtime().cuda_holds(address, size):
        raise ValueError(f"{size} bytes at {address:#x} are not in one allocation of the shim")


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cuda-shim-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)))


def _gxx(*line: str) -> None:
    done = subprocess.run(["g++", *line], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"g++ refuses it: {done.stderr.strip()[-4000:]}")


@cache
def _runtime() -> ctypes.CDLL:
    with _lock:
        path = _folder() / "libshim.so"
        if not path.exists():
            parts = (str(SOURCES / f"{name}.cc") for name in ("threads", "memory", "warp"))
            _gxx(*COMMON, "-std=gnu++17", "-shared", *parts, "-o", str(path))
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        library.cuda_allocate.restype = ctypes.c_size_t
        library.cuda_allocate.argtypes = (ctypes.c_size_t,)
        library.cuda_free.argtypes = (ctypes.c_size_t,)
        library.cuda_holds.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
        library.cuda_image.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
        three = ctypes.POINTER(ctypes.c_uint)
        library.cuda_launch.argtypes = (
            ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64), ctypes.c_uint, three, three, ctypes.c_uint, ctypes.c_int,
        )  # fmt: skip
        return library


def _compile(text: str, checked: bool, capability: tuple[int, int]) -> Program:
    _runtime()
    path = _folder() / (hashlib.sha256(f"{checked} {capability} {text}".encode()).hexdigest()[:24] + ".so")
    source, made = path.with_suffix(".cc"), path.with_suffix(".o")
    source.write_text(rewritten(text))
    arch = f"-D__CUDA_ARCH__={capability[0] * 100 + capability[1] * 10}"
    flags = (*TEXT, *CHECKED) if checked else TEXT
    _gxx(*flags, arch, "-include", str(SOURCES / "shim.h"), "-c", str(source), "-o", str(made))
    _gxx("-shared", str(made), "-o", str(path))
    return Program(text, path, checked, kernels_of(text), ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW))


def _line_of(path: Path, library: ctypes.CDLL, pc: int) -> int:
    """The line of the text at an address of its code; 0 where it is none or cannot be found out."""
    begin = _symbol(library, "cuda_begin")
    tool = shutil.which("addr2line")
    if not tool or not pc or pc < begin:
        return 0
    line = [tool, "-i", "-e", str(path), hex(pc - begin - 1)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    lines = [row.rpartition(":")[2].split()[0] for row in done.stdout.splitlines() if f"{path.stem}.cc" in row]
    return int(lines[0]) if lines and lines[0].isdigit() else 0
