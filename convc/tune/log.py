"""The tuning logs: of each target the best record per key, in `<folder>/<kind>-<arch>.jsonl`, one record a line.

Lines are sorted by key, so that tuning again is a readable git diff; logs merge line by line, with `convc records
merge` where git's merge leaves both sides. Only ok records are in a log.

Which of two records of one key stands: what is not stale before what is; then, of a session that has measured both in
turn (`against`), its judgement; else the shorter time, the smaller workspace, the text. A log is replaced as a whole,
by renaming a file written beside it, under a lock on `.lock`, so readers need no lock and writers lose nothing.

`merge` drops the lines of a log that are no record when it writes the log anew, and says which they were.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import groupby
from pathlib import Path

from convc.tune.journal import BadLine, NotWrittenError, Reading, locked, make_folder, read, sync_folder
from convc.tune.record import Key, Record, RecordError, stale

SPREADS = 3  # between two times of the same config: more is a conflict, for one of them was measured under other load


@dataclass(frozen=True)
class Conflict:
    """Two measurements of one config for one key that differ by more than SPREADS spreads: to be measured again."""

    fast: Record
    slow: Record


@dataclass(frozen=True)
class Merged:
    """What a merge did to the logs of a folder.

    added      records of keys that had none.
    replaced   (earlier, new) where another record stands now.
    unused     records given that do not stand: slower, stale, or not ok.
    conflicts  among the given and the earlier records.
    bad        lines of the logs that are no record, so that they are gone; at most LISTED for each log.
    """

    added: tuple[Record, ...] = ()
    replaced: tuple[tuple[Record, Record], ...] = ()
    unused: int = 0
    conflicts: tuple[Conflict, ...] = ()
    bad: tuple[BadLine, ...] = ()


@dataclass(frozen=True)
class Pruned:
    """What is of no use in one log: records with the reason, and lines that are none. `kept` counts the others."""

    path: Path
    kept: int
    dropped: tuple[tuple[Record, str], ...]
    skipped: int


def default_folder() -> Path:
    """CONVC_RECORDS, else the user's data folder. It need not exist."""
    if given := os.environ.get("CONVC_RECORDS"):
        return Path(given)
    from platformdirs import user_data_dir

    return Path(user_data_dir("convc", appauthor=False)) / "records"


def shipped_folder() -> Traversable:
    """The logs that come with convc; or those of CONVC_TUNING_LOGS, of which an empty folder means none."""
    given = os.environ.get("CONVC_TUNING_LOGS")
    return Path(given) if given else files("convc.tuning_logs")


def log_name(label: str) -> str:
    """cpu/znver3 -> cpu-znver3.jsonl"""
    return f"{label.replace('/', '-')}.jsonl"


def logs(folder: Path) -> list[Path]:
    """The logs in a folder of records."""
    return sorted(folder.glob("*.jsonl"))


def load(folder: Traversable, label: str) -> Reading:
    """The records of a target in a folder of logs; none where there is no log of it. Needs no right to write.

    A record of another target is skipped as a bad line is: its file was renamed or edited.
    """
    path = folder.joinpath(log_name(label))
    if not path.is_file():
        return Reading()
    return read(path, stranger=lambda record: None if record.target == label else f"it is of {record.target}")


def best(records: Iterable[Record]) -> dict[Key, Record]:
    """The fastest ok record of each key, sorted by key. Of equal times the smaller workspace, then the text."""
    found: dict[Key, Record] = {}
    for record in sorted((r for r in records if r.status == "ok"), key=_rank):
        found.setdefault(record.key, record)
    return dict(sorted(found.items()))


def usable(records: Iterable[Record]) -> dict[Key, Record]:
    """The best of those that speak of the installed code. Before one is applied: `unfit`."""
    return best(record for record in records if not stale(record))


def standing(records: Sequence[Record]) -> dict[Key, Record]:
    """What a log keeps of `records`: the best of each key, and stale ones only where a key has no other."""
    return dict(sorted({**best(records), **usable(records)}.items()))


def _rank(record: Record) -> tuple[float, int, str, str]:
    assert record.us is not None
    return record.us, record.workspace, record.choice, record.line


def merge(folder: Path, records: Iterable[Record], *, against: Collection[Record] = ()) -> Merged:
    """Put the best of `records` into the logs of their targets and make that durable.

    `against` are the records that stood when `records` were judged, each by measuring both in turn: these replace
    them whatever the two times say, which are of different days, and their `reason` must say why they are better. An
    earlier record that is not among them is from another session, and the shorter time decides.

    Raises RecordError where a reason is missing, before anything is written, and NotWrittenError where a log cannot be
    written: each log is then as before, or complete.
    """
    offered = list(records)
    ok = sorted((r for r in offered if r.status == "ok"), key=lambda r: r.target)
    groups = {label: list(group) for label, group in groupby(ok, key=lambda r: r.target)}
    with _writing(folder):
        parts = [_merged(load(folder, label), group, frozenset(against)) for label, group in groups.items()]
        for label, (lines, _) in zip(groups, parts, strict=True):
            _publish(folder / log_name(label), lines)
    added = tuple(record for _, part in parts for record in part.added)
    replaced = tuple(pair for _, part in parts for pair in part.replaced)
    apart = tuple(conflict for _, part in parts for conflict in part.conflicts)
    bad = tuple(line for _, part in parts for line in part.bad)
    return Merged(added, replaced, len(offered) - len(added) - len(replaced), apart, bad)


def _merged(reading: Reading, offered: list[Record], against: frozenset[Record]) -> tuple[list[str], Merged]:
    """The lines of one log as they are to be, and what that changes."""
    earlier, new = standing(reading.records), standing(offered)
    judged = {key: r for key, r in usable(offered).items() if (old := earlier.get(key)) in against and not stale(old)}
    for key, record in judged.items():
        if record != earlier[key] and not record.reason:
            raise RecordError(
                f"{record.choice} for {key.problem} is to replace {earlier[key].choice} and does not say why it is "
                "better; give the ratio of the two in its reason"
            )
    after = dict(sorted({**standing([*earlier.values(), *new.values()]), **judged}.items()))
    added = tuple(record for key, record in after.items() if key not in earlier)
    replaced = tuple((earlier[key], record) for key, record in after.items() if earlier.get(key, record) != record)
    apart = tuple(conflicts([*reading.records, *offered]))
    return [record.line for record in after.values()], Merged(added, replaced, 0, apart, reading.bad)


def conflicts(records: Iterable[Record]) -> Iterator[Conflict]:
    """The fastest and the slowest measurement of each config for each key, where these are far apart."""

    def config(record: Record) -> tuple[Key, str, str]:
        return record.key, record.choice, record.schedule

    ok = sorted((r for r in records if r.status == "ok"), key=lambda r: (config(r), _rank(r)))
    for _, group in groupby(ok, key=config):
        fast, *others = group
        if others and _far_apart(fast, others[-1]):
            yield Conflict(fast, others[-1])


def _far_apart(fast: Record, slow: Record) -> bool:
    assert fast.us and slow.us and fast.spread is not None and slow.spread is not None
    return slow.us - fast.us > SPREADS * max(fast.us * fast.spread, slow.us * slow.spread)


def prune(folder: Path, *, dry_run: bool = False) -> list[Pruned]:
    """Drop from every log of the folder what is of no use: stale, refused, or beaten records, and lines that are none.

    Raises BadInputError where a log cannot be read, NotWrittenError where it cannot be written.
    """
    if dry_run:
        return [_pruned(path)[0] for path in logs(folder)]
    found = []
    with _writing(folder):
        for path in logs(folder):
            pruned, kept = _pruned(path)
            _publish(path, [record.line for record in kept])
            found.append(pruned)
    return found


def _pruned(path: Path) -> tuple[Pruned, list[Record]]:
    reading = read(path)
    own = [record for record in reading.records if log_name(record.target) == path.name]
    kept = usable(own)
    dropped = [(r, _useless(r, path)) for r in reading.records if kept.get(r.key) != r or r not in own]
    return Pruned(path, len(kept), tuple(dropped), reading.skipped), list(kept.values())


def _useless(record: Record, path: Path) -> str:
    if record.status != "ok":
        return f"it is {record.status}"
    if log_name(record.target) != path.name:
        return f"it is of {record.target}"
    return stale(record) or "another record of its key is better"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; whatever cannot be written is told as NotWrittenError."""
    try:
        make_folder(folder)
        with locked(folder / ".lock"):
            yield
    except OSError as error:
        what = f"the logs in '{folder}' cannot be written ({(error.strerror or str(error)).lower()})"
        raise NotWrittenError(f"{what}; they hold what they held; free space, or choose another folder") from error


def _publish(path: Path, lines: Sequence[str]) -> None:
    """Make `lines` the content of the log, durably and at once. The caller holds the lock."""
    data = "".join(f"{line}\n" for line in lines).encode("ascii")
    if path.exists() and path.read_bytes() == data:
        return
    from convc.runtime.artifact import write_atomically

    for litter in path.parent.glob(f".{path.name[:40]}-*"):  # of writers that were killed: we alone hold the lock
        litter.unlink(missing_ok=True)
    write_atomically(path, data)
    sync_folder(path.parent)
