"""Which instruction sets an artifact needs, in the words of /proc/cpuinfo, and whether this machine has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from convc.errors import TargetMismatchError
from convc.target import Target, host_features, host_machine

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


def machine_of(target: Target) -> str:
    """x86_64, aarch64, ...: what `uname -m` says where the target's code runs."""
    return target.triple.partition("-")[0]


def required_features(target: Target) -> tuple[str, ...]:
    return tuple(sorted({CPUINFO[f] for f in target.features if f in CPUINFO}))


def check_machine(built_for: str, machine: str, features: Iterable[str]) -> None:
    """Raise TargetMismatchError unless code for this machine with these features runs here."""
    here = MACHINES.get(host_machine(), host_machine())
    if machine != here:
        raise _mismatch(built_for, f"a machine of type {machine}", f"this one is {here}")
    found = host_features()
    missing = [f for f in features if f not in found]
    if found and missing:
        raise _mismatch(built_for, f"a CPU with {' '.join(missing)}", f"this one has no {_and(missing)}")


def runs_here(target: Target) -> bool:
    try:
        check_machine(target.label, machine_of(target), required_features(target))
    except TargetMismatchError:
        return False
    return True


def _mismatch(built_for: str, needs: str, found: str) -> TargetMismatchError:
    return TargetMismatchError(
        f"the artifact was built for {built_for} and needs {needs}; {found}. "
        f"Compile it with `--target native` on this machine, or for a CPU that both have, as cpu/x86-64-v3"
    )


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
