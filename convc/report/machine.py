"""The machine that numbers are from: name, processors, versions; and how to stay on some of its processors."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from convc.target import host_features

CPUINFO = Path("/proc/cpuinfo")
TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """`cpus` are the processors this process may use, `quota` what its control group allows, in processors."""

    cpu: str
    machine: str
    system: str
    cpus: tuple[int, ...]
    quota: float | None
    features: tuple[str, ...]

    @property
    def key(self) -> str:
        """What a measurement of this machine holds for."""
        return f"{self.machine} {self.cpu} {' '.join(self.features)}"


SHOWN_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "asimd", "asimddp", "asimdhp", "i8mm", "sve", "sve2",
)  # fmt: skip


def this_machine() -> Machine:
    found = host_features()
    return Machine(
        cpu=cpu_name(),
        machine=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        quota=cgroup_quota(),
        features=tuple(f for f in SHOWN_FEATURES if f in found),
    )


def cpu_name() -> str:
    if not CPUINFO.exists():
        return platform.processor() or "unknown"
    return name_in(CPUINFO.read_text(errors="replace"))


def name_in(cpuinfo: str) -> str:
    """The name of the processor that a text as /proc/cpuinfo tells of."""
    found = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return " ".join(found[1].split()) if found else "unknown"


def cgroup_quota() -> float | None:
    path = Path("/sys/fs/cgroup/cpu.max")
    try:
        limit, period = path.read_text().split()[:2]
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


def package_version(name: str) -> str | None:
    """The installed version of a Python package, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def pick_cpus(count: int) -> tuple[int, ...]:
    """`count` of the processors this process may use, fewer where there are not as many.

    One of each core first, and the last ones first: the system's own work is mostly on the first.
    """
    usable = sorted(os.sched_getaffinity(0), reverse=True)
    firsts = [cpu for cpu in usable if _siblings(cpu)[0] == cpu]
    others = [cpu for cpu in usable if cpu not in firsts]
    return tuple(sorted((firsts + others)[:count]))


def _siblings(cpu: int) -> list[int]:
    """The hardware threads of the core that `cpu` is one of, ascending."""
    path = TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list"
    try:
        numbers = [int(n) for n in re.findall(r"\d+", path.read_text())]
    except OSError:
        return [cpu]
    return sorted(numbers) or [cpu]


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """This thread, and the threads and processes it makes meanwhile, run on `cpus` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
