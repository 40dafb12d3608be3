"""`convc run`: one inference."""

from __future__ import annotations

from pathlib import Path

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.data import inputs_for, write_arrays
from convc.cli.verb import verb
from convc.errors import UsageError
from convc.report.table import table


@verb(
    "convc run model.convc --inputs in.npz --outputs out.npz",
    "convc run model.convc --fill random --seed 7",
    summary="One inference, arrays from and to .npz.",
)
@click.argument("artifact", metavar="X.convc", type=options.FILE)
@options.inputs
@options.fill
@options.seed
@click.option("--outputs", type=options.FILE, help="Write the results here, as .npz.")
@options.run_threads
def command(
    console: Console, artifact: Path, inputs: Path | None, fill: str | None, seed: int, outputs: Path | None,
    threads: int | None,
) -> None:  # fmt: skip
    """Run X.convc once and tell of its outputs.

    Loading an artifact runs the code in it: load only what you trust.
    """
    if (inputs is None) == (fill is None):
        raise UsageError("run needs its inputs: either --inputs in.npz or --fill random|zeros")
    from convc.runtime.loader import load

    module = load(artifact, threads=threads)
    types = {port.name: port.type for port in module.inputs}
    found = module.run(inputs_for(types, path=inputs, fill=fill, seed=seed))
    if outputs:
        write_arrays(outputs, found)
    rows = [_row(name, value) for name, value in found.items()]
    document = {"outputs": rows, "written": outputs, "threads": module.threads, "gpu": module.gpu}
    cells = [(r["name"], r["type"], *(_number(r[key]) for key in ("min", "max", "mean")), r["top"]) for r in rows]
    written = [f"written to {outputs}"] if outputs else []
    console.result(document, table(("output", "type", ">min", ">max", ">mean", ">largest at"), cells), *written)


def _row(name: str, value: object) -> dict[str, object]:
    import numpy as np

    array = np.asarray(value)
    wide = array.astype(np.float64)
    return {
        "name": name,
        "type": f"{array.dtype.name}[{'x'.join(map(str, array.shape))}]",
        "min": float(wide.min()), "max": float(wide.max()), "mean": float(wide.mean()),
        "top": int(array.argmax()),
    }  # fmt: skip


def _number(value: object) -> str:
    return f"{value:.6g}"
