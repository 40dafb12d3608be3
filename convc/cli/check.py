"""`convc check`: would it compile?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.verb import verb
from convc.errors import UnsupportedError
from convc.report.table import bytes_text, table

if TYPE_CHECKING:
    from convc.frontend import ModelSummary, UnsupportedModelError
    from convc.plan.plan import Plan


@verb(
    "convc check model.onnx --target cpu/x86-64-v3",
    "convc check model.onnx --shape input:1x3x224x224",
    summary="Whether a model compiles, without compiling it.",
)
@click.argument("model", type=options.FILE)
@options.target
@options.build_threads
@options.shape
@options.dtype
@options.max_rel_err
@options.memory_budget
def command(console: Console, model: Path, **given: Any) -> None:
    """Do everything but generate code, and tell all that keeps MODEL from being compiled; exits with 4 where that is
    anything.

    Else tells what it would become: kernels, and memory before code is generated.
    """
    from convc.frontend import UnsupportedModelError, summary
    from convc.pipeline import run_until

    found = summary(model)
    try:
        plan = run_until("placed", model, **options.building(given))
    except UnsupportedModelError as error:
        return _refuse(console, model, found, error)
    document = _document(plan, found)
    console.result(
        {"path": model, "compiles": True, "failures": [], **document},
        f"{model}: compiles for {given['target']}",
        f"operators   {len(found.operators)} kinds in {found.nodes} nodes, all supported",
        f"kernels     {document['calls']} calls a run: {document['convolutions']} convolutions and matrix products, "
        f"{document['generic']} generic, {document['layout_changes']} layout changes",
        f"work        {document['flops'] / 1e9:.3f} GFLOP a run",
        f"memory      weights {bytes_text(plan.weight_bytes)}, packed {bytes_text(plan.packed_bytes)}, "
        f"arena {bytes_text(plan.arena_bytes)}",
    )
    return None


def _refuse(console: Console, model: Path, found: ModelSummary, error: UnsupportedModelError) -> None:
    failures = error.failures
    kinds = sorted({failure.operator for failure in failures if failure.operator})
    bad = sum(count for name, count in found.operators.items() if name in kinds)
    rows = [(f.where, f.operator, ", ".join(f.arguments), f.reason) for f in failures]
    parts = "1 part" if len(rows) == 1 else f"{len(rows)} parts"
    console.result(
        {
            "path": model, "compiles": False, "failures": failures, "nodes": found.nodes,
            "operators": found.operators, "failing_operators": kinds,
        },
        f"{model}: does not compile; {parts} of it {'fails' if len(rows) == 1 else 'fail'}",
        "",
        table(("where", "operator", "arguments", "why"), rows),
        "",
        f"{found.nodes} nodes of {len(found.operators)} operators, {bad} of operators that fail; "
        "`convc ops` lists what compiles",
        error=UnsupportedError(f"{model}: {parts} cannot be compiled"),
    )  # fmt: skip


def _document(plan: Plan, found: ModelSummary) -> Mapping[str, Any]:
    from convc.plan.plan import Copy, Kernel

    groups = [call.kernel.group for call in plan.run if isinstance(call.kernel, Kernel)]
    copies = sum(isinstance(group.nodes[0], Copy) for group in groups)
    anchored = sum(group.anchor is not None for group in groups)
    return {
        "nodes": found.nodes, "operators": found.operators, "calls": len(groups), "convolutions": anchored,
        "generic": len(groups) - anchored - copies, "layout_changes": copies,
        "flops": sum(node.flops for group in groups for node in group.nodes),
        "memory": {"weights": plan.weight_bytes, "packed": plan.packed_bytes, "arena": plan.arena_bytes},
    }  # fmt: skip
