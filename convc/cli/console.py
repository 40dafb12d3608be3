"""What every verb writes with: the result to stdout, as text or JSON; notes and progress to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import click

from convc.cli.failure import NEWLINE, Failure
from convc.errors import ConvcError
from convc.report.table import Table, clean, draw

SCHEMA = 1
SECONDS_BETWEEN_LINES = 30

Progress = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Console:
    verb: str
    as_json: bool

    def result(self, document: Mapping[str, Any], *parts: str | Table, error: ConvcError | None = None) -> None:
        """Print `document` as JSON, or `parts` for people; with `error` the result is bad news and the verb ends."""
        failure = Failure(error.exit_code, str(error)) if error else None
        if self.as_json:
            tail = {"error": failure.document} if failure else {}
            whole = {"schema": SCHEMA, "verb": self.verb, **document, **tail}
            click.echo(json.dumps(plain(whole), indent=2))
        else:
            for part in parts:
                click.echo(draw(part) if isinstance(part, Table) else clean(part, keep=NEWLINE))
            if failure:
                click.echo(f"convc: {clean(failure.message, keep=NEWLINE)}", err=True)
        if failure:
            raise click.exceptions.Exit(failure.code)

    def note(self, text: str) -> None:
        click.echo(text, err=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar on a terminal; elsewhere a line now and then, so that a log shows that something happens."""
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            with _bar() as told:
                yield told
        else:
            yield _lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=RichConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)


def _lines() -> Progress:
    last = time.monotonic()

    def told(stage: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            click.echo(f"{stage}: {done} of {total}", err=True)

    return told


def plain(value: Any) -> Any:
    """`value` in JSON's types. Numbers that JSON lacks (infinite, not a number) become null."""
    match value:
        case float():
            return float(value) if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case Path():
            return str(value)
        case Sequence() | set() | frozenset():
            return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return plain(value.item()) if hasattr(value, "item") else str(value)
