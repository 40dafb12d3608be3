"""`convc compile`: a model to an artifact. Never measures: the same input gives the same bytes."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.subject import compiled
from convc.cli.verb import verb
from convc.errors import UsageError
from convc.report.table import bytes_text

if TYPE_CHECKING:
    from convc.runtime.artifact import Artifact

STAGES = ("graph", "simple", "plan", "chosen", "placed")


@verb(
    "convc compile model.onnx -o model.convc",
    "convc compile model.onnx -o edge.convc --target cpu/x86-64-v3 --threads 4 --shape input:1x3x224x224",
    summary="ONNX model to artifact.",
)
@click.argument("model", type=options.FILE)
@click.option("-o", "--output", type=options.FILE, help="The artifact to write, X.convc.")
@options.target
@options.build_threads
@options.shape
@options.dtype
@options.max_rel_err
@options.memory_budget
@options.records
@click.option("--require-tuned", is_flag=True, help="Exit with 9 where a problem has no record.")
@click.option("--dump-code", type=options.FILE, help="Folder for the code of every kernel.")
@click.option("--stop-after", type=click.Choice(STAGES), help="Print this stage as text and write nothing.")
def command(
    console: Console, model: Path, output: Path | None, dump_code: Path | None, stop_after: str | None, **given: Any
) -> None:
    """Compile MODEL for a machine and write the artifact: code, header, weights and what was chosen.

    Nothing is measured and nothing is random: the same model, flags and records give the same bytes. What `convc tune`
    recorded decides where there is a record of the problem or of one near it, elsewhere a model of the machine.
    """
    if stop_after:
        return _show_stage(console, model, stop_after, options.building(given))
    if output is None:
        raise UsageError("compile needs the artifact to write: -o OUT.convc (or --stop-after STAGE)")
    start = time.perf_counter()
    artifact = compiled(console, model, dump_code=dump_code, **options.building(given))
    artifact.save(output)
    document = summary_of(artifact) | {"path": output, "seconds": round(time.perf_counter() - start, 2)}
    console.result(document, *_lines(document, output))
    return None


def _show_stage(console: Console, model: Path, stage: str, given: dict[str, Any]) -> None:
    from convc.ir import Graph
    from convc.ir.text import show as show_graph
    from convc.pipeline import run_until
    from convc.plan import show as show_plan

    value = run_until(stage, model, **given)
    text = show_graph(value, origin=True) if isinstance(value, Graph) else show_plan(value)
    console.result({"stage": stage, "text": text}, text.rstrip("\n"))


def summary_of(artifact: Artifact) -> dict[str, Any]:
    """What `compile` and `inspect` tell of an artifact."""
    layers = artifact.layers
    chosen = [layer.algorithm for layer in layers if layer.algorithm]
    manifest = artifact.manifest
    return {
        "target": manifest["target"]["label"],
        "kernels": len({layer.symbol for layer in layers}),
        "calls": len(layers),
        "algorithms": dict(Counter(chosen).most_common()),
        "records": {"tuned": 0, "transferred": 0, "modelled": 0} | dict(Counter(_sources(manifest))),
        "flops": sum(layer.flops for layer in layers),
        "memory": dict(manifest["memory"]),
    }


def _sources(manifest: Any) -> list[str]:
    """Where each choice of an algorithm is from."""
    return [str(call["source"]) for call in manifest["calls"] if call["algorithm"]]


def summary_lines(document: dict[str, Any]) -> list[str]:
    memory = document["memory"]
    scratch, each = (memory["scratch"], "") if "scratch" in memory else (memory["scratch_per_thread"], " a thread")
    chosen = ", ".join(f"{name} {count}" for name, count in document["algorithms"].items()) or "none"
    return [
        f"kernels     {document['kernels']}, called {document['calls']} times a run",
        f"algorithms  {chosen}",
        "choices     " + ", ".join(f"{name} {count}" for name, count in document["records"].items()),
        f"memory      weights {bytes_text(memory['weights'])}, packed {bytes_text(memory['packed'])}, "
        f"arena {bytes_text(memory['arena'])}, and {bytes_text(scratch)}{each}",
    ]


def _lines(document: dict[str, Any], output: Path) -> list[str]:
    size = bytes_text(output.stat().st_size)
    first = f"{output}: {size} for {document['target']}, in {document['seconds']:.1f} s"
    return [first, *summary_lines(document)]
