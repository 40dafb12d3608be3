"""`convc targets`: what --target takes, ready to be pasted."""

from __future__ import annotations

from typing import Any

from convc.cli.console import Console
from convc.cli.verb import verb
from convc.report.table import table

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


@verb("convc targets", "convc compile model.onnx -o model.convc --target cpu/x86-64-v3", summary="What --target takes.")
def command(console: Console) -> None:
    """List targets, ready to be pasted after --target: this machine first, then some that are known to work.

    A target is KIND/ARCH with settings behind commas, as cpu/cortex-a72,threads=4; ARCH is any CPU that LLVM knows.
    """
    from convc.errors import MissingDependencyError
    from convc.runtime.features import runs_here
    from convc.runtime.link import find_compiler
    from convc.target import parse_target

    rows: list[dict[str, Any]] = []
    for text, note in (("native", "this machine"), *KNOWN):
        target = parse_target(text)
        try:
            compiler = find_compiler(target)[0]
        except MissingDependencyError:
            compiler = ""
        rows.append({
            "target": text, "arch": target.arch, "lanes": target.lanes, "runs_here": runs_here(target),
            "c_compiler": compiler or None, "note": f"{note}: {target.label}" if text == "native" else note,
        })  # fmt: skip
    here = {True: "yes", False: ""}
    cells = [(r["target"], r["lanes"], here[r["runs_here"]], r["c_compiler"] or "missing", r["note"]) for r in rows]
    console.result({"targets": rows}, table(("target", ">lanes", "runs here", "C compiler", "machine"), cells))
