"""`convc doctor`: is everything here that convc needs?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.verb import verb
from convc.errors import MissingDependencyError
from convc.report.table import table

if TYPE_CHECKING:
    from convc.rates import Rates


@verb("convc doctor", "convc doctor --measure", "convc doctor --json > report.json", summary="Check this machine.")
@click.option("--measure", is_flag=True, help="Also measure this machine: its peak and the rates of its cores.")
@click.option("--threads", type=options.THREADS, default=1, show_default=True, help="Threads to measure with.")
@options.records
def command(console: Console, measure: bool, threads: int, records: Path | None) -> None:
    """Check packages, compilers, processor, threads and GPU, and say what to do about what is wrong; exits with 5 where
    something is that all of convc needs: what only GPUs need is told where it is absent, and no fault.

    With --measure, `profile` and `tune` tell times as fractions of the peak, and the models that rank configs count
    with the rates, which are kept with the tuning logs. Leave the machine alone for these few seconds.
    """
    from convc.report.doctor import MARKS, checks
    from convc.report.machine import package_version, this_machine
    from convc.report.peak import peak

    found = list(checks())
    bad = [check.name for check in found if check.state == "bad"]
    limits = peak(threads=threads, fresh=True) if measure else None
    rates = _measured_rates(records) if measure else None
    peaks = f"peak on {threads} threads: {limits.gflops:.1f} GFLOP/s, {limits.gbytes:.1f} GB/s" if limits else ""
    version, machine = package_version("convc"), this_machine()
    wrong = f"{len(bad)} checks failed: {', '.join(bad)}"
    console.result(
        {"convc": version, "machine": machine, "checks": found, "peak": limits, "rates": rates, "passed": not bad},
        wrong if bad else "everything convc needs is here",
        "",
        table(("", "check", "found", "advice"), [(MARKS[c.state], c.name, c.found, c.advice) for c in found]),
        *(["", peaks] if peaks else []),
        *([f"a core: {_text(rates)}"] if rates else []),
        error=MissingDependencyError(wrong) if bad else None,
    )


def _measured_rates(records: Path | None) -> Rates:
    from convc.report.rates import keep, measure
    from convc.target import parse_target
    from convc.tune.log import default_folder

    target = parse_target("native")
    rates = measure(target)
    keep(rates, target.label, records or default_folder())
    return rates


def _text(rates: Rates) -> str:
    return (
        f"{rates.clock / 1e9:.2f} GHz, {rates.fma:g} multiply-adds and {rates.load:g} loads of vectors a cycle, "
        f"latency {rates.latency:g}; {rates.l2:g} bytes a cycle from L2, {rates.far:g} from beyond"
    )
