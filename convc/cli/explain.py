"""`convc explain`: what every algorithm would give for a layer, and which one was taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from convc.cli import options, subject
from convc.cli.console import Console
from convc.cli.subject import Subject, subject_of
from convc.cli.verb import verb
from convc.errors import UsageError
from convc.report.table import Table, bytes_text, table, us_text

if TYPE_CHECKING:
    from convc.plan.offers import Row
    from convc.target import Target

DEFAULT_TARGET = "native"


@dataclass(frozen=True)
class Explained:
    """A problem, the layers that have it (number and name), and what was chosen for them; "" where nothing was."""

    problem: str
    layers: tuple[tuple[int, str], ...]
    choice: str


@verb(
    "convc explain model.onnx",
    "convc explain model.convc conv1",
    "convc explain mb1_ic64ih56_oc64oh56_kh3ph1 --target cpu/znver3",
    summary="Why a layer got its algorithm.",
)
@subject.argument
@click.argument("layer", required=False)
@click.option("-t", "--target", help="Machine to explain for. Default: the artifact's, or native.")
@click.option("--threads", type=options.THREADS, help="Threads to split work for. Default: the target's, or 1.")
@options.shape
@options.max_rel_err
def command(console: Console, subject: str, layer: str | None, **given: Any) -> None:
    """Tell for every convolution what each algorithm of the library offers: predicted time on one thread, bound on the
    error relative to the largest sum of absolute products, workspace, or why it refuses. The choice is marked with *.

    LAYER is a part of a node's name, or the number of a layer.
    """
    asked = subject_of(subject)
    target, found = _explained(asked, given)
    if layer and asked.kind == "problem":
        raise UsageError("LAYER applies to models and artifacts only")
    kept = [e for e in found if layer is None or any(_fits(layer, number, name) for number, name in e.layers)]
    if not kept:
        raise UsageError(f"no convolution in {subject} is called '{layer}'; `convc explain {subject}` lists them all")
    from convc.plan import explain_problem
    from convc.problem import Problem

    rows = {e.problem: explain_problem(Problem.parse(e.problem), target) for e in kept}
    parts: list[str | Table] = []
    for explained in kept:
        parts += [_headline(explained), _table(rows[explained.problem], explained.choice), ""]
    document = [asdict(e) | {"algorithms": [asdict(row) for row in rows[e.problem]]} for e in kept]
    console.result({"target": target.label, "problems": document}, *parts, f"for {target.label}")


def _fits(asked: str, number: int, name: str) -> bool:
    return asked == str(number) if asked.isdigit() else asked in name


def _explained(asked: Subject, given: Mapping[str, Any]) -> tuple[Target, list[Explained]]:
    from convc.target import parse_target

    if asked.kind == "artifact":
        return _of_artifact(asked, given)
    building = options.building({**given, "target": given["target"] or DEFAULT_TARGET})
    target = parse_target(building["target"], threads=building["threads"])
    if asked.kind == "problem":
        return target, [Explained(str(asked.problem.canonical), (), _best(asked, target))]
    from convc.pipeline import run_until

    assert asked.path is not None
    plan = run_until("chosen", asked.path, **building)
    rows = [
        (str(group.problem), i, ", ".join(group.origin), plan.choices[group].algorithm if group in plan.choices else "")
        for i, group in enumerate(plan.groups)
        if group.problem
    ]
    return target, _merged(rows)


def _best(asked: Subject, target: Target) -> str:
    from convc.plan import explain_problem

    first = explain_problem(asked.problem, target)[0]
    return "" if first.refusal else first.algorithm


def _of_artifact(asked: Subject, given: Mapping[str, Any]) -> tuple[Target, list[Explained]]:
    from convc.runtime.artifact import Artifact
    from convc.target import parse_target

    settled = {"--target": given["target"], "--threads": given["threads"], "--shape": given["shapes"]}
    if used := [flag for flag, value in settled.items() if value]:
        raise UsageError(f"{used[0]} is settled in {asked.text} already")
    assert asked.path is not None
    artifact = Artifact.open(asked.path)
    rows = [
        (layer.problem, layer.index, ", ".join(layer.origin), layer.algorithm or "")
        for layer in artifact.layers
        if layer.problem
    ]
    return parse_target(artifact.manifest["target"]["text"]), _merged(rows)


def _merged(rows: Iterable[tuple[str, int, str, str]]) -> list[Explained]:
    """Layers of the same problem and choice together, in order of their first."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for problem, number, name, choice in rows:
        found.setdefault((problem, choice), []).append((number, name))
    return [Explained(problem, tuple(layers), choice) for (problem, choice), layers in found.items()]


def _headline(explained: Explained) -> str:
    if not explained.layers:
        return explained.problem
    names = "; ".join(f"{number} {name}" for number, name in explained.layers[:4])
    more = f"; and {len(explained.layers) - 4} more" if len(explained.layers) > 4 else ""
    return f"{explained.problem}\n  layers: {names}{more}"


def _table(rows: list[Row], choice: str) -> Table:
    cells = [_cells(row, row.algorithm == choice) for row in rows]
    marked = [i for i, row in enumerate(rows) if row.algorithm == choice]
    return table(("", "algorithm", ">us", ">error bound", ">workspace", "config, or why not"), cells, marked=marked)


def _cells(row: Row, is_choice: bool) -> tuple[str, ...]:
    mark = "*" if is_choice else ""
    if row.us is None or row.error is None or row.memory is None:
        return mark, row.algorithm, "", "", "", row.refusal or ""
    return mark, row.algorithm, us_text(row.us), f"{row.error:.1e}", bytes_text(row.memory), row.config
