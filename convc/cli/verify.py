"""`convc verify`: is the result right?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.data import inputs_for
from convc.cli.verb import verb
from convc.errors import UsageError, VerifyError
from convc.report.table import Table, table

if TYPE_CHECKING:
    from convc.ir import Array
    from convc.report.accuracy import Accuracy
    from convc.report.layers import LayerCheck
    from convc.runtime.loader import Module

TOLERANCE = "Most that relative L2 and max error / max|ref| may be."
FEWEST_VALUES = 3  # of which an output must have at least so many to tell anything


@verb(
    "convc verify model.convc --model model.onnx",
    "convc verify model.convc --model model.onnx --per-layer",
    summary="Results against a reference.",
)
@click.argument("artifact", metavar="X.convc", type=options.FILE)
@click.option("--model", type=options.FILE, required=True, help="The ONNX model that the artifact was made of.")
@options.inputs
@options.fill
@options.seed
@click.option("--per-layer", is_flag=True, help="Every kernel on its own, against float64 and its own bound.")
@click.option("--bit-exact", is_flag=True, help="Allow no difference at all.")
@click.option("--tolerance", type=click.FloatRange(0), default=1e-4, show_default=True, help=TOLERANCE)
@click.option("--reference", type=click.Choice(["ort", "numpy"]), help="Default: ONNX Runtime where it is installed.")
@options.run_threads
def command(
    console: Console, artifact: Path, model: Path, inputs: Path | None, fill: str | None, seed: int,
    per_layer: bool, bit_exact: bool, tolerance: float, reference: str | None, threads: int | None,
) -> None:  # fmt: skip
    """Run X.convc and compare its outputs with those of the model by another runtime; with --per-layer also each
    kernel's result with a float64 reference on what the kernel itself read. Exits with 7 where one is outside.

    Beside the error of a convolution, max|y - ref| / max|ref|, stands the most that the bound of its algorithm allows
    on these inputs, relative to the same.

    With --bit-exact outputs must equal those of convc's own reference, computed in the model's own types.
    """
    if inputs is not None and fill is not None:
        raise UsageError("verify takes either --inputs or --fill, not both")
    from convc.report.layers import check_model
    from convc.report.reference import TITLES, default_source, reference_outputs
    from convc.runtime.loader import load

    module = load(artifact, threads=threads)
    check_model(module.artifact, model)
    given = inputs_for({p.name: p.type for p in module.inputs}, path=inputs, fill=fill, seed=seed)
    source = reference or ("exact" if bit_exact else default_source())
    expected = reference_outputs(source, model, given)
    found = module.run(given)
    results = _compare(found, expected)
    for name, value in expected.items():
        _warn_if_trivial(console, name, value)
    layers = _layers(console, module, model, given) if per_layer else []
    types = {port.name: port.type.dtype for port in module.outputs}
    wrong = [f"output {name!a}" for name, a in results.items() if not _fits(a, bit_exact, tolerance, types[name])]
    wrong += [f"layer {check.layer.index}" for check in layers if not check.within(tolerance)]
    if any(a.top1 is False for a in results.values()):
        console.note("note: the largest outputs differ in place (top-1)")
    limit = "bit-exact" if bit_exact else f"tolerance {tolerance:g}"
    error = VerifyError(f"{artifact}: {len(wrong)} outside ({limit}): {', '.join(wrong[:10])}") if wrong else None
    parts: list[str | Table] = ["", _layer_table(layers, tolerance)] if layers else []
    console.result(
        {
            "reference": TITLES[source], "tolerance": tolerance, "bit_exact": bit_exact, "passed": not wrong,
            "outputs": results, "layers": [_document(check, tolerance) for check in layers],
        },
        f"{'FAIL' if wrong else 'PASS'}: {artifact} against {TITLES[source]}, {limit}",
        "",
        _output_table(results),
        *parts,
        error=error,
    )  # fmt: skip


def _fits(found: Accuracy, bit_exact: bool, tolerance: float, dtype: str) -> bool:
    return found.equal if bit_exact else found.within(tolerance, dtype=dtype)


def _compare(found: dict[str, Array], expected: dict[str, Array]) -> dict[str, Accuracy]:
    from convc.report.accuracy import accuracy

    return {name: accuracy(value, expected[name]) for name, value in found.items()}


def _warn_if_trivial(console: Console, name: str, value: Array) -> None:
    import numpy as np

    if value.size >= FEWEST_VALUES and np.unique(value).size < FEWEST_VALUES:
        console.note(f"note: output {name!a} of the reference is nearly constant: that it agrees says little")


def _layers(console: Console, module: Module, model: Path, given: dict[str, Array]) -> list[LayerCheck]:
    from convc.report.layers import check_layers, plan_of

    plan = plan_of(module.artifact, model)
    found = []
    with console.progress() as told:
        for check in check_layers(module, plan, given):
            found.append(check)
            told("layers", len(found), len(module.layers))
    return found


def _document(check: LayerCheck, tolerance: float) -> dict[str, object]:
    layer = check.layer
    return {
        "index": layer.index, "origin": layer.origin, "algorithm": layer.algorithm, "problem": layer.problem,
        "accuracy": check.accuracy, "bound": check.bound, "measured": check.accuracy.max_error,
        "of_bound": check.used, "passed": check.within(tolerance),
    }  # fmt: skip


def _output_table(results: dict[str, Accuracy]) -> Table:
    top1 = {True: "same", False: "differs", None: ""}
    rows = [
        (name, f"{a.rel_l2:.2e}", f"{a.max_error:.2e}", top1[a.top1], "yes" if a.equal else "no")
        for name, a in results.items()
    ]
    return table(("output", ">relative L2", ">max error", "top-1", "equal"), rows)


def _layer_table(layers: list[LayerCheck], tolerance: float) -> Table:
    from convc.report.names import kernel_name, layer_name

    rows = []
    for check in layers:
        bound = "" if check.bound is None else f"{check.bound:.2e}"
        used = "" if check.used is None else f"{100 * check.used:.1f} %"
        mark = "" if check.within(tolerance) else "outside"
        a = check.accuracy
        rows.append((
            check.layer.index, layer_name(check.layer), kernel_name(check.layer), f"{a.rel_l2:.2e}",
            f"{a.max_error:.2e}", bound, used, mark,
        ))  # fmt: skip
    failed = [i for i, check in enumerate(layers) if not check.within(tolerance)]
    columns = ("#", "layer", "kernel", ">relative L2", ">max error", ">bound on it", ">of its bound", "")
    return table(columns, rows, marked=failed)
