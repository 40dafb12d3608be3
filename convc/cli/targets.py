"""`convc targets`: what --target takes, ready to be pasted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convc.cli.console import Console
from convc.cli.verb import verb
from convc.report.table import table

if TYPE_CHECKING:
    from convc.target import GpuTarget, Target

KNOWN = (
    ("cpu/x86-64-v2", "any x86 since 2009: SSE4.2"),
    ("cpu/x86-64-v3", "most x86 since 2015: AVX2 and FMA"),
    ("cpu/x86-64-v4", "x86 servers: AVX-512"),
    ("cpu/haswell", "Intel Core 4th generation"),
    ("cpu/skylake", "Intel Core 6th generation"),
    ("cpu/skylake-avx512", "Intel Xeon Scalable"),
    ("cpu/icelake-server", "Intel Xeon 3rd generation"),
    ("cpu/sapphirerapids", "Intel Xeon 4th generation"),
    ("cpu/alderlake", "Intel Core 12th generation, N100"),
    ("cpu/znver2", "AMD Ryzen 3000, EPYC Rome"),
    ("cpu/znver3", "AMD Ryzen 5000, EPYC Milan"),
    ("cpu/znver4", "AMD Ryzen 7000, EPYC Genoa"),
    ("cpu/cortex-a53", "Raspberry Pi 3"),
    ("cpu/cortex-a72", "Raspberry Pi 4"),
    ("cpu/cortex-a76", "Raspberry Pi 5"),
    ("cpu/neoverse-n1", "AWS Graviton 2, Ampere Altra"),
    ("cpu/neoverse-v1", "AWS Graviton 3"),
)


@verb(
    "convc targets",
    "convc compile model.onnx -o model.convc --target cpu/x86-64-v3",
    "convc compile model.onnx -o model.convc --target cuda/sm_80,sm_90a",
    summary="What --target takes.",
)
def command(console: Console) -> None:
    """List targets, ready to be pasted after --target: this machine first, then some that are known to work.

    A target is KIND/ARCH with settings behind commas, as cpu/cortex-a72,threads=4; ARCH is any CPU that LLVM knows. An
    artifact for GPUs may hold code for several, as cuda/sm_80,sm_90a: it runs on those, on later ones of the same first
    digit (but for sm_90a), and with +ptx on all later ones. Plain `cuda` is the GPU of this machine.
    """
    from convc.target import GpuTarget, parse_target

    rows = []
    for text, note in (("native", "this machine"), *KNOWN):
        target = parse_target(text)
        note = f"{note}: {target.label}" if text == "native" else note
        rows.append(_row(text, target, _runs_here(target), _c_compiler(target), note))
    here, compiler = _gpu_here(), _gpu_compiler()
    for text, note in _gpus():
        target = parse_target(text)
        assert isinstance(target, GpuTarget)
        rows.append(_row(text, target, here is not None and _covers(target, here), compiler, note))
    console.result(
        {"targets": rows},
        table(("target", ">lanes", "runs here", "compiler", "machine"), [_cells(row) for row in rows]),
    )


def _row(text: str, target: Target, runs_here: bool, compiler: str | None, note: str) -> dict[str, Any]:
    return {
        "target": text, "arch": target.arch, "lanes": target.lanes, "runs_here": runs_here, "kind": target.kind,
        "compiler": compiler, "c_compiler": compiler if target.kind == "cpu" else None, "note": note,
    }  # fmt: skip


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    lanes = row["lanes"] if row["kind"] == "cpu" else ""
    return row["target"], lanes, "yes" if row["runs_here"] else "", row["compiler"] or "missing", row["note"]


def _runs_here(target: Target) -> bool:
    from convc.runtime.features import runs_here

    return runs_here(target)


def _c_compiler(target: Target) -> str | None:
    from convc.errors import MissingDependencyError
    from convc.runtime.link import find_compiler

    try:
        return find_compiler(target)[0]
    except MissingDependencyError:
        return None


def _gpus() -> Iterator[tuple[str, str]]:
    """Every architecture, with a product that has it."""
    from convc.gpu import ARCHS, FEATURES, gpu_of

    for arch in ARCHS:
        lacked = ", with instructions that later ones lack" if arch in FEATURES else ""
        yield f"cuda/{arch}", gpu_of(arch).product + lacked


def _gpu_compiler() -> str | None:
    from convc.lower.gpu_compiler import taken

    found = taken()
    return found.name if found else None


def _gpu_here() -> tuple[int, int] | None:
    """The compute capability of this machine's GPU."""
    from convc.errors import ConvcError
    from convc.runtime.driver import Driver

    try:
        return Driver.open().capability
    except ConvcError:
        return None


def _covers(target: GpuTarget, found: tuple[int, int]) -> bool:
    from convc.runtime.features import runs_on

    return runs_on(target.archs, target.ptx, found)
