"""Every distinct kernel of a plan to object code, on all cores and through the cache."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convc.algorithm import KINDS, algorithms
from convc.launch import Launch, Usage, launch_of, row_of
from convc.plan.plan import Kernel, Packing, Plan
from convc.plan.text import kernel_text
from convc.runtime import cache as object_cache
from convc.target import GpuTarget, Target, available_threads

HEAD = struct.Struct("<Q")  # bytes of what is known of the code, in JSON, between this and the code itself


@dataclass(frozen=True)
class Built:
    """Machine code of a plan.

    objects   ELF relocatable objects or, for GPUs, fat binaries, one per distinct kernel, in the order of first call.
    symbols   the function of each kernel. For CPUs `int32_t symbol(void* reads..., void* result)` with 64-byte aligned
              pointers; for GPUs the name under which `launches` has it.
    scratch   bytes of workspace that one thread, or a GPU, takes at once in each function.
    launches  for GPUs, what each function launches, and `usage` what each kernel takes, by symbol and kernel.
    """

    objects: tuple[bytes, ...]
    symbols: Mapping[Kernel | Packing, str]
    scratch: Mapping[str, int]
    launches: Mapping[str, tuple[Launch, ...]] = field(default_factory=dict)
    usage: Mapping[str, Mapping[str, tuple[Usage, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Code:
    """Machine code of one function, and what is known of it."""

    data: bytes
    scratch: int
    launches: tuple[Launch, ...] = ()
    usage: Mapping[str, tuple[Usage, ...]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        launches = [row_of(launch) for launch in self.launches]
        usage = {kernel: [asdict(u) for u in each] for kernel, each in self.usage.items()}
        head = json.dumps({"scratch": self.scratch, "launches": launches, "usage": usage}).encode()
        return HEAD.pack(len(head)) + head + self.data

    @classmethod
    def from_bytes(cls, content: bytes) -> Code:
        start = HEAD.size + HEAD.unpack_from(content)[0]
        head = json.loads(content[HEAD.size : start])
        usage = {kernel: tuple(Usage(**row) for row in rows) for kernel, rows in head["usage"].items()}
        return cls(content[start:], head["scratch"], tuple(map(launch_of, head["launches"])), usage)


def build(
    plan: Plan, target: Target, *, dump: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Built:
    """Objects for all kernels that the plan calls.

    `dump` is a folder for each kernel's text, lowered form and assembly; `progress` is told how many of how many are
    done.
    """
    symbols: dict[Kernel | Packing, str] = {}
    texts: dict[str, Kernel | Packing] = {}
    for call in (*plan.init, *plan.run):
        text = kernel_text(call.kernel)
        symbols[call.kernel] = "k_" + hashlib.sha256(text.encode()).hexdigest()[:16]
        texts.setdefault(text, call.kernel)
    keys = {text: _key(text, symbols[kernel], target) for text, kernel in texts.items()}
    found = {text: stored for text, key in keys.items() if (stored := object_cache.get(key))}
    missing = [text for text in texts if text not in found]
    if missing:
        import convc.lower.kernel  # noqa: F401  and with it tvm, before the pool's threads would do it all at once
    with ThreadPoolExecutor(available_threads()) as pool:
        made = pool.map(lambda text: _compiled(texts[text], keys[text], symbols[texts[text]], target), missing)
        for text, content in zip(missing, made, strict=True):
            found[text] = content
            if progress:
                progress(len(found), len(texts))
    if dump:
        for text, kernel in texts.items():
            _dump(kernel, text, symbols[kernel], target, dump)
    codes = {symbols[kernel]: Code.from_bytes(found[text]) for text, kernel in texts.items()}
    return Built(
        tuple(code.data for code in codes.values()), symbols, {s: code.scratch for s, code in codes.items()},
        {s: code.launches for s, code in codes.items() if code.launches},
        {s: code.usage for s, code in codes.items() if code.usage},
    )  # fmt: skip


def _key(text: str, symbol: str, target: Target) -> str:
    parts = [text, symbol, str(target), toolchain()]
    if target.kind == "cuda":
        from convc.lower import gpu_compiler

        parts += gpu_compiler.identity()
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _compiled(kernel: Kernel | Packing, key: str, symbol: str, target: Target) -> bytes:
    """The code as the cache has it from now on."""
    from convc.lower.kernel import lower

    noalias = isinstance(kernel, Packing) or kernel.in_place is None
    content = compiled(lower(kernel, target), symbol, target, noalias=noalias).to_bytes()
    object_cache.put(key, content)
    return content


def compiled(sch: Any, symbol: str, target: Target, *, noalias: bool = True) -> Code:
    """The function "main" of a schedule in the target's machine code."""
    if isinstance(target, GpuTarget):
        from convc.lower import gpu_compiler
        from convc.lower.cuda import source_of

        source = source_of(sch, symbol, target, noalias=noalias)
        data, usage = gpu_compiler.compile_source(source.text, target)
        return Code(data, source.scratch, source.launches, usage)
    from convc.lower.build import build_object

    return Code(*build_object(sch, symbol, target, noalias=noalias))


def _dump(kernel: Kernel | Packing, text: str, symbol: str, target: Target, folder: Path) -> None:
    from convc.lower.build import assembly
    from convc.lower.cuda import source_of
    from convc.lower.kernel import lower

    folder.mkdir(parents=True, exist_ok=True)
    sch = lower(kernel, target)
    (folder / f"{symbol}.txt").write_text(text)
    (folder / f"{symbol}.tir.py").write_text(sch.mod.script())
    if isinstance(target, GpuTarget):
        (folder / f"{symbol}.cu").write_text(source_of(sch, symbol, target).text)
    else:
        (folder / f"{symbol}.s").write_text(assembly(sch, symbol, target))


@cache
def toolchain() -> str:
    """What else decides the code: TVM's version and the source of convc and of every algorithm."""
    digest = hashlib.sha256(version("apache-tvm").encode())
    here = Path(__file__).resolve().parent.parent
    defined = [a.define for kind in KINDS for a in algorithms(kind).values()]
    library = {Path(define.__code__.co_filename).resolve() for define in defined}
    shared = {path for file in library for path in file.parent.glob("_*.py")}
    alone = ("algorithm.py", "dtypes.py", "gpu.py", "launch.py", "layout.py", "llvm.py", "problem.py", "target.py")
    names = (*alone, "ir/*.py", "lower/*.py", "plan/*.py")
    for path in sorted({*library, *shared, *(p for n in names for p in here.glob(n))}):
        digest.update(path.read_bytes())
    return digest.hexdigest()
