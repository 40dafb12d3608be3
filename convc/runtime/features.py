"""Which instruction sets an artifact needs, in the words of /proc/cpuinfo, or which GPUs; and whether they are here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convc.errors import ConvcError, TargetMismatchError
from convc.gpu import capability, portable
from convc.target import GpuTarget, Target, host_features, host_machine

if TYPE_CHECKING:
    from convc.runtime.driver import Driver

# LLVM's name -> the kernel's. Only what LLVM uses on its own for arithmetic: a hypervisor that hides, say, the random
# number instructions must not keep an artifact from loading.
CPUINFO = {
    "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "sse4a": "sse4a", "popcnt": "popcnt",
    "avx": "avx", "avx2": "avx2", "fma": "fma", "fma4": "fma4", "xop": "xop", "tbm": "tbm", "f16c": "f16c",
    "bmi": "bmi1", "bmi2": "bmi2", "lzcnt": "abm", "movbe": "movbe", "gfni": "gfni",
    "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512dq": "avx512dq",
    "avx512vl": "avx512vl", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16",
    "avx512vbmi": "avx512vbmi", "avx512vbmi2": "avx512_vbmi2", "avx512bitalg": "avx512_bitalg",
    "avx512ifma": "avx512ifma", "avx512vpopcntdq": "avx512_vpopcntdq", "avxvnni": "avx_vnni",
    "avxifma": "avx_ifma", "avxvnniint8": "avx_vnni_int8", "avxneconvert": "avx_ne_convert",
    "amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16",
    "neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp", "rdm": "asimdrdm", "lse": "atomics", "i8mm": "i8mm",
    "bf16": "bf16", "fp16fml": "asimdfhm", "complxnum": "fcma", "sve": "sve", "sve2": "sve2",
}
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}


GPU_MACHINE = "cuda"


def machine_of(target: Target) -> str:
    """x86_64, aarch64, ...: what `uname -m` says where the target's code runs; cuda for GPUs, whatever they sit in."""
    return GPU_MACHINE if target.kind == "cuda" else target.triple.partition("-")[0]


def required_features(target: Target) -> tuple[str, ...]:
    return tuple(sorted({CPUINFO[f] for f in target.features if f in CPUINFO}))


def target_row(target: Target) -> dict[str, Any]:
    """The target as the manifest has it."""
    gpu = {"archs": list(target.archs), "ptx": target.ptx} if isinstance(target, GpuTarget) else {}
    features = list(required_features(target))
    return {"label": target.label, "text": str(target), "machine": machine_of(target), "features": features, **gpu}


def check_target(row: Mapping[str, Any]) -> str | None:
    """Raise TargetMismatchError unless code for a target, as the manifest has it, runs here. The name of the GPU."""
    if row["machine"] == GPU_MACHINE:
        return open_gpu(row).name
    check_machine(row["label"], row["machine"], row["features"])
    return None


def check_machine(built_for: str, machine: str, features: Iterable[str]) -> None:
    """Raise TargetMismatchError unless code for this machine with these features runs here."""
    here = MACHINES.get(host_machine(), host_machine())
    if machine != here:
        raise _mismatch(built_for, f"a machine of type {machine}", f"this one is {here}")
    found = host_features()
    missing = [f for f in features if f not in found]
    if found and missing:
        raise _mismatch(built_for, f"a CPU with {' '.join(missing)}", f"this one has no {_and(missing)}")


def open_gpu(row: Mapping[str, Any], ordinal: int = 0) -> Driver:
    """The GPU of that number, if code for the target runs on it.

    Raises TargetMismatchError where it does not or where there is none.
    """
    from convc.runtime import driver

    archs, ptx = row["archs"], row["ptx"]
    try:
        found = driver.Driver.open(ordinal)
    except TargetMismatchError as error:
        advice = "Run it on a machine with such a GPU, or compile it with `--target native` for this machine's CPU"
        raise gpu_mismatch(row, str(error), advice) from error
    if not runs_on(archs, ptx, found.capability):
        major, minor = found.capability
        advice = f"Compile it with `--target cuda/sm_{major}{minor}`, or with +ptx for GPUs later than all it names"
        raise gpu_mismatch(row, f"this one, {found.name}, has {major}.{minor}", advice)
    return found


def runs_on(archs: Sequence[str], ptx: bool, found: tuple[int, int]) -> bool:
    """Whether a GPU of capability `found` (major, minor) runs code for `archs`, by CUDA's rules.

    Code runs on the same major version from its own minor one on; that for sm_90a on 9.0 only. PTX, of the newest but
    for sm_90a, is translated for that and every later one.
    """
    kept = portable(archs) if ptx else None
    return (kept is not None and found >= capability(kept)) or any(_covers(arch, found) for arch in archs)


def _covers(arch: str, found: tuple[int, int]) -> bool:
    major, minor = capability(arch)
    return found == (major, minor) if arch.endswith("a") else found[0] == major and found[1] >= minor


def gpu_mismatch(row: Mapping[str, Any], found: str, advice: str) -> TargetMismatchError:
    """What the artifact was built for, what there is instead, and what to do."""
    needs = _and([_span(arch) for arch in row["archs"]])
    later = " or later" if row["ptx"] else ""
    return TargetMismatchError(
        f"the artifact was built for {row['label']} and needs a GPU of compute capability {needs}{later}; "
        f"{found}. {advice}"
    )


def _span(arch: str) -> str:
    """The capabilities that run code for it."""
    major, minor = capability(arch)
    return f"{major}.{minor}" + ("" if arch.endswith("a") or minor == 9 else f" to {major}.9")


def runs_here(target: Target) -> bool:
    try:
        check_target(target_row(target))
    except ConvcError:  # a GPU may also lack what is needed to ask
        return False
    return True


def _mismatch(built_for: str, needs: str, found: str) -> TargetMismatchError:
    return TargetMismatchError(
        f"the artifact was built for {built_for} and needs {needs}; {found}. "
        f"Compile it with `--target native` on this machine, or for a CPU that both have, as cpu/x86-64-v3"
    )


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
