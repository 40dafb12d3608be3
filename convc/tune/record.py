"""A record: what one trial gave, a config of an algorithm built and measured for a problem, as one line of text.

A line is a JSON object in ASCII without spaces, its keys in the order of `Record`, config sorted by name, floats in the
shortest form that reads back the same, and last "crc", the CRC-32 of the line without it in eight hex digits:

    {"problem":"g1mb1_ic64...","epilogue":"short","target":"cpu/znver3",...,"date":"2026-11-24","crc":"5b0e6a1f"}

There is one text for a record, so `parse` refuses whatever `Record.line` would not write: other keys or types, numbers
that are not finite or out of range, a problem in another spelling, the same key twice. The CRC tells damage and edits,
not malice; what a forged line can do is make a kernel slow or refused (`unfit`), for nothing a line names is ever run.

Two notions that are kept apart:

- `Record.key` says which trials answer the same question, and so compete to be the best.
- `stale` says whether a record still speaks of the installed code: its `schedule` must be `schedule_hash` of the
  algorithm it names. A stale record competes with nothing that is not stale.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from convc.errors import BadInputError, UsageError
from convc.tune.fingerprint import fingerprint

if TYPE_CHECKING:
    from convc.algorithm import Algorithm, Choice
    from convc.target import Target

STATUSES = ("ok", "wrong", "crash", "timeout", "build", "memory", "noisy")
MAX_LINE = 64 << 10  # bytes
MAX_US = 1e9
MAX_INT = 2**31
MAX_ENTRIES = 32  # of a config
MAX_REASON = 1000  # characters; what a compiler complains of at length is cut there

_NAME = re.compile(r"[a-z0-9_]{1,24}")
_CRC = re.compile(r',"crc":"([0-9a-f]{8})"\}')
_CRC_LENGTH = len(',"crc":"01234567"}')


class RecordError(BadInputError):
    """A line that is no record, or values that make none."""


@dataclass(frozen=True, order=True)
class Key:
    """What two trials have in common that may be compared: the fastest of them answers for all.

    `x_block` and `y_block` are the channel blocks of x and of the result, for a layer's neighbours decide on these.
    """

    problem: str
    epilogue: str
    target: str
    threads: int
    x_block: int
    y_block: int


@dataclass(frozen=True)
class Record:
    """One trial. Raises RecordError where the values make no record.

    problem    canonical text of the Problem, which includes the dtype.
    epilogue   class of what follows y in the kernel: none, short, residual, long.
    target     label, as cpu/znver3.
    threads    that the work was split for and measured on.
    algorithm  name.
    config     with "xb" and "yb", the channel blocks of x and of the result.
    schedule   `schedule_hash` of the algorithm that was measured.
    status     ok, or why the config was refused: wrong result, crash, timeout, build failed, memory, noisy timing.
    us         median time in microseconds; None unless ok.
    us_warm    the same with everything in cache; None where that was not measured.
    spread     median absolute deviation of the times, relative to `us`; None where nothing was timed.
    peak       fraction of the machine's peak, by the FLOP of the direct algorithm, so it may exceed 1; None if unknown.
    error      measured, relative; None unless ok.
    workspace  bytes.
    reason     why it was refused; of an ok one, why it is better than what it replaced. Cut to MAX_REASON characters.
    tvm        version.
    device     name of the CPU.
    date       ISO 8601.
    """

    problem: str
    epilogue: str
    target: str
    threads: int
    algorithm: str
    config: Mapping[str, int] = field(hash=False)
    schedule: str
    status: str
    us: float | None
    us_warm: float | None
    spread: float | None
    peak: float | None
    error: float | None
    workspace: int
    reason: str
    tvm: str
    device: str
    date: str

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            if fault := check(getattr(self, name)):
                raise RecordError(f"no record: {name} {fault}")
        if fault := _contradiction(self):
            raise RecordError(f"no record: {fault}")
        object.__setattr__(self, "config", dict(sorted(self.config.items())))
        # Half of a surrogate pair, as in the name of a file that is no UTF-8, would meet its other half in JSON.
        reason = self.reason.encode("utf-8", "backslashreplace").decode()
        object.__setattr__(self, "reason", reason[:MAX_REASON])
        for name in ("us", "us_warm", "spread", "peak", "error"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))

    @property
    def key(self) -> Key:
        blocks = self.config["xb"], self.config["yb"]
        return Key(self.problem, self.epilogue, self.target, self.threads, *blocks)

    @property
    def choice(self) -> str:
        """Algorithm and config as text."""
        return f"{self.algorithm}({','.join(f'{k}={v}' for k, v in self.config.items())})"

    @property
    def kind(self) -> str:
        """Of the target."""
        return self.target.partition("/")[0]

    @property
    def chosen(self) -> Choice:
        """Algorithm and config as `select` knows them."""
        from convc.algorithm import Choice

        return Choice(self.algorithm, self.config, self.kind)

    @property
    def line(self) -> str:
        """The record as text, without the line's end."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        body = json.dumps(values, separators=(",", ":"), allow_nan=False)
        return f'{body[:-1]},"crc":"{_crc(body)}"}}'


def parse(line: str) -> Record:
    """The record that a line without its end holds. Raises RecordError with the reason where it is none."""
    if len(line) > MAX_LINE:
        raise RecordError(f"no record: longer than {MAX_LINE} bytes")
    found = _CRC.fullmatch(line[-_CRC_LENGTH:])
    if found is None:
        raise RecordError("no record: does not end in a crc, so it is torn or something else")
    body = line[:-_CRC_LENGTH] + "}"
    if not body.isascii() or _crc(body) != found[1]:
        raise RecordError("no record: its crc is that of another line, so it is damaged or was edited")
    values = _object(body)
    record = Record(**values)
    if record.line != line:
        raise RecordError("no record: convc writes these values as another line, so it was edited")
    return record


def _object(body: str) -> dict[str, Any]:
    try:
        found = json.loads(body, object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a ValueError as well
        raise RecordError(f"no record: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise RecordError("no record: not a JSON object")
    known = [f.name for f in fields(Record)]
    if unknown := [name for name in found if name not in known]:
        raise RecordError(f"no record: unknown key {unknown[0][:40]!a}")
    if missing := [name for name in known if name not in found]:
        raise RecordError(f"no record: lacks {', '.join(missing)}")
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice")
    return found


def _crc(body: str) -> str:
    return f"{zlib.crc32(body.encode('ascii')):08x}"


Check = Callable[[Any], str | None]
"""Why the value of a key is none that a record has, or None."""


def _text(pattern: str, what: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)
    return lambda v: None if isinstance(v, str) and compiled.fullmatch(v) else f"is {_shown(v)}, not {what}"


def _one_of(known: tuple[str, ...]) -> Check:
    return lambda v: None if isinstance(v, str) and v in known else f"is {_shown(v)}, none of {', '.join(known)}"


def _epilogue(value: Any) -> str | None:
    from convc.plan.epilogue import EPILOGUES  # as heavy as the problem

    return _one_of(EPILOGUES)(value)


def _whole(least: int, most: int) -> Check:
    return lambda v: None if type(v) is int and least <= v <= most else f"is {_shown(v)}, not from {least} to {most}"


def _number(least: float, most: float, *, open_ends: bool = False) -> Check:
    """None, or a finite number in the range."""

    def check(value: Any) -> str | None:
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (least < value < most if open_ends else least <= value <= most):
            return None
        return f"is {_shown(value)}, not from {least:g} to {most:g}{' without the ends' if open_ends else ''}"

    return check


def _shown(value: Any) -> str:
    return ascii(value)[:60]


def _problem(value: Any) -> str | None:
    return _spelling(value) if isinstance(value, str) else f"is {_shown(value)}, not text"


@lru_cache(maxsize=4096)
def _spelling(text: str) -> str | None:
    from convc.problem import Problem  # imports numpy, which whoever only names records does without

    if len(text) > 512:  # three axes of ten digits each take 300 characters
        return "is longer than 512 characters"
    try:
        canonical = str(Problem.parse(text).canonical)
    except UsageError as error:
        return f"is none: {str(error)[:200]}"
    return None if canonical == text else f"is {_shown(text)}, in canonical form {canonical}"


def _config(value: Any) -> str | None:
    if not isinstance(value, Mapping) or len(value) > MAX_ENTRIES:
        return f"is {_shown(value)}, not up to {MAX_ENTRIES} numbers by name"
    for name, number in value.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return f"has the name {_shown(name)}, not 1 to 24 of a-z, 0-9 and _"
        if type(number) is not int or abs(number) >= MAX_INT:
            return f"has {name}={_shown(number)}, not a whole number below 2^31"
    if not all(value.get(block, 0) >= 1 for block in ("xb", "yb")):
        return "lacks xb or yb, the channel blocks of x and of the result"
    return None


def _reason(value: Any) -> str | None:
    return None if isinstance(value, str) else f"is {_shown(value)}, not text"


def _date(value: Any) -> str | None:
    try:
        if isinstance(value, str) and value.isascii() and len(value) <= 40:
            datetime.fromisoformat(value)
            return None
    except ValueError:
        pass
    return f"is {_shown(value)}, not ISO 8601 as 2026-11-24T10:30:00+00:00"


_CHECKS: Mapping[str, Check] = {
    "problem": _problem,
    "epilogue": _epilogue,
    "target": _text(r"[a-z]{2,8}/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,39}", "a target's label as cpu/znver3"),
    "threads": _whole(1, 4096),
    "algorithm": _text(_NAME.pattern, "1 to 24 of a-z, 0-9 and _"),
    "config": _config,
    "schedule": _text(r"[0-9a-f]{12}", "12 hex digits"),
    "status": _one_of(STATUSES),
    "us": _number(0, MAX_US, open_ends=True),
    "us_warm": _number(0, MAX_US, open_ends=True),
    "spread": _number(0, 1000),
    "peak": _number(0, 100),
    "error": _number(0, 1),
    "workspace": _whole(0, 2**48),
    "reason": _reason,
    "tvm": _text(r"[0-9A-Za-z.+_-]{1,40}", "a version"),
    "device": _text(r"[ -~]{1,100}", "1 to 100 printable characters of ASCII"),
    "date": _date,
}


def _contradiction(record: Record) -> str | None:
    needed = {"us": record.us, "spread": record.spread, "error": record.error}
    if record.status == "ok":
        missing = [name for name, value in needed.items() if value is None]
        return f"status is ok, and {' and '.join(missing)} null" if missing else None
    if record.us is not None or record.error is not None:
        return f"status is {record.status}, and us or error not null"
    return None if record.reason else f"status is {record.status}, and reason empty"


def stale(record: Record) -> str | None:
    """Why the record does not speak of the installed code, or None."""
    from convc.algorithm import algorithms

    algorithm = algorithms(record.kind).get(record.algorithm)
    if algorithm is None:
        return f"algorithm {record.algorithm} is not installed"
    installed = schedule_hash(algorithm)
    if record.schedule != installed:
        return f"algorithm {record.algorithm} was {record.schedule} when it was measured and is {installed}"
    return None


def unfit(record: Record, target: Target) -> str | None:
    """Why the record's config must not be used on `target`, or None. Whoever applies a record asks this first: a log
    is a file that anyone may have written, and only configs that the algorithm itself offers are known to be right."""
    from convc.plan.offers import refusal
    from convc.problem import Problem

    if record.status != "ok":
        return f"it is {record.status}: {record.reason}"
    if (record.target, record.threads) != (target.label, target.threads):
        return f"it is of {record.target} with {record.threads} threads"
    if reason := stale(record):
        return reason
    algorithm, problem = record.chosen.entry, Problem.parse(record.problem)
    if reason := refusal(algorithm, problem, target):
        return reason
    if all(dict(config) != record.config for config in algorithm.space(problem, target)):
        return f"{record.choice} is not in the algorithm's space"
    return None


def schedule_hash(algorithm: Algorithm) -> str:
    """The fingerprint of what makes the algorithm's code: 12 hex digits."""
    arranged = [] if algorithm.arrange is None else [algorithm.arrange]
    return fingerprint([algorithm.pack, algorithm.define, algorithm.schedule, *arranged])
