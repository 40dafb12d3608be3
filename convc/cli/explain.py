"""`convc explain`: what every algorithm would give for a layer, and which one was taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from convc.cli import options, subject
from convc.cli.console import Console
from convc.cli.subject import Subject, subject_of
from convc.cli.verb import verb
from convc.errors import UsageError
from convc.report.table import Table, bytes_text, table, us_text

if TYPE_CHECKING:
    from convc.algorithm import Choice
    from convc.plan.offers import Measured, Row
    from convc.problem import Problem
    from convc.runtime.artifact import Artifact
    from convc.target import Target
    from convc.tune.lookup import Lookup

DEFAULT_TARGET = "native"


@dataclass(frozen=True)
class Taken:
    """The most that one of several kernels takes on one of the architectures: registers a thread, bytes of shared
    memory a thread block, and bytes a thread that its registers spill."""

    registers: int
    shared: int
    spilled: int


@dataclass(frozen=True)
class Explained:
    """A problem, the layers that have it (number and name), what was chosen for them ("" where nothing was) and where
    that came from: a record of this problem (tuned), of one near it (transferred), or the model (modelled). `bound` is
    the relative error that the choice may have, `measured` the largest that its records had; `taken` is what an
    artifact's kernels for it take of a GPU."""

    problem: str
    layers: tuple[tuple[int, str], ...]
    choice: str
    source: str = ""
    bound: float | None = None
    measured: float | None = None
    taken: Taken | None = None

    @property
    def algorithm(self) -> str:
        return self.choice.partition("(")[0]


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
@options.records
def command(console: Console, subject: str, layer: str | None, **given: Any) -> None:
    """Tell for every convolution what each algorithm of the library offers: predicted time, bound on the error relative
    to the largest sum of absolute products, workspace, or why it refuses. The choice is marked with *. Times are those
    of one thread, or of a GPU, the oldest that the target names; there the limit of the machine that the time comes
    from is told too, and of an artifact what its kernels take.

    Below each problem stands what was chosen and why: tuned (a record of this very problem), transferred (of one near
    it) or modelled; with its own bound, and the error that tuning measured, relative to the output range. LAYER is a
    part of a node's name, or the number of a layer.
    """
    asked = subject_of(subject)
    target, max_rel_err, found = _explained(asked, given)
    if layer and asked.kind == "problem":
        raise UsageError("LAYER applies to models and artifacts only")
    kept = [e for e in found if layer is None or any(_fits(layer, number, name) for number, name in e.layers)]
    if not kept:
        raise UsageError(f"no convolution in {subject} is called '{layer}'; `convc explain {subject}` lists them all")
    from convc.plan import explain_problem
    from convc.problem import Problem

    gpu = target.kind == "cuda"
    rows = {e.problem: explain_problem(Problem.parse(e.problem), target, max_rel_err=max_rel_err) for e in kept}
    parts: list[str | Table] = []
    for explained in kept:
        parts += [_headline(explained), _table(rows[explained.problem], explained.algorithm, gpu=gpu), ""]
    document = [asdict(e) | {"algorithms": [asdict(row) for row in rows[e.problem]]} for e in kept]
    console.result({"target": target.label, "problems": document}, *parts, f"for {target.label}")


def _fits(asked: str, number: int, name: str) -> bool:
    return asked == str(number) if asked.isdigit() else asked in name


def _explained(asked: Subject, given: Mapping[str, Any]) -> tuple[Target, float, list[Explained]]:
    """The target, the bound that choices had to keep, and what was chosen."""
    from convc.target import parse_target

    if asked.kind == "artifact":
        return _of_artifact(asked, given)
    building = options.building({**given, "target": given["target"] or DEFAULT_TARGET})
    from convc.tune.lookup import lookup_for

    known = lookup_for(parse_target(building["target"], threads=building["threads"]), building["records"])
    limit: float = building["max_rel_err"]
    if asked.kind == "problem":
        return known.target, limit, [_of_problem(asked.problem.canonical, known, max_rel_err=limit)]
    from convc.pipeline import run_until
    from convc.plan.epilogue import epilogue_of

    assert asked.path is not None
    plan = run_until("chosen", asked.path, **building)
    found = []
    for i, group in enumerate(plan.groups):
        if group.problem is not None:
            choice = plan.choices.get(group)
            record = known.behind(group.problem, epilogue_of(group), choice) if choice else None
            found.append(_chosen(group.problem, choice, record, ((i, ", ".join(group.origin)),)))
    return known.target, limit, _merged(found)


def _of_problem(problem: Problem, known: Lookup, *, max_rel_err: float) -> Explained:
    """Alone and without an epilogue: the fastest of its records, else the model's best."""
    from convc.plan.offers import offers, within

    found = [
        m for m in known(problem, "none")
        if within(m.choice.entry, problem, m.choice.config, max_rel_err)
    ]  # fmt: skip
    if found:
        best = min(found, key=lambda m: m.seconds)
        return _chosen(problem, best.choice, best)
    modelled = offers(problem, known.target, max_rel_err=max_rel_err)
    return _chosen(problem, min(modelled, key=lambda o: o.seconds).choice if modelled else None, None)


def _chosen(
    problem: Problem, choice: Choice | None, record: Measured | None, layers: tuple[tuple[int, str], ...] = ()
) -> Explained:
    from convc.plan.offers import bound_of

    if choice is None:
        return Explained(str(problem), layers, "")
    source, measured = (record.origin, record.error) if record else ("modelled", None)
    return Explained(str(problem), layers, str(choice), source, bound_of(problem, choice), measured)


def _of_artifact(asked: Subject, given: Mapping[str, Any]) -> tuple[Target, float, list[Explained]]:
    from convc.runtime.artifact import Artifact
    from convc.target import parse_target

    bounded = click.get_current_context().get_parameter_source("max_rel_err") is ParameterSource.COMMANDLINE
    settled = {
        "--target": given["target"], "--threads": given["threads"], "--shape": given["shapes"],
        "--max-rel-err": bounded,
    }  # fmt: skip
    if used := [flag for flag, value in settled.items() if value]:
        raise UsageError(f"{used[0]} is settled in {asked.text} already")
    assert asked.path is not None
    artifact = Artifact.open(asked.path)
    found = [
        Explained(
            layer.problem, ((layer.index, ", ".join(layer.origin)),), layer.choice, layer.source or "",
            layer.bound, layer.measured, _taken(artifact, layer.symbol),
        )
        for layer in artifact.layers
        if layer.problem
    ]  # fmt: skip
    limit = artifact.manifest["options"].get("max_rel_err", given["max_rel_err"])
    return parse_target(artifact.manifest["target"]["text"]), limit, _merged(found)


def _taken(artifact: Artifact, symbol: str) -> Taken | None:
    if artifact.kind != "cuda":
        return None
    function = artifact.program.functions[symbol]
    used = [(u, launch.shared) for launch in function.launches for u in function.usage[launch.kernel]]
    return _most(Taken(u.registers, u.shared + shared, u.spill_stores + u.spill_loads) for u, shared in used)


def _most(each: Iterable[Taken | None]) -> Taken | None:
    found = [one for one in each if one]
    most = (max(getattr(one, name) for one in found) for name in ("registers", "shared", "spilled") if found)
    return Taken(*most) if found else None


def _merged(each: Iterable[Explained]) -> list[Explained]:
    """Layers of the same problem, choice and source together, in order of their first."""
    found: dict[tuple[str, str, str], Explained] = {}
    for one in each:
        had = found.setdefault(key := (one.problem, one.choice, one.source), one)
        if had is not one:
            errors = [e.measured for e in (had, one) if e.measured is not None]
            found[key] = replace(
                had, layers=had.layers + one.layers, measured=max(errors, default=None),
                taken=_most((had.taken, one.taken)),
            )  # fmt: skip
    return list(found.values())


def _headline(explained: Explained) -> str:
    chosen = f"\n  {explained.source}: {explained.choice}{_errors(explained)}" if explained.choice else ""
    chosen += f"\n  {_taken_text(explained.taken)}" if explained.taken else ""
    if not explained.layers:
        return explained.problem + chosen
    names = "; ".join(f"{number} {name}" for number, name in explained.layers[:4])
    more = f"; and {len(explained.layers) - 4} more" if len(explained.layers) > 4 else ""
    return f"{explained.problem}\n  layers: {names}{more}{chosen}"


def _errors(explained: Explained) -> str:
    """Of the choice: the bound, and beside it what was measured."""
    measured = "" if explained.measured is None else f"{explained.measured:.1e} measured, "
    return "" if explained.bound is None else f"; error {measured}bound {explained.bound:.1e}"


def _taken_text(taken: Taken) -> str:
    spilled = f"{taken.spilled} bytes spilled" if taken.spilled else "nothing spilled"
    return f"takes up to {taken.registers} registers a thread, {bytes_text(taken.shared)} shared a block; {spilled}"


def _table(rows: list[Row], choice: str, *, gpu: bool) -> Table:
    cells = [_cells(row, row.algorithm == choice, gpu=gpu) for row in rows]
    marked = [i for i, row in enumerate(rows) if row.algorithm == choice]
    limit = ("limit",) if gpu else ()
    columns = ("", "algorithm", ">us", *limit, ">error bound", ">workspace", "config, or why not")
    return table(columns, cells, marked=marked)


def _cells(row: Row, is_choice: bool, *, gpu: bool) -> tuple[str, ...]:
    mark, limit = "*" if is_choice else "", (row.limit or "",) if gpu else ()
    if row.us is None or row.error is None or row.memory is None:
        return mark, row.algorithm, "", *limit, "", "", row.refusal or ""
    return mark, row.algorithm, us_text(row.us), *limit, f"{row.error:.1e}", bytes_text(row.memory), row.config
