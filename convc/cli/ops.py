"""`convc ops`: the operators that convc compiles."""

from __future__ import annotations

from convc.cli.console import Console
from convc.cli.verb import verb
from convc.report.table import table


@verb("convc ops", "convc ops --json", summary="The ONNX operators that convc compiles, with limits.")
def command(console: Console) -> None:
    """List every ONNX operator that convc compiles, the opsets it is taken from, and what of it is left out."""
    from convc.frontend import operators

    general, *rows = operators()
    document = {
        "limitation": general.limitation,
        "opsets": general.opsets,
        "operators": [{"name": r.name, "opsets": r.opsets, "limitation": r.limitation} for r in rows],
    }
    cells = [(row.name, f"{row.opsets[0]}-{row.opsets[1]}", row.limitation) for row in rows]
    summary = f"{len(rows)} operators of opsets {general.opsets[0]} to {general.opsets[1]}; {general.limitation}"
    console.result(document, table(("operator", "opsets", "limits"), cells), "", summary)
