"""Targets: the machine that code is made for, as text and as the few numbers that schedules ask for."""

from __future__ import annotations

import difflib
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from convc import llvm
from convc.errors import ConvcError, UnsupportedError, UsageError
from convc.gpu import ARCHS, Gpu, capability, gpu_of, portable
from convc.rates import Rates, rates_of

# What generated code needs at run time, by the widest unit that LLVM reports: (float32 lanes, vector registers).
VECTOR_UNITS = (("avx512f", 16, 32), ("avx2", 8, 16), ("avx", 8, 16), ("sse2", 4, 16), ("neon", 4, 32))
TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}
KEYS = ("triple", "threads")
LATER = "GPUs later than these run what is compiled for cuda/sm_90+ptx"


@dataclass(frozen=True)
class Target:
    """A CPU. `lanes` float32 lanes in a vector register, `registers` of them; caches in bytes per core.

    `threads` is the number the schedules split work for; an artifact runs on any number. `rates` only rank configs.
    """

    arch: str
    triple: str
    lanes: int
    registers: int
    features: tuple[str, ...]
    threads: int = 1
    l1: int = 32 << 10
    l2: int = 512 << 10
    rates: Rates = Rates()
    kind: str = "cpu"

    def __str__(self) -> str:
        """What the generated code depends on, and nothing else."""
        return f"{self.kind}/{self.arch},triple={self.triple},threads={self.threads}"

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.arch}"

    @property
    def tvm(self) -> dict[str, Any]:
        """TVM's form of this target. Where LLVM would rather use half of a wide register for loops that it vectorises
        itself (the long epilogues), it is told not to: our code fills the whole register anyway."""
        wide = {"mattr": ["-prefer-256-bit"]} if self.lanes == 16 else {}
        return {"kind": "llvm", "mcpu": self.arch, "mtriple": self.triple, "num-cores": self.threads, **wide}


@dataclass(frozen=True)
class GpuTarget(Target):
    """NVIDIA GPUs of one or more architectures, the oldest first: one artifact that runs on all of them, and with `ptx`
    on later ones. `lanes` float32 numbers are what one access moves at most (16 bytes), `l1` the bytes of shared memory
    that a thread block may have on every one of them. `tf32`: whether float32 products may be computed in tf32."""

    archs: tuple[str, ...] = ()
    ptx: bool = False
    tf32: bool = False

    def __str__(self) -> str:
        return self.label + (",tf32=1" if self.tf32 else "")

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.arch}"

    @property
    def gpu(self) -> Gpu:
        """What models reckon with: the oldest of the architectures."""
        return gpu_of(self.archs[0])

    @property
    def capability(self) -> tuple[int, int]:
        """Of the oldest."""
        return capability(self.archs[0])

    @property
    def tvm(self) -> dict[str, Any]:
        return {"kind": "cuda", "arch": self.archs[0], "max_shared_memory_per_block": self.l1}


def parse_target(text: str, *, threads: int | None = None) -> Target:
    """`native`, `cpu/ARCH`, `cpu/ARCH,triple=...,threads=N`, `cuda/sm_80,sm_90a+ptx`; bare `cuda` is the GPU of this
    machine. Raises UsageError with the nearest known name, and for more than one of `threads` on GPUs."""
    head, *settings = text.strip().split(",")
    kind, _, arch = head.partition("/")
    if kind == "cuda":
        if threads not in (None, 1):
            raise UsageError(f"target '{text}': a GPU runs on all of its threads; leave --threads out")
        return _gpu_target(text, arch, settings)
    options = _options(settings, text)
    if kind == "native" and not arch:
        arch = llvm.host_cpu()
    elif kind != "cpu" or not arch:
        hint = "KIND/ARCH is written as native, cpu/znver3, cpu/x86-64-v3 or cuda/sm_80; see `convc targets`"
        raise UsageError(f"target '{text}' is no target; {hint}")
    triple = options.get("triple") or TRIPLES.get(_machine_of(arch), TRIPLES["x86_64"])
    count = threads or int(options.get("threads", "1"))
    found = _describe(arch, triple, text)
    return replace(found, threads=count)


def _gpu_target(text: str, first: str, rest: Sequence[str]) -> GpuTarget:
    options = [word for word in rest if "=" in word]
    if wrong := [o for o in options if o not in ("tf32=0", "tf32=1")]:
        raise UsageError(f"target '{text}': '{wrong[0]}' is no setting of a GPU; tf32=1 is the only one")
    more = [word for word in rest if "=" not in word]
    if more and not first:
        raise UsageError(f"target '{text}': architectures are written cuda/{','.join(more)}")
    named = [first, *more] if first else [_visible_arch(text)]
    ptx = any(word.endswith("+ptx") for word in named)
    archs = tuple(dict.fromkeys(word.removesuffix("+ptx") for word in named))
    for arch in archs:
        if arch not in ARCHS:
            raise UsageError(f"target '{text}': convc knows no GPU architecture '{arch}'; {_instead_of(arch)}")
    if ptx and portable(archs) is None:
        raise UsageError(f"target '{text}': no later GPU takes the PTX of sm_90a; write cuda/sm_90,sm_90a+ptx")
    archs = tuple(sorted(archs, key=ARCHS.index))
    shared = min(gpu_of(arch).shared_block for arch in archs)
    label = ",".join(archs) + ("+ptx" if ptx else "")
    return GpuTarget(
        label, "nvptx64-nvidia-cuda", 4, 255, (), l1=shared, l2=gpu_of(archs[0]).l2, kind="cuda", archs=archs, ptx=ptx,
        tf32="tf32=1" in options,
    )  # fmt: skip


def _instead_of(arch: str) -> str:
    """What to write: the nearest names of a misspelt one, all of them instead of one that is no mistake."""
    if re.fullmatch(r"sm_\d+[a-z]?", arch):
        return f"it knows {_and(ARCHS)}, and {LATER}"
    near = difflib.get_close_matches(arch, ARCHS, n=3)
    return f"did you mean {_or(near)}?" if near else f"it knows {_and(ARCHS)}"


def _visible_arch(text: str) -> str:
    from convc.runtime.driver import Driver  # only a bare `cuda` asks the machine

    try:
        major, minor = Driver.open().capability
    except ConvcError as error:
        raise UsageError(
            f"target '{text}' means the GPU of this machine, and there is none to be seen ({error}); "
            f"name the architecture, as cuda/sm_80 or cuda/sm_90a"
        ) from error
    fitting = [a for a in ARCHS if capability(a)[0] == major and capability(a)[1] <= minor]
    if not fitting:
        raise UsageError(
            f"target '{text}': this machine's GPU is sm_{major}{minor}, and convc knows {_and(ARCHS)}; {LATER}"
        )
    return max(fitting, key=lambda a: (capability(a), a))


def _or(words: Sequence[str], last: str = "or") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _and(words: Sequence[str]) -> str:
    return _or(words, "and")


def _options(settings: list[str], text: str) -> Mapping[str, str]:
    pairs = [s.partition("=") for s in settings]
    if unknown := [k for k, _, v in pairs if k not in KEYS or not v]:
        raise UsageError(f"target '{text}': '{unknown[0]}' is not one of {', '.join(KEYS)} (written key=value)")
    found = {k: v for k, _, v in pairs}
    if not found.get("threads", "1").isdigit() or int(found.get("threads", "1")) < 1:
        raise UsageError(f"target '{text}': threads must be a positive number, got '{found['threads']}'")
    return found


def _machine_of(arch: str) -> str:
    return "aarch64" if arch.startswith(("cortex-", "neoverse", "apple", "ampere", "a64fx")) else "x86_64"


@lru_cache
def _describe(arch: str, triple: str, text: str) -> Target:
    if not llvm.is_cpu(arch, triple):
        near = difflib.get_close_matches(arch, llvm.cpus(triple), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `convc targets`"
        raise UsageError(f"target '{text}': LLVM knows no CPU '{arch}' for {triple}; {hint}")
    features = llvm.cpu_features(arch, triple)
    unit = next((u for u in VECTOR_UNITS if u[0] in features), None)
    if unit is None:
        raise UnsupportedError(f"target '{text}': {arch} has no vector unit of {', '.join(u[0] for u in VECTOR_UNITS)}")
    # 48 KiB and 1-2 MiB is what CPUs with AVX-512 have, 32 KiB and 512 KiB the least of the others.
    l1, l2 = (48 << 10, 1 << 20) if unit[1] == 16 else (32 << 10, 512 << 10)
    rates = rates_of(f"cpu/{arch}", default=Rates(room=unit[2]))
    return Target(arch, triple, unit[1], unit[2], features, l1=l1, l2=l2, rates=rates)


def host_features() -> frozenset[str]:
    """The instruction sets this machine reports, in /proc/cpuinfo's words; empty where it reports none."""
    info = Path("/proc/cpuinfo")
    return features_in(info.read_text()) if info.exists() else frozenset()


def features_in(cpuinfo: str) -> frozenset[str]:
    """Those of the first processor that a text as /proc/cpuinfo tells of."""
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def available_threads() -> int:
    """CONVC_NUM_THREADS, else the processors this process may use, bounded by the cgroup's quota."""
    if (asked := os.environ.get("CONVC_NUM_THREADS", "")).isdigit() and int(asked) > 0:
        return int(asked)
    count = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()[:2]
        if limit != "max":
            count = min(count, max(1, int(limit) // int(period)))
    return count


def host_machine() -> str:
    return platform.machine()
