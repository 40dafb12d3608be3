"""The text of CUDA kernels into a library of the host, and its launches (see cuda_shim.py)."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cuda_asm import closing, translate

Three = tuple[int, int, int]
SOURCES = Path(__file__).parent / "shim"
COMMON = ("-O2", "-fPIC", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing")
TEXT = (
    *COMMON, "-std=gnu++17", "-w", "-g1", "-fno-tree-vectorize", "-fno-tree-slp-vectorize",
    "-fno-tree-loop-distribute-patterns", "-fno-optimize-sibling-calls", "-fsanitize=alignment",
)  # fmt: skip
CHECKED = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-fsanitize=bounds")

KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\(([^)]*)\)\s*)?(\w+)\s*\(([^)]*)\)")
HEADER = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<(?:cuda[\w/]*|mma|sm_\w+|math_constants)(?:\.h)?>", re.M)
ALIGN = r"(?:(?:__align__|alignas)\s*\(\s*(\d+)\s*\)\s*)?"
DYNAMIC = re.compile(rf"\bextern\s+__shared__\s+{ALIGN}([\w ]+?)\s*\b(\w+)\s*\[\s*\]\s*;")
STATIC = re.compile(rf"\b(?:static\s+)?__shared__\s+{ALIGN}([\w: ]+?)\s*\b(\w+)((?:\s*\[[^\]]+\])*)\s*;")
LOCAL = re.compile(r"\balignas\s*\(\s*\d+\s*\)\s*[\w: ]+?\s*\b(\w+)\s*\[\s*\d+\s*\]\s*;")
VECTOR = re.compile(r"\*\(([\w: ]+)\*\)\((\w+) \+ ")


lock = threading.RLock()
_programs: dict[tuple[str, bool, tuple[int, int]], Future[Program]] = {}


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
        run = runtime()
        with lock:
            run.cuda_image(_symbol(self.library, "cuda_begin"), _symbol(self.library, "cuda_end"))
            call = ctypes.cast(getattr(self.library, f"cuda_call_{kernel}"), ctypes.c_void_p)
            values = (ctypes.c_uint64 * max(1, len(args)))(*args)
            if run.cuda_launch(call, values, len(args), _three(grid), _three(block), shared, int(self.checked)):
                raise self._fault(kernel)

    def _fault(self, kernel: str) -> Fault:
        found = _FaultRecord.in_dll(runtime(), "cuda_fault")
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
    with lock:
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

    body = _local_vectors(STATIC.sub(static, DYNAMIC.sub(dynamic, translate(HEADER.sub("", text)))))
    calls = [
        f'extern "C" void cuda_call_{name}(const uint64_t* a) {{ cuda_shim::call({name}, a); }}'
        for name in kernels_of(text)
    ]
    image = 'extern "C" { const void *cuda_begin = cuda_shim::__ehdr_start, *cuda_end = cuda_shim::_end; }'
    return "\n".join([body, *calls, image, ""])


def _local_vectors(text: str) -> str:
    """`*(T*)(array + index)` of local arrays as calls that look at the index, which g++ does for `array[index]` only.

    Its own check of pointers (-fsanitize=object-size) would keep every local array in memory, at three times the time.
    """
    local = set(LOCAL.findall(text))
    out, at = [], 0
    while match := VECTOR.search(text, at):
        out.append(text[at : match.start()])
        if match[2] in local:
            end = closing(text, match.start(2) - 1)
            index = _local_vectors(text[match.end() : end - 1])
            out.append(f"cuda_shim::local_at<{match[1]}>({match[2]}, {index})")
            at = end
        else:
            out.append(match[0])
            at = match.end()
    return "".join(out) + text[at:]


def kernels_of(text: str) -> dict[str, Kernel]:
    found = {}
    for bounds, name, parameters in KERNEL.findall(text):
        names = tuple(match[1] for part in parameters.split(",") if (match := re.search(r"(\w+)\s*$", part)))
        found[name] = Kernel(name, names, int(bounds.split(",")[0]) if bounds.strip() else 1024)
    return found


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
def runtime() -> ctypes.CDLL:
    with lock:
        path = _folder() / "libshim.so"
        if not path.exists():
            parts = (str(SOURCES / f"{name}.cc") for name in ("threads", "access", "device", "shared", "warp", "wgmma"))
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


@cache
def _header(flags: tuple[str, ...]) -> Path:
    """shim.h, compiled beforehand: a text takes a third of the time then."""
    with lock:
        path = _folder() / f"header-{hashlib.sha256(' '.join(flags).encode()).hexdigest()[:16]}" / "shim.h"
        if not Path(f"{path}.gch").exists():  # else another thread made it, and may be reading it
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#include "{SOURCES / "shim.h"}"\n')
            _gxx(*flags, "-x", "c++-header", str(path), "-o", f"{path}.gch")
        return path


def _compile(text: str, checked: bool, capability: tuple[int, int]) -> Program:
    runtime()
    path = _folder() / (hashlib.sha256(f"{checked} {capability} {text}".encode()).hexdigest()[:24] + ".so")
    source, made = path.with_suffix(".cc"), path.with_suffix(".o")
    source.write_text(rewritten(text))
    arch = f"-D__CUDA_ARCH__={capability[0] * 100 + capability[1] * 10}"
    flags = (*TEXT, *CHECKED, arch) if checked else (*TEXT, arch)
    _gxx(*flags, "-include", str(_header(flags)), "-c", str(source), "-o", str(made))
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
