"""`convc inspect`: what a file holds, without running any of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convc.cli import options
from convc.cli.compile import summary_lines, summary_of
from convc.cli.console import Console
from convc.cli.subject import Subject, subject_of
from convc.cli.verb import verb
from convc.errors import UsageError
from convc.report.table import Table, bytes_text, table

if TYPE_CHECKING:
    from convc.runtime.artifact import Artifact


@verb(
    "convc inspect model.onnx",
    "convc inspect model.convc",
    "convc inspect model.convc --extract folder",
    summary="What a model or an artifact holds.",
)
@click.argument("file", metavar="FILE")
@click.option("--extract", type=options.FILE, help="Write the artifact's files to this folder, for use from C.")
def command(console: Console, file: str, extract: Path | None) -> None:
    """Tell what FILE, an ONNX model or an artifact, holds. No code in it is loaded."""
    subject = subject_of(file)
    if subject.path is None:
        raise UsageError(f"'{file}' is a problem, not a file; `convc explain` tells of problems")
    if subject.kind == "model":
        if extract:
            raise UsageError(f"--extract takes an artifact; {file} is a model")
        return _model(console, subject.path)
    return _artifact(console, subject, extract)


def _model(console: Console, path: Path) -> None:
    from convc.frontend import summary

    found = summary(path)
    ports = [("input", n, t) for n, t in found.inputs.items()] + [("output", n, t) for n, t in found.outputs.items()]
    console.result(
        {"path": path, "kind": "model", "model": found},
        f"{path}: ONNX opset {found.opset}, {found.nodes} nodes, {found.parameters} parameters"
        + (f", made by {found.producer}" if found.producer else ""),
        "",
        table(("", "name", "type"), ports),
        "",
        table(("operator", ">nodes"), found.operators.items()),
    )


def _artifact(console: Console, subject: Subject, extract: Path | None) -> None:
    from convc.runtime.artifact import Artifact

    assert subject.path is not None
    artifact = Artifact.open(subject.path)
    document: dict[str, Any] = summary_of(artifact)
    manifest = artifact.manifest
    written = artifact.extract(extract) if extract else ()
    ports = [("input", p.name, p.type) for p in artifact.inputs]
    ports += [("output", p.name, p.type) for p in artifact.outputs]
    kernels: list[str | Table] = [_kernels(artifact), ""] if artifact.kind == "cuda" else []
    console.result(
        {"path": subject.path, "kind": "artifact", "manifest": manifest, "extracted": written, **document},
        f"{subject.path}: artifact '{artifact.name}' for {document['target']}, "
        f"made by convc {manifest['versions'].get('convc', 'unknown')}",
        *summary_lines(document),
        f"model       sha256 {manifest['model']['sha256']}",
        f"needs       {_needs(manifest['target'])}",
        "",
        table(("", "name", "type"), ports),
        "",
        *kernels,
        table(("entry", ">size"), [(name, bytes_text(len(data))) for name, data in artifact.entries.items()]),
        *(["", f"{len(written)} files written to {extract}"] if extract else []),
    )


def _needs(target: Mapping[str, Any]) -> str:
    if "archs" in target:
        return f"a GPU that runs {' or '.join(target['archs'])}" + (", or a later one" if target["ptx"] else "")
    return f"{target['machine']} with {' '.join(target['features']) or 'nothing special'}"


def _kernels(artifact: Artifact) -> Table:
    """Every launch, and what its kernel takes on each architecture."""
    program = artifact.program
    calls = Counter(step.symbol for step in (*program.init, *program.run))
    rows = []
    for symbol, function in program.functions.items():
        for launch in function.launches:
            grid, block = ("x".join(map(str, extents)) for extents in (launch.grid, launch.block))
            used = function.usage[launch.kernel]
            static = max((u.shared for u in used), default=0)
            rows.append((
                launch.kernel, calls[symbol], grid, block, bytes_text(launch.shared + static),
                _each(u.registers for u in used), _each(u.spill_stores + u.spill_loads for u in used),
            ))  # fmt: skip
    columns = ("kernel", ">calls", ">grid", ">block", ">shared", ">registers", ">bytes spilled")
    return table(columns, rows)


def _each(figures: Iterable[int]) -> str:
    """Of every architecture, once where they are the same."""
    return " ".join(map(str, dict.fromkeys(figures)))
