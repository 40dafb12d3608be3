"""CUDA C++ to machine code, by NVIDIA's compiler: no GPU and no driver is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from convc.errors import ConvcError, MissingDependencyError
from convc.launch import Usage
from convc.target import GpuTarget

# Sums may be contracted to fused multiply-adds, which round once less; nothing else that changes numbers is allowed.
FLAGS = ("-std=c++17", "-O3", "--fatbin", "-Xptxas=-v", "--threads=1")
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")


def compile_source(text: str, target: GpuTarget) -> tuple[bytes, Mapping[str, tuple[Usage, ...]]]:
    """A fat binary for the target's architectures, and by kernel what each takes there.

    Raises MissingDependencyError without nvcc and ConvcError where it refuses the text.
    """
    with tempfile.TemporaryDirectory(prefix="convc-") as folder:
        # Names are relative: they get into the binary, which shall be the same every time.
        (Path(folder) / "kernel.cu").write_text(text)
        line = [find_nvcc(), *FLAGS, *_architectures(target), "-o", "kernel.fatbin", "kernel.cu"]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConvcError(f"nvcc refuses a kernel for {target.label}: {done.stderr.strip()[-2000:]}")
        return (Path(folder) / "kernel.fatbin").read_bytes(), usage_in(done.stderr)


def _architectures(target: GpuTarget) -> list[str]:
    names = [arch.removeprefix("sm_") for arch in target.archs]
    codes = [f"arch=compute_{n},code=sm_{n}" for n in names]
    if target.ptx:
        codes.append(f"arch=compute_{names[-1]},code=compute_{names[-1]}")
    return [word for code in codes for word in ("-gencode", code)]


@cache
def find_nvcc() -> str:
    """The compiler on PATH, else where CUDA usually is. Raises MissingDependencyError with the line to run."""
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise MissingDependencyError(
            "targets cuda/... need NVIDIA's compiler nvcc, and it is not on PATH; install it with "
            "`pip install nvidia-cuda-nvcc` or from https://developer.nvidia.com/cuda-downloads"
        )
    return found


@cache
def version() -> str:
    """nvcc's own words for its release: part of what decides the code."""
    done = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "unknown"


def usage_in(report: str) -> Mapping[str, tuple[Usage, ...]]:
    """What ptxas -v says, by kernel: one Usage an architecture."""
    found: dict[str, list[Usage]] = {}
    kernel, arch, frame = "", "", (0, 0, 0)
    for line in report.splitlines():
        if match := _ENTRY.search(line):
            kernel, arch = match.groups()
        elif match := _FRAME.search(line):
            stack, stores, loads = map(int, match.groups())
            frame = stack, stores, loads
        elif match := _USED.search(line):
            shared = _SHARED.search(line)
            usage = Usage(arch, int(match.group(1)), int(shared.group(1)) if shared else 0, *frame)
            found.setdefault(kernel, []).append(usage)
    return {name: tuple(usages) for name, usages in found.items()}
