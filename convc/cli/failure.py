"""How a failure ends: an exit code and one paragraph, on stderr or as JSON; a traceback only in a file."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from convc.errors import ConvcError
from convc.report.table import clean

NEWLINE = "\n"
KINDS = {
    0: "ok", 1: "internal", 2: "usage", 3: "bad-input", 4: "unsupported", 5: "missing-dependency",
    6: "target-mismatch", 7: "verify-failed", 8: "speed-gate-failed", 9: "untuned", 10: "tune-failed", 11: "budget",
    12: "bad-artifact", 130: "interrupted",
}  # fmt: skip
READER_GONE = 141  # as a shell tells of a program that ended for this reason
PACKAGES = {
    "tvm": "apache-tvm==0.27.0.post1", "tvm_ffi": "apache-tvm-ffi==0.1.14.post1", "onnxruntime": "'convc[bench]'",
    "openvino": "'convc[bench]'",
}  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """`code` is the exit code, `message` what a person reads."""

    code: int
    message: str

    @property
    def kind(self) -> str:
        return KINDS.get(self.code, "internal")

    @property
    def document(self) -> dict[str, object]:
        return {"code": self.code, "kind": self.kind, "message": self.message}


def report(error: BaseException, argv: Sequence[str]) -> int:
    """Tell a person, or with --json among `argv` a program, and return the exit code."""
    if isinstance(error, BrokenPipeError):  # whoever reads has had enough, as in `convc ops | head -1`
        _close_stdout()
        return READER_GONE
    failure = failure_of(error, argv)
    try:
        if "--json" in argv:
            click.echo(json.dumps({"schema": 1, "error": failure.document}, indent=2))
        else:
            click.echo(f"convc: {clean(failure.message, keep=NEWLINE)}", err=True)
        sys.stdout.flush()
    except OSError:  # the result could not be written, so neither can the error: the code has to say it
        _close_stdout()
    return failure.code


def _close_stdout() -> None:
    """What is still to be written goes nowhere, so that the interpreter does not complain when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def failure_of(error: BaseException, argv: Sequence[str] = ()) -> Failure:
    match error:
        case ConvcError():
            return Failure(error.exit_code, str(error))
        case click.Abort() | KeyboardInterrupt():
            return Failure(130, "interrupted")
        case click.UsageError():
            return Failure(2, _usage(error))
        case click.ClickException():
            return Failure(2, error.format_message())
        case MemoryError():
            return Failure(11, "out of memory: compile for a smaller batch or input (--shape), or close other programs")
        case OSError(errno=int()):
            return Failure(3, _os_error(error))
        case ModuleNotFoundError() if not str(error.name).startswith("convc"):
            name = str(error.name).partition(".")[0]
            return Failure(5, f"the Python package '{name}' is missing; run `pip install {PACKAGES.get(name, name)}`")
    return Failure(1, _internal(error, argv))


def _usage(error: click.UsageError) -> str:
    where = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
    return error.format_message().rstrip(".") + where


def _os_error(error: OSError) -> str:
    file = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{file}{(error.strerror or str(error)).lower()}"


def _internal(error: BaseException, argv: Sequence[str]) -> str:
    what = "the model nests deeper than convc can follow" if isinstance(error, RecursionError) else _first_line(error)
    saved = _save(error, argv)
    where = f"The traceback is in {saved}; please send it with the model." if saved else _text(error, argv)
    return f"internal error: {what}. This is a bug in convc. {where}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _text(error: BaseException, argv: Sequence[str]) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return f"convc {' '.join(argv)}\nPython {sys.version}\n\n{''.join(lines)}"


def _save(error: BaseException, argv: Sequence[str]) -> Path | None:
    """The file that now holds the traceback; None where nothing can be written."""
    from convc.report.state import state_dir

    try:
        folder = state_dir() / "crashes"
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(".txt", "convc-", folder)
        with os.fdopen(handle, "w", errors="backslashreplace") as file:
            file.write(_text(error, argv))
    except OSError:
        return None
    return Path(name)
