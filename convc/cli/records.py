"""`convc records`: tuning logs and journals, merged, counted, cleaned and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convc.cli import options
from convc.cli.console import Console
from convc.cli.verb import verb
from convc.errors import BadInputError
from convc.report.table import Table, clean, percent_text, table, us_text

if TYPE_CHECKING:
    from convc.tune.journal import BadLine, Reading
    from convc.tune.log import Conflict
    from convc.tune.record import Key, Record

SHOWN = 3  # bad lines that a note names; `convc records lint` names all


@click.group("records", short_help="Tuning logs: merge, count, clean, compare.", no_args_is_help=False)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; also taken behind the action.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """\b
    $ convc records merge rack1/records rack2/journal/night.jsonl --into tuning_logs
    $ convc records stats tuning_logs
    $ convc records lint tuning_logs/*.jsonl

    Work with what tuning has measured. A folder of records holds a log for each target, with the best record of each
    problem, and under journal/ every trial of every session."""
    context.default_map = {name: {"as_json": as_json} for name in command.commands}


def _action(*examples: str, summary: str) -> Callable[[Callable[..., None]], click.Command]:
    """Like `verb`, under the function's own name."""

    def wrap(function: Callable[..., None]) -> click.Command:
        made = verb(*examples, summary=summary)(function)
        made.name = function.__name__
        command.add_command(made)
        return made

    return wrap


@_action(
    "convc records merge session.jsonl other/records --into tuning_logs",
    summary="The best of several logs and journals, into the logs of a folder.",
)
@click.argument("sources", nargs=-1, required=True, type=options.FILE)
@click.option("--into", required=True, type=options.FILE, metavar="DIR", help="Folder of tuning logs; made if need be.")
def merge(console: Console, sources: tuple[Path, ...], into: Path) -> None:
    """Put the fastest ok record of each problem, epilogue, target, number of threads and pair of layouts in SOURCES
    into the logs of DIR. SOURCES are logs, journals, or folders of records with both.

    Records of the installed algorithms go before stale ones. Conflicts are measurements of one config that differ by
    more than three spreads: one of them was disturbed, so measure these again."""
    from convc.tune.log import merge as merge_records

    given = _read(_files(sources))
    found = merge_records(into, given.records)
    reading = replace(given, skipped=given.skipped + len(found.bad), bad=(*given.bad, *found.bad))
    _note(console, reading)
    rows = [("added", record, None) for record in found.added] + [("replaced", new, old) for old, new in found.replaced]
    console.result(
        {
            "action": "merge", "into": into, "read": len(reading.records), "unused": found.unused,
            "added": [asdict(record) for record in found.added],
            "replaced": [{"earlier": asdict(old), "new": asdict(new)} for old, new in found.replaced],
            "conflicts": [asdict(conflict) for conflict in found.conflicts],
            **_skips(reading),
        },
        f"{into}: {len(found.added)} added, {len(found.replaced)} replaced, {found.unused} of {len(reading.records)} "
        "not used",
        *_listed("", ("", "problem", ">us", ">before", "config"), [_merged(*row) for row in rows]),
        *_listed(
            f"{len(found.conflicts)} conflicts, to be measured again:",
            ("problem", "config", "fastest", "slowest"),
            [_conflict(conflict) for conflict in found.conflicts],
        ),
    )  # fmt: skip


def _merged(what: str, record: Record, earlier: Record | None) -> tuple[str, ...]:
    return what, _key_text(record.key), _us(record), _us(earlier) if earlier else "", record.choice


def _conflict(found: Conflict) -> tuple[str, ...]:
    return _key_text(found.fast.key), found.fast.choice, _measured(found.fast), _measured(found.slow)


def _measured(record: Record) -> str:
    return f"{_us(record)} us +- {percent_text(record.spread or 0)}, {record.date}, {record.device}"


@_action("convc records stats tuning_logs", summary="What the logs of a folder hold, and how much of it is usable.")
@click.argument("folder", metavar="[DIR]", required=False, type=options.FILE)
def stats(console: Console, folder: Path | None) -> None:
    """Count the records in the logs of DIR by target, threads and algorithm, and those that are usable: measured with
    the schedule that is installed now. DIR is CONVC_RECORDS or the user's folder unless given."""
    from convc.tune.log import default_folder, logs, usable

    place = default_folder() if folder is None else _folder(folder)
    reading = _read(logs(place))
    _note(console, reading)
    good = set(usable(reading.records).values())
    total: Counter[tuple[str, int, str]] = Counter((r.target, r.threads, r.algorithm) for r in reading.records)
    usable_now: Counter[tuple[str, int, str]] = Counter((r.target, r.threads, r.algorithm) for r in good)
    rows = [(*group, count, usable_now[group]) for group, count in sorted(total.items())]
    names = ("target", "threads", "algorithm", "records", "usable")
    share = len(good) / len(reading.records) if reading.records else None
    console.result(
        {
            "action": "stats", "folder": place, "records": len(reading.records), "usable": len(good),
            "usable_share": share, "groups": [dict(zip(names, row, strict=True)) for row in rows],
            **_skips(reading),
        },
        f"{place}: {len(reading.records)} records, {len(good)} usable"
        + (f" ({percent_text(share)})" if share is not None else ""),
        *_listed("", ("target", ">threads", "algorithm", ">records", ">usable"), rows),
    )  # fmt: skip


@_action(
    "convc records prune tuning_logs --dry-run",
    "convc records prune tuning_logs",
    summary="Drop from the logs of a folder what is of no use now.",
)
@click.argument("folder", metavar="DIR", type=options.FILE)
@click.option("--dry-run", is_flag=True, help="Only tell.")
def prune(console: Console, folder: Path, dry_run: bool) -> None:
    """Drop from the logs of DIR the records of algorithms that are not installed, or whose schedule is not the
    installed one, refused and beaten ones, and lines that are no record. Journals stay as they are."""
    from convc.tune.log import prune as prune_logs

    found = prune_logs(_folder(folder), dry_run=dry_run)
    dropped = [(log.path, record, reason) for log in found for record, reason in log.dropped]
    lines, kept = sum(log.skipped for log in found), sum(log.kept for log in found)
    cells = [(path.name, _key_text(record.key), record.choice, reason) for path, record, reason in dropped]
    console.result(
        {
            "action": "prune", "folder": folder, "dry_run": dry_run, "kept": kept, "lines": lines,
            "dropped": [{"file": path, "because": reason, **asdict(record)} for path, record, reason in dropped],
        },
        f"{folder}: {'would drop' if dry_run else 'dropped'} {len(dropped)} records and {lines} lines that are none, "
        f"{'would keep' if dry_run else 'kept'} {kept}",
        *_listed("", ("log", "problem", "config", "because"), cells),
    )  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """The best of A and of B for a key; None in the one that has none."""

    key: Key
    a: Record | None
    b: Record | None

    @property
    def ratio(self) -> float | None:
        """Time of B relative to A's."""
        return self.b.us / self.a.us if self.a and self.b and self.a.us and self.b.us else None

    @property
    def change(self) -> str:
        """Of the config; "" where both have the same."""
        if self.a and self.b:
            return "" if self.a.choice == self.b.choice else f"{self.a.choice} -> {self.b.choice}"
        return f"only A: {self.a.choice}" if self.a else f"only B: {self.b.choice}" if self.b else ""


@_action("convc records diff tuning_logs ~/.local/share/convc/records", summary="What differs between two logs.")
@click.argument("a", type=options.FILE)
@click.argument("b", type=options.FILE)
def diff(console: Console, a: Path, b: Path) -> None:
    """Compare the best records of A and B, each a log, a journal or a folder: for every problem the time of B relative
    to A's, and the config where it is another; and what only one of them has."""
    from convc.tune.log import best

    readings = [_read(_files([path])) for path in (a, b)]
    for reading in readings:
        _note(console, reading)
    ours, theirs = (best(reading.records) for reading in readings)
    rows = [Difference(key, ours.get(key), theirs.get(key)) for key in sorted(ours.keys() | theirs.keys())]
    changed = [row for row in rows if row.a != row.b]
    only = len(ours.keys() - theirs.keys()), len(theirs.keys() - ours.keys())
    cells = [(_key_text(row.key), _us(row.a), _us(row.b), f"{row.ratio:.2f}" if row.ratio else "", row.change)
             for row in changed]  # fmt: skip
    console.result(
        {
            "action": "diff", "same": len(rows) - len(changed), "only_a": only[0], "only_b": only[1],
            "differences": [asdict(row) | {"ratio": row.ratio, "change": row.change} for row in changed],
        },
        f"{len(changed)} of {len(rows)} differ; only A has {only[0]}, only B {only[1]}",
        *_listed("", ("problem", ">us of A", ">us of B", ">B / A", "config"), cells),
    )  # fmt: skip


@_action("convc records lint tuning_logs/*.jsonl", summary="Every line of logs or journals that is no record.")
@click.argument("files", nargs=-1, required=True, type=options.FILE)
def lint(console: Console, files: tuple[Path, ...]) -> None:
    """Read FILES, logs, journals or folders of both, and list every line that is no record, with the reason. Exits
    with 3 where there is one."""
    from convc.tune.journal import BadLine, scan
    from convc.tune.record import Record, RecordError

    good, bad = 0, []
    for path in _files(files):
        for number, found in scan(path):
            if isinstance(found, Record):
                good += 1
            else:
                bad.append(BadLine(str(path), number, found))
    error = RecordError(f"{len(bad)} of {good + len(bad)} lines are no record") if bad else None
    console.result(
        {"action": "lint", "records": good, "bad": bad},
        *(_bad_text(line) for line in bad),
        *([] if bad else [f"{good} lines, each a record"]),
        error=error,
    )


def _listed(title: str, columns: Sequence[str], cells: Sequence[Sequence[object]]) -> list[str | Table]:
    """A table below what was said, where it has rows."""
    return ["", *([title] if title else []), table(columns, cells)] if cells else []


def _files(sources: Iterable[Path]) -> Iterator[Path]:
    """Files as they are; of folders their logs, then their journals."""
    from convc.tune.journal import journals
    from convc.tune.log import logs

    for source in sources:
        yield from (*logs(source), *journals(source)) if source.is_dir() else (source,)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise BadInputError(f"'{path}' is no folder of records")
    return path


def _read(files: Iterable[Path]) -> Reading:
    """All of them as one."""
    from convc.tune.journal import LISTED, Reading, read

    readings = [read(path) for path in files]
    records = tuple(record for reading in readings for record in reading.records)
    bad = tuple(line for reading in readings for line in reading.bad)
    return Reading(records, sum(reading.skipped for reading in readings), bad[:LISTED])


def _note(console: Console, reading: Reading) -> None:
    """What was not read goes to stderr: it is no result."""
    if reading.skipped:
        first = "; ".join(_bad_text(line) for line in reading.bad[:SHOWN])
        console.note(f"note: {reading.skipped} lines are no record and were skipped: {clean(first)}")


def _bad_text(line: BadLine) -> str:
    return f"{line.file}:{line.number}: {line.reason}"


def _skips(reading: Reading) -> dict[str, Any]:
    return {"skipped": reading.skipped, "bad": reading.bad}


def _key_text(key: Key) -> str:
    return f"{key.problem} {key.epilogue} {key.target} x{key.threads} {key.x_block}->{key.y_block}"


def _us(record: Record | None) -> str:
    return us_text(record.us) if record and record.us else ""
