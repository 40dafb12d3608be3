"""`convc doctor`: is everything here that convc needs?"""

from __future__ import annotations

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.verb import verb
from convc.errors import MissingDependencyError
from convc.report.table import table


@verb("convc doctor", "convc doctor --measure", "convc doctor --json > report.json", summary="Check this machine.")
@click.option("--measure", is_flag=True, help="Also measure what this machine can do at most; `profile` uses it.")
@click.option("--threads", type=options.THREADS, default=1, show_default=True, help="Threads to measure with.")
def command(console: Console, measure: bool, threads: int) -> None:
    """Check packages, C compiler, processor and threads, and say what to do about what is wrong; exits with 5 then."""
    from convc.report.doctor import MARKS, checks
    from convc.report.machine import package_version, this_machine
    from convc.report.peak import peak

    found = list(checks())
    bad = [check.name for check in found if check.state == "bad"]
    limits = peak(threads=threads, fresh=True) if measure else None
    peaks = f"peak on {threads} threads: {limits.gflops:.1f} GFLOP/s, {limits.gbytes:.1f} GB/s" if limits else ""
    version, machine = package_version("convc"), this_machine()
    wrong = f"{len(bad)} checks failed: {', '.join(bad)}"
    console.result(
        {"convc": version, "machine": machine, "checks": found, "peak": limits, "passed": not bad},
        wrong if bad else "everything convc needs is here",
        "",
        table(("", "check", "found", "advice"), [(MARKS[c.state], c.name, c.found, c.advice) for c in found]),
        *(["", peaks] if peaks else []),
        error=MissingDependencyError(wrong) if bad else None,
    )
