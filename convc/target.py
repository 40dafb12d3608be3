"""Targets: the machine that code is made for, as text and as the few numbers that schedules ask for."""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from convc import llvm
from convc.errors import UnsupportedError, UsageError
from convc.rates import Rates, rates_of

# What generated code needs at run time, by the widest unit that LLVM reports: (float32 lanes, vector registers).
VECTOR_UNITS = (("avx512f", 16, 32), ("avx2", 8, 16), ("avx", 8, 16), ("sse2", 4, 16), ("neon", 4, 32))
TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}
KEYS = ("triple", "threads")


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


def parse_target(text: str, *, threads: int | None = None) -> Target:
    """`native`, `cpu/ARCH`, `cpu/ARCH,triple=...,threads=N`. Raises UsageError with the nearest known name."""
    head, *settings = text.strip().split(",")
    options = _options(settings, text)
    kind, _, arch = head.partition("/")
    if kind == "native" and not arch:
        arch = llvm.host_cpu()
    elif kind == "cuda":
        raise UnsupportedError(f"target '{text}': this version builds for CPUs only; see `convc targets`")
    elif kind != "cpu" or not arch:
        hint = "KIND/ARCH is written as native, cpu/znver3 or cpu/x86-64-v3; see `convc targets`"
        raise UsageError(f"target '{text}' is no target; {hint}")
    triple = options.get("triple") or TRIPLES.get(_machine_of(arch), TRIPLES["x86_64"])
    count = threads or int(options.get("threads", "1"))
    found = _describe(arch, triple, text)
    return replace(found, threads=count)


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
