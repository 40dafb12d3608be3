"""Every distinct kernel of a plan to object code, on all cores and through the cache."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from convc.algorithm import algorithms
from convc.plan.plan import Kernel, Packing, Plan
from convc.plan.text import kernel_text
from convc.runtime import cache as object_cache
from convc.target import Target, available_threads

HEAD = struct.Struct("<Q")  # bytes of scratch, before the object itself


@dataclass(frozen=True)
class Built:
    """Object code of a plan.

    objects  ELF relocatable objects, one per distinct kernel, in the order of first call.
    symbols  the C function of each kernel: `int32_t symbol(void* reads..., void* result)`, 64-byte aligned pointers.
    scratch  bytes of workspace that one thread takes at once in each function.
    """

    objects: tuple[bytes, ...]
    symbols: Mapping[Kernel | Packing, str]
    scratch: Mapping[str, int]


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
    scratch = {symbols[kernel]: HEAD.unpack_from(found[text])[0] for text, kernel in texts.items()}
    return Built(tuple(found[text][HEAD.size :] for text in texts), symbols, scratch)


def _key(text: str, symbol: str, target: Target) -> str:
    return hashlib.sha256("\0".join((text, symbol, str(target), toolchain())).encode()).hexdigest()


def _compiled(kernel: Kernel | Packing, key: str, symbol: str, target: Target) -> bytes:
    """The object behind its HEAD, as the cache has it from now on."""
    from convc.lower.build import build_object
    from convc.lower.kernel import lower

    noalias = isinstance(kernel, Packing) or kernel.in_place is None
    data, scratch = build_object(lower(kernel, target), symbol, target, noalias=noalias)
    content = HEAD.pack(scratch) + data
    object_cache.put(key, content)
    return content


def _dump(kernel: Kernel | Packing, text: str, symbol: str, target: Target, folder: Path) -> None:
    from convc.lower.build import assembly
    from convc.lower.kernel import lower

    folder.mkdir(parents=True, exist_ok=True)
    sch = lower(kernel, target)
    (folder / f"{symbol}.txt").write_text(text)
    (folder / f"{symbol}.tir.py").write_text(sch.mod.script())
    (folder / f"{symbol}.s").write_text(assembly(sch, symbol, target))


@cache
def toolchain() -> str:
    """What else decides the code: TVM's version and the source of convc and of every algorithm."""
    digest = hashlib.sha256(version("apache-tvm").encode())
    here = Path(__file__).resolve().parent.parent
    library = {Path(a.define.__code__.co_filename).resolve() for a in algorithms().values()}
    shared = {path for file in library for path in file.parent.glob("_*.py")}
    names = ("algorithm.py", "layout.py", "llvm.py", "problem.py", "target.py", "ir/*.py", "lower/*.py", "plan/*.py")
    for path in sorted({*library, *shared, *(p for n in names for p in here.glob(n))}):
        digest.update(path.read_bytes())
    return digest.hexdigest()
