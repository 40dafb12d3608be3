"""CUDA C++ to machine code, by NVIDIA's compiler: no GPU and no driver is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from convc.errors import ConvcError
from convc.gpu import portable
from convc.launch import Usage
from convc.lower.ptxas import usage_in
from convc.target import GpuTarget

# Sums may be contracted to fused multiply-adds, which round once less; nothing else that changes numbers is allowed.
FLAGS = ("-std=c++17", "-O3", "--fatbin", "-Xptxas=-v", "--threads=1")
PACKAGED = ("nvidia/cu*/bin", "nvidia/cuda_nvcc/bin")  # where pip puts it: from CUDA 13 on, and before


def compile_source(text: str, target: GpuTarget) -> tuple[bytes, Mapping[str, tuple[Usage, ...]]]:
    """A fat binary for the target's architectures, and by kernel what each takes there.

    Raises ConvcError where nvcc refuses the text, with its words.
    """
    with tempfile.TemporaryDirectory(prefix="convc-") as folder:
        # Names are relative: they get into the binary, which shall be the same every time.
        (Path(folder) / "kernel.cu").write_text(text)
        line = [find_nvcc() or "nvcc", *FLAGS, *_architectures(target), "-o", "kernel.fatbin", "kernel.cu"]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConvcError(f"nvcc refuses a kernel for {target.label}: {done.stderr.strip()[-2000:]}")
        return (Path(folder) / "kernel.fatbin").read_bytes(), usage_in(done.stderr)


def _architectures(target: GpuTarget) -> list[str]:
    codes = [(arch.removeprefix("sm_"), arch) for arch in target.archs]
    if target.ptx and (name := portable(target.archs)):
        number = name.removeprefix("sm_")
        codes.append((number, f"compute_{number}"))
    return [word for number, code in codes for word in ("-gencode", f"arch=compute_{number},code={code}")]


@cache
def find_nvcc() -> str | None:
    """The compiler on PATH, where CUDA usually is, or where pip puts it; None where there is none."""
    return next((found for place in _places() if (found := shutil.which("nvcc", path=place))), None)


def _places() -> Iterator[str | None]:
    yield None  # PATH
    yield "/usr/local/cuda/bin"
    library = Path(sysconfig.get_path("purelib"))
    yield from (str(folder) for pattern in PACKAGED for folder in sorted(library.glob(pattern), reverse=True))


def missing() -> str | None:
    """Why it makes no code here, or None."""
    if find_nvcc() is None:
        return "nvcc is not on PATH"
    has_host = bool(os.environ.get("NVCC_CCBIN") or shutil.which("gcc"))  # which reads the text first
    return None if has_host else "nvcc needs gcc, which is not on PATH"


@cache
def version() -> str:
    """nvcc's own words for its release: part of what decides the code."""
    done = subprocess.run([find_nvcc() or "nvcc", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "unknown"
