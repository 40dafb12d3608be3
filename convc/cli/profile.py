"""`convc profile`: where the time goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.data import inputs_for
from convc.cli.verb import verb
from convc.report.table import Table, bytes_text, percent_text, table, us_text

if TYPE_CHECKING:
    from convc.report.profile import Profile, Row


@verb("convc profile model.convc", "convc profile model.convc --sort time", summary="Time of every kernel.")
@click.argument("artifact", metavar="X.convc", type=options.FILE)
@click.option("--sort", type=click.Choice(["order", "time"]), default="order", show_default=True, help="Order of rows.")
@click.option("--rounds", type=click.IntRange(1, 10_000), help="Times to measure. Default: what fits some seconds.")
@options.inputs
@options.seed
@click.option("--threads", type=options.THREADS, default=1, show_default=True, help="Threads to run on.")
def command(
    console: Console, artifact: Path, sort: str, rounds: int | None, inputs: Path | None, seed: int, threads: int
) -> None:
    """Step through X.convc kernel by kernel and tell the median time of each, how fast it computes and moves data, and
    its fraction of what this machine was measured to do at most. FLOP counts are those of the direct algorithm, so an
    algorithm that saves multiplications may exceed 100 % of the peak. On a GPU the times are the device's own, and its
    peak is not measured."""
    from convc.report.machine import pick_cpus, pinned, this_machine
    from convc.report.peak import peak_or_none
    from convc.report.profile import profile
    from convc.runtime.loader import load

    machine, cpus = this_machine(), pick_cpus(threads)
    with pinned(cpus):
        module = load(artifact, threads=threads)
        peak = None if module.gpu else peak_or_none(threads=threads)
        types = {port.name: port.type for port in module.inputs}
        bound = module.bind(inputs_for(types, path=inputs, seed=seed))
        with console.progress() as told:
            found = profile(
                bound, gflops_peak=peak.gflops if peak else None, rounds=rounds,
                told=lambda done, total: told("rounds", done, total),
            )  # fmt: skip
    rows = sorted(found.rows, key=lambda row: -row.us) if sort == "time" else list(found.rows)
    limits = f", peak {peak.gflops:.0f} GFLOP/s, memory {peak.gbytes:.0f} GB/s" if peak else ", peak unknown"
    console.result(
        {
            "machine": machine, "cpus": cpus, "gpu": module.gpu, "threads": threads, "peak": peak,
            "rounds": found.whole.rounds,
            "total_us": found.total, "whole_us": found.whole.median, "whole_spread_us": found.whole.spread,
            "relayout_share": found.relayout, "generic_share": found.generic, "overhead": found.overhead,
            "stepping_us": found.stepping,
            "calls": [_document(row) for row in rows],
        },
        _table(rows),
        "",
        *_footer(found),
        module.gpu or f"{machine.cpu}, CPUs {', '.join(map(str, cpus))}, threads {threads}{limits}",
    )  # fmt: skip


def _document(row: Row) -> dict[str, object]:
    layer = row.layer
    return {
        "index": layer.index, "origin": layer.origin, "ops": layer.ops, "algorithm": layer.algorithm,
        "problem": layer.problem, "us": row.us, "spread_us": row.spread, "share": row.share, "flops": layer.flops,
        "bytes": layer.bytes, "gflops": row.gflops, "of_peak": row.of_peak, "gbytes": row.gbytes,
    }  # fmt: skip


def _table(rows: list[Row]) -> Table:
    from convc.report.names import kernel_name, layer_name

    cells = [
        (
            row.layer.index, layer_name(row.layer), kernel_name(row.layer), us_text(row.us), percent_text(row.share),
            f"{row.gflops:.1f}" if row.layer.flops else "",
            "" if row.of_peak is None else f"{100 * row.of_peak:.0f} %",
            bytes_text(row.layer.bytes), f"{row.gbytes:.1f}", row.layer.type,
        )
        for row in rows
    ]  # fmt: skip
    columns = ("#", "layer", "kernel", ">us", ">share", ">GFLOP/s", ">of peak", ">data", ">GB/s", "result")
    return table(columns, cells)


def _footer(found: Profile) -> list[str]:
    return [
        f"sum of {len(found.rows)} calls {us_text(found.total)} us, after {us_text(found.stepping)} us taken off each "
        f"for stepping; a whole run {us_text(found.whole.median)} us (+- {us_text(found.whole.spread)}), "
        f"of which {percent_text(found.overhead)} between the calls",
        f"layout changes {percent_text(found.relayout)}, generic kernels {percent_text(found.generic)} of the sum",
    ]
