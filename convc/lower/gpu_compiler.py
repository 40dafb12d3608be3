"""Which of NVIDIA's compilers makes the code for GPUs: nvcc where it is installed, else NVRTC."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from convc.errors import MissingDependencyError
from convc.launch import Usage
from convc.lower import nvcc, nvrtc
from convc.target import GpuTarget

BOUNDS = re.compile(r"__launch_bounds__\(\d+")
Compiled = tuple[bytes, Mapping[str, tuple[Usage, ...]]]


@dataclass(frozen=True)
class GpuCompiler:
    """`missing` says why it makes no code here, or None; `version` and `flags` are what decides the code beside the
    text; `compile_source` gives a fat binary for the target's architectures, and by kernel what each takes there."""

    name: str
    install: str
    missing: Callable[[], str | None]
    version: Callable[[], str]
    flags: Sequence[str]
    compile_source: Callable[[str, GpuTarget], Compiled]


COMPILERS = (
    GpuCompiler("nvcc", "pip install nvidia-cuda-nvcc", nvcc.missing, nvcc.version, nvcc.FLAGS, nvcc.compile_source),
    GpuCompiler(
        "NVRTC", "pip install nvidia-cuda-nvrtc cuda-bindings", nvrtc.missing, nvrtc.version, nvrtc.FLAGS,
        nvrtc.compile_source,
    ),
)  # fmt: skip


def taken() -> GpuCompiler | None:
    """The first of them that is here."""
    return next((compiler for compiler in COMPILERS if compiler.missing() is None), None)


def gpu_compiler() -> GpuCompiler:
    """The same. Raises MissingDependencyError, with the lines to run, where there is none."""
    if found := taken():
        return found
    reasons = "; ".join(filter(None, (compiler.missing() for compiler in COMPILERS)))
    first, second = COMPILERS
    raise MissingDependencyError(
        f"targets cuda/... need one of NVIDIA's compilers ({reasons}); run `{first.install}`, or `{second.install}` "
        "where there is no gcc, or install CUDA from https://developer.nvidia.com/cuda-downloads"
    )


def compile_source(text: str, target: GpuTarget) -> Compiled:
    """The code, once more where a kernel spills: ptxas gives up registers where a few less let one block more be
    resident, but not where the bounds name the number of resident blocks."""
    compiler = gpu_compiler()
    found = compiler.compile_source(text, target)
    if not _spilled(found):
        return found
    return min(found, compiler.compile_source(BOUNDS.sub(r"\g<0>, 1", text), target), key=_spilled)


def _spilled(found: Compiled) -> int:
    """Bytes a thread."""
    return sum(u.spill_stores + u.spill_loads for usages in found[1].values() for u in usages)


def identity() -> tuple[str, ...]:
    """What decides the code beside the text and the target."""
    found = gpu_compiler()
    return found.name, found.version(), *found.flags
