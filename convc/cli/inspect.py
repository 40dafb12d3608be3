"""`convc inspect`: what a file holds, without running any of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convc.cli import options
from convc.cli.compile import summary_lines, summary_of
from convc.cli.console import Console
from convc.cli.subject import Subject, subject_of
from convc.cli.verb import verb
from convc.errors import UsageError
from convc.report.table import bytes_text, table


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
    needs = " ".join(manifest["target"]["features"])
    console.result(
        {"path": subject.path, "kind": "artifact", "manifest": manifest, "extracted": written, **document},
        f"{subject.path}: artifact '{artifact.name}' for {document['target']}, "
        f"made by convc {manifest['versions'].get('convc', 'unknown')}",
        *summary_lines(document),
        f"model       sha256 {manifest['model']['sha256']}",
        f"needs       {manifest['target']['machine']} with {needs or 'nothing special'}",
        "",
        table(("", "name", "type"), ports),
        "",
        table(("entry", ">size"), [(name, bytes_text(len(data))) for name, data in artifact.entries.items()]),
        *(["", f"{len(written)} files written to {extract}"] if extract else []),
    )
