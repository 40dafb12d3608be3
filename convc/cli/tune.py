"""`convc tune`: measure candidates within a budget and keep the best for `compile`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.subject import Subject, subject_of
from convc.cli.verb import verb
from convc.errors import UnsupportedError, UsageError
from convc.report.table import Table, table, us_text

if TYPE_CHECKING:
    from convc.plan.offers import Records
    from convc.plan.plan import Plan
    from convc.target import Target
    from convc.tune.device import Device
    from convc.tune.session import Progress
    from convc.tune.tuner import Outcome, Row, Source, Tuner

BUDGET = 600.0  # seconds, where nothing says
CLOSING = 1.0  # seconds of the budget that are kept for the logs and the table
INTERRUPTED = 130


@verb(
    "convc tune model.onnx --budget 10m",
    "convc tune model.onnx --target cpu/znver3 --threads 2 --records tuning/",
    "convc tune mb1_ic64ih56_oc64oh56_kh3ph1 mb1_ic256ih14_oc1024oh14_kh1 --trials 200",
    "convc tune model.onnx --target cpu/cortex-a72 --rpc-tracker 10.0.0.1:9190 --rpc-key rasp4",
    "convc tune model.onnx --target cpu/znver4 --export jobs.zip",
    "convc tune --run jobs.zip --records measured/",
    summary="Measure and record the best configs.",
)
@click.argument("subjects", nargs=-1, metavar="MODEL|PROBLEM...")
@options.target
@options.build_threads
@options.shape
@click.option("--budget", type=options.Duration(),
              help="Wall clock of the whole session. Default: 10m, or what JOBS says.")
@click.option("--trials", "most", type=click.IntRange(1), help="Most candidates to measure. Default: no limit.")
@options.records
@click.option("--epilogue", metavar="CLASS", default="short", show_default=True,
              help="Of a PROBLEM: none, short, residual or long.")
@options.rpc_tracker
@options.rpc_key
@click.option("--export", type=options.FILE, metavar="JOBS", help="Only write down what is to be tuned, and for what.")
@click.option("--run", type=options.FILE, metavar="JOBS", help="Tune what was written down elsewhere.")
def command(
    console: Console, subjects: tuple[str, ...], target: str, threads: int | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...], budget: float | None, most: int | None, records: Path | None,
    epilogue: str, rpc_tracker: str | None, rpc_key: str | None, export: Path | None, run: Path | None,
) -> None:  # fmt: skip
    """Tune networks and single convolutions for a machine: this one, or one behind an RPC tracker.

    The time goes where most of the network's time is still to be gained, and ends early where that is less than 1 %.
    Every trial is written down at once, refused ones with the reason; the best of each problem goes into the log
    that `compile` reads. To resume, run the same command again: what was measured is not measured twice.

    A device behind a tracker needs no convc, only `TVM_USE_RUNTIME_LIB=1 python -m tvm.exec.rpc_server --tracker
    HOST:PORT --key KEY`; devices of one kind under a key share the work. Whoever reaches a device can run code on it,
    so keep both within a trusted network. For a machine that cannot be reached: --export here, --run there, and
    `convc records merge` here with what comes back.
    """
    begun = time.monotonic()
    from convc.target import parse_target
    from convc.tune.log import default_folder
    from convc.tune.lookup import lookup_for

    folder = records or default_folder()
    if run is not None:
        if subjects or export or target != "native" or threads or shapes:
            raise UsageError("--run tunes what its file says: it takes no MODEL or PROBLEM and no flags about them")
        machine, sources, budget, most = _written_down(run, folder, budget, most)
    else:
        asked = parse_target(target, threads=threads)
        _check_is_tuned(asked)
        machine = lookup_for(asked, folder).target
        sources = _sources(_subjects(subjects), machine, dict(shapes), epilogue)
    budget = BUDGET if budget is None else budget
    if export is not None:
        _export(console, export, machine, sources, folder, budget, most)
        return
    deadline = begun + max(0.0, budget - CLOSING)
    with _tuner(console, machine, folder, deadline, most, (rpc_tracker, rpc_key)) as tuner:
        outcome = tuner.run(sources)
    console.result(_document(outcome, machine), *_text(outcome, machine), "", *_closing(console, outcome, subjects))
    if outcome.interrupted:
        raise click.exceptions.Exit(INTERRUPTED)


def _check_is_tuned(machine: Target) -> None:
    if machine.kind == "cuda":
        raise UnsupportedError(
            f"{machine.label}: this version of convc tunes CPUs only; for GPUs `convc compile` takes what its model of "
            "the GPU ranks first, and `convc explain` shows that ranking"
        )


def _subjects(texts: Sequence[str]) -> list[Subject]:
    asked = [subject_of(text) for text in texts]
    if not asked:
        raise UsageError("nothing to tune: name a MODEL, a PROBLEM, or with --run a file of jobs")
    if wrong := [s for s in asked if s.kind == "artifact"]:
        raise UsageError(f"{wrong[0].text} is an artifact; tune the model that it was made of")
    return asked


def _written_down(
    path: Path, folder: Path, budget: float | None, most: int | None
) -> tuple[Target, list[Source], float, int | None]:
    """What the file says; flags go before it."""
    from convc.tune.jobs import read_jobs
    from convc.tune.lookup import lookup_for

    jobs = read_jobs(path)
    budget = jobs.budget if budget is None else budget
    machine = lookup_for(jobs.target, folder).target
    return machine, [lambda records: jobs.tasks], budget, jobs.trials if most is None else most


def _export(
    console: Console, path: Path, machine: Target, sources: Sequence[Source], folder: Path, budget: float,
    most: int | None,
) -> None:  # fmt: skip
    from convc.tune.jobs import Jobs, write_jobs
    from convc.tune.lookup import lookup_for
    from convc.tune.tuner import asked

    tasks = asked(sources, lookup_for(machine, folder))
    if not tasks:
        raise UnsupportedError("nothing to tune: no float32 convolution has an algorithm with a choice")
    write_jobs(path, Jobs(machine, budget, most, tasks))
    console.result(
        {"jobs": path, "target": machine.label, "threads": machine.threads, "budget": budget, "tasks": len(tasks)},
        f"{path}: {len(tasks)} task{'s' * (len(tasks) > 1)} for {machine.label}; on such a machine:",
        f"  convc tune --run {path.name} --records measured/",
        "and here, with what comes back:",
        "  convc records merge measured/ --into DIR",
    )


def _sources(asked: Sequence[Subject], machine: Target, shapes: dict[str, Any], epilogue: str) -> list[Source]:
    from convc.pipeline import run_until
    from convc.plan import select
    from convc.plan.offers import MAX_REL_ERR
    from convc.tune.tuner import Network, problems
    from convc.tune.workload import Workload

    def chosen(plan: Plan, records: Records) -> Plan:
        return select(plan, machine, max_rel_err=MAX_REL_ERR, records=records)

    single = [Workload(s.problem.canonical, epilogue) for s in asked if s.kind == "problem"]
    found = [problems(single, machine)] if single else []
    for subject in asked:
        if subject.path is not None:
            plan = run_until("plan", subject.path, target=str(machine), shapes=shapes)
            found.append(Network(plan, chosen))
    return found


@contextmanager
def _tuner(
    console: Console, machine: Target, folder: Path, deadline: float, most: int | None,
    rpc: tuple[str | None, str | None],
) -> Iterator[Tuner]:  # fmt: skip
    from convc.tune.build import Builders
    from convc.tune.trials import Trials
    from convc.tune.tuner import Tuner

    device, limit = _behind_tracker(console, machine, *rpc) if any(rpc) else _here(machine)
    try:
        with Builders(machine) as builders, _display(console) as told:
            yield Tuner(Trials(machine, builders, device, limit), deadline, folder, most, told)
    finally:
        device.close()


def _here(machine: Target) -> tuple[Device, float | None]:
    """This machine, and the GFLOP/s that it has at most."""
    from convc.report.machine import pick_cpus
    from convc.report.peak import peak
    from convc.tune.device import LocalDevice

    _check_runs_here(machine)
    return LocalDevice(cpus=pick_cpus(machine.threads)), peak(threads=machine.threads).gflops


def _behind_tracker(console: Console, machine: Target, address: str | None, key: str | None) -> tuple[Device, None]:
    """Devices; what they have at most is not known, as only this machine is asked for that."""
    import sys

    from convc.tune.fleet import Fleet
    from convc.tune.tracker import Tracker

    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the line of state, which is drawn anew after the next batch
    return Fleet(Tracker.parse(address, key), machine, told=lambda note: console.note(clear + note)), None


def _check_runs_here(machine: Target) -> None:
    from convc.errors import TargetMismatchError
    from convc.runtime.features import runs_here

    if not runs_here(machine):
        raise TargetMismatchError(
            f"code for {machine.label} does not run on this machine; tune on one that it does run on, with "
            "--rpc-tracker HOST:PORT --rpc-key KEY"
        )


@contextmanager
def _display(console: Console) -> Iterator[Callable[[Progress], None]]:
    """One line of state on a terminal, one every while elsewhere; drawn between batches only, so that nothing but the
    candidate runs while one is timed."""
    import sys

    is_terminal = sys.stderr.isatty()
    last = 0.0

    def told(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if is_terminal:
            click.echo(f"\r\x1b[K{_state(progress)}", err=True, nl=False)
        elif now - last >= 5:
            last = now
            console.note(_state(progress))

    yield told
    if is_terminal:
        click.echo("\r\x1b[K", err=True, nl=False)


def _state(p: Progress) -> str:
    saved = f"x{p.default_us / p.us:.3f}" if p.us else ""
    best = ""
    if p.best and p.best.us:
        share = f", {100 * p.best.peak:.0f} % of peak" if p.best.peak else ""
        best = f" · best: {p.best.choice[:48]} {us_text(p.best.us)} us{share}"
    return (
        f"{p.trials} trials, {p.refused} refused · {p.settled} of {p.tasks} tasks settled · {us_text(p.us)} us, "
        f"{saved} so far, {100 * p.gain:.1f} % expected · {p.left:.0f} s left{best}"
    )


def _document(outcome: Outcome, machine: Target) -> dict[str, Any]:
    def row(r: Row) -> dict[str, Any]:
        record = r.record
        return {
            "task": r.task, "weight": r.weight, "default_us": r.default_us, "us": r.us, "trials": r.trials,
            "choice": record.choice if record else None, "peak": record.peak if record else None,
        }  # fmt: skip

    return {
        "target": machine.label, "threads": machine.threads, "trials": outcome.trials, "refused": outcome.refused,
        "default_us": outcome.default_us, "us": outcome.us, "seconds": round(outcome.seconds, 2),
        "records": outcome.log, "interrupted": outcome.interrupted, "tasks": [row(r) for r in outcome.rows],
    }  # fmt: skip


def _text(outcome: Outcome, machine: Target) -> Iterator[str | Table]:
    rows = sorted(outcome.rows, key=lambda r: -(r.us or 0.0) * r.weight)
    yield table(
        (">calls", "task", ">untuned us", ">us", ">gain", ">of peak", ">trials", "config"),
        [_cells(r) for r in rows],
    )
    yield ""
    gain = outcome.default_us / outcome.us if outcome.us else 1.0
    yield (
        f"{machine.label}, {machine.threads} thread{'s' * (machine.threads > 1)}: {outcome.trials} trials, "
        f"{outcome.refused} refused, in {outcome.seconds:.0f} s; convolutions {us_text(outcome.default_us)} -> "
        f"{us_text(outcome.us)} us, x{gain:.3f}"
    )


def _cells(r: Row) -> tuple[str, ...]:
    default, us = r.default_us, r.us
    gain = f"x{default / us:.2f}" if default and us else ""
    peak = f"{100 * r.record.peak:.0f} %" if r.record and r.record.peak else ""
    return (
        str(r.weight), r.task, us_text(default) if default else "", us_text(us) if us else "", gain, peak,
        str(r.trials), r.record.choice if r.record else "no candidate was right",
    )  # fmt: skip


def _closing(console: Console, outcome: Outcome, subjects: Sequence[str]) -> Iterator[str]:
    if outcome.interrupted:
        yield f"interrupted; everything measured is in {outcome.log}, and the same command goes on from there:"
        yield f"  {_command_line()}"
    else:
        yield f"records are in {outcome.log}; `convc compile` uses them"


def _command_line() -> str:
    import shlex
    import sys

    return shlex.join(["convc", *sys.argv[1:]])
