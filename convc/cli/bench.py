"""`convc bench`: how fast, and against whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from convc.cli import options, subject
from convc.cli.console import Console
from convc.cli.data import inputs_for
from convc.cli.subject import Subject, compiled, model_file, subject_of
from convc.cli.verb import verb
from convc.errors import ConvcError, UsageError
from convc.report.table import Table, table, us_text

if TYPE_CHECKING:
    from convc.peers import Task
    from convc.report.timing import Timing
    from convc.runtime.artifact import Artifact

VS = ("ort", "openvino", "torch")


@dataclass(frozen=True)
class Result:
    """Of one runtime: timing (None where it did not run, then `note` says why), time relative to convc's, GFLOP/s, and
    how far its outputs are from convc's (relative L2)."""

    runtime: str
    version: str
    timing: Timing | None = None
    ratio: float | None = None
    gflops: float | None = None
    difference: float | None = None
    note: str = ""


@verb(
    "convc bench model.convc --model model.onnx --vs ort,openvino",
    "convc bench mb1_ic64ih56_oc64oh56_kh3ph1 --vs ort,torch",
    "convc bench model.onnx --vs ort --json > baseline.json",
    "convc bench model.onnx --vs ort --assert baseline.json --tol 5%",
    summary="Speed, side by side with other runtimes.",
)
@subject.argument
@click.option("--vs", type=options.Words(VS), default=(), help=f"Runtimes to compare with: {', '.join(VS)}.")
@click.option("--model", type=options.FILE, help="The ONNX model of X.convc, for the other runtimes.")
@click.option("--threads", type=options.THREADS, default=1, show_default=True, help="Threads of each runtime on CPUs.")
@click.option("--rounds", type=click.IntRange(1, 10_000), help="Times to measure. Default: what fits ten seconds.")
@click.option("--assert", "baseline", type=options.FILE, help="Earlier `bench --json`; exit with 8 where slower.")
@click.option("--tol", type=options.Fraction(), default="5%", show_default=True, help="Slowdown that --assert allows.")
@options.target
@options.shape
@options.max_rel_err
@options.inputs
@options.seed
def command(
    console: Console, subject: str, vs: tuple[str, ...], model: Path | None, threads: int, rounds: int | None,
    baseline: Path | None, tol: float, target: str, shapes: tuple[tuple[str, tuple[int, ...]], ...],
    max_rel_err: float, inputs: Path | None, seed: int,
) -> None:  # fmt: skip
    """Measure an artifact, a model or a single convolution, alone or side by side with other runtimes at float32.

    On one thread all run in one process, pinned to one CPU; on more each has a process of its own and they take turns.
    In every round each runs once in random order, after one run that is not measured. Times are medians, spreads
    median absolute deviations; ratios above 1 mean that convc is faster. On a GPU convc's times are the device's own,
    without the copies from and to the host.
    """
    from convc.peers import check_installed
    from convc.report.gate import baseline_of, gate_error, read_baseline, slowdowns
    from convc.report.machine import pick_cpus, pinned, this_machine

    check_installed(vs)
    earlier = read_baseline(baseline) if baseline else None
    asked = subject_of(subject)
    if asked.kind != "model" and shapes:
        raise UsageError("--shape applies to models only")
    building = {"target": target, "shapes": dict(shapes), "max_rel_err": max_rel_err}
    with _task(console, asked, model, threads, building) as (task, artifact):
        gpu = artifact.check_machine()
        ports = {port.name: port.type for port in artifact.inputs}
        task = replace(task, inputs=inputs_for(ports, path=inputs, seed=seed))
        machine, cpus = this_machine(), pick_cpus(threads)
        if len(cpus) < threads:
            console.note(f"note: {threads} threads share {len(cpus)} CPUs")
        with pinned(cpus):
            results = _results(console, task, ("convc", *vs), rounds, sum(layer.flops for layer in artifact.layers))
    document: dict[str, Any] = {
        "subject": _name(asked), "threads": threads, "target": artifact.manifest["target"]["label"],
        "machine": machine, "cpus": cpus, "gpu": gpu, "results": [_document(result) for result in results],
    }  # fmt: skip
    error = None
    if earlier and baseline:
        slower = slowdowns(earlier, baseline_of(document), tolerance=tol, path=baseline)
        error = gate_error(slower, tolerance=tol, path=baseline)
    count = next(result.timing.rounds for result in results if result.timing)
    where = f"CPU{'s' if len(cpus) > 1 else ''} {', '.join(map(str, cpus))}" + (f", {gpu}" if gpu else "")
    console.result(
        document,
        _table(results),
        "",
        f"{machine.cpu}, {where}, threads {threads}, {count} rounds, artifact for {document['target']}",
        *([f"no slower than {baseline} allows ({100 * tol:g} %)"] if earlier and not error else []),
        error=error,
    )


def _name(asked: Subject) -> str:
    """What a baseline is of: a problem in full, a file by its name without its ending."""
    return str(asked.problem) if asked.path is None else asked.path.stem


@contextmanager
def _task(
    console: Console, asked: Subject, model: Path | None, threads: int, building: Mapping[str, Any]
) -> Iterator[tuple[Task, Artifact]]:
    """The files that all runtimes run, without inputs yet."""
    from convc.peers import Task
    from convc.report.layers import check_model
    from convc.runtime.artifact import Artifact
    from convc.runtime.features import check_target, target_row
    from convc.target import parse_target

    with ExitStack() as stack:
        if asked.kind == "artifact":
            assert asked.path is not None
            path, artifact = asked.path, Artifact.open(asked.path)
            if model:
                check_model(artifact, model)
        else:
            if model:
                raise UsageError("--model belongs to an artifact; this subject is compiled now")
            machine = parse_target(building["target"])
            check_target(target_row(machine))  # before minutes are spent on what cannot run
            model = stack.enter_context(model_file(asked))
            threads_to_split_for = None if machine.kind == "cuda" else threads
            artifact = compiled(console, model, threads=threads_to_split_for, **building)
            path = Path(stack.enter_context(TemporaryDirectory(prefix="convc-"))) / "model.convc"
            artifact.save(path)
        outputs = {port.name: port.type for port in artifact.outputs}
        problem = asked.problem if asked.kind == "problem" else None
        yield Task(path, model, {}, outputs, threads, problem), artifact


def _results(console: Console, task: Task, names: tuple[str, ...], rounds: int | None, flops: int) -> list[Result]:
    from convc.peers import RUNTIMES
    from convc.report.accuracy import accuracy, worst
    from convc.report.timing import race

    refused = {name: reason for name in names if (reason := RUNTIMES[name].refuses(task))}
    with ExitStack() as stack:
        opened: dict[str, Any] = {}
        for name in names:
            if name not in refused:
                try:
                    opened[name] = stack.enter_context(_opened(name, task))
                except ConvcError as error:
                    if name == "convc":
                        raise
                    refused[name] = str(error)
        with console.progress() as told:
            timings = race(
                {name: one.measure for name, one in opened.items()}, rounds=rounds,
                told=lambda done, total: told("rounds", done, total),
            )  # fmt: skip
        outputs = {name: one.outputs() for name, one in opened.items()}
    ours, found = outputs["convc"], []
    for name in names:
        version = RUNTIMES[name].version
        if name in refused:
            found.append(Result(name, version, note=refused[name]))
            continue
        timing = timings[name]
        distance = worst({key: accuracy(value, ours[key]) for key, value in outputs[name].items()}).rel_l2
        ratio = timing.median / timings["convc"].median
        found.append(Result(name, version, timing, ratio, flops / timing.median / 1e3, distance))
    return found


@contextmanager
def _opened(name: str, task: Task) -> Iterator[Any]:
    """Something with `measure` and `outputs`: here on one thread, in a process of its own on more."""
    from convc.report.apart import apart, together

    with (together if task.threads == 1 else apart)(name, task) as one:
        yield one


def _document(result: Result) -> dict[str, Any]:
    timing = result.timing
    return {
        "runtime": result.runtime, "version": result.version, "us": timing.median if timing else None,
        "spread_us": timing.spread if timing else None, "least_us": timing.least if timing else None,
        "rounds": timing.rounds if timing else None, "ratio": result.ratio, "gflops": result.gflops,
        "difference": result.difference, "note": result.note,
    }  # fmt: skip


def _table(results: list[Result]) -> Table:
    from convc.peers import RUNTIMES

    return table(
        ("runtime", "version", ">us", ">spread", ">convc is", ">GFLOP/s", ">difference", ""),
        [(RUNTIMES[r.runtime].title, r.version, *_numbers(r), r.note) for r in results],
        marked=(0,),
    )


def _numbers(result: Result) -> tuple[str, ...]:
    timing = result.timing
    if timing is None or result.ratio is None or result.gflops is None or result.difference is None:
        return "n/a", "", "", "", ""
    if result.runtime == "convc":
        return us_text(timing.median), us_text(timing.spread), "", f"{result.gflops:.1f}", ""
    return (
        us_text(timing.median), us_text(timing.spread), f"x{result.ratio:.2f}", f"{result.gflops:.1f}",
        f"{result.difference:.1e}",
    )  # fmt: skip
