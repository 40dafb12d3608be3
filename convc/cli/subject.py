"""What a verb is asked about: an artifact, a model, or a problem in benchdnn's text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from convc.errors import BadInputError, UsageError

if TYPE_CHECKING:
    from convc.problem import Problem
    from convc.runtime.artifact import Artifact

ZIP = b"PK"
FILE_ENDINGS = (".convc", ".onnx", ".npz", ".pb")


@dataclass(frozen=True)
class Subject:
    """`text` as given; `kind` is artifact, model or problem; `path` is None for a problem."""

    text: str
    kind: str
    path: Path | None = None

    @property
    def problem(self) -> Problem:
        from convc.problem import Problem

        return Problem.parse(self.text)


def subject_of(text: str) -> Subject:
    """A file by what it begins with; what is no file is a problem, or an error that says what it could have been."""
    path = Path(text)
    if path.is_dir():
        raise BadInputError(f"{text}: a folder, not an ONNX model or an artifact")
    if path.exists():
        return Subject(text, kind_of(path), path)
    if path.suffix in FILE_ENDINGS or "/" in text:
        raise BadInputError(f"{text}: no such file")
    try:
        _ = Subject(text, "problem").problem
    except UsageError as error:
        raise UsageError(f"'{text}' is neither a file nor a problem: {error}") from error
    return Subject(text, "problem")


def kind_of(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(len(ZIP))
    return "artifact" if start == ZIP or path.suffix == ".convc" else "model"


@contextmanager
def model_file(subject: Subject) -> Iterator[Path]:
    """The ONNX file of a model or a problem; a problem's lasts as long as the context."""
    if subject.path is not None:
        yield subject.path
        return
    from convc.report.single import single_convolution

    with TemporaryDirectory(prefix="convc-") as folder:
        path = Path(folder) / "problem.onnx"
        path.write_bytes(single_convolution(subject.problem))
        yield path


def compiled(console: Any, model: Path, **options: Any) -> Artifact:
    """`model` compiled in memory, with progress on stderr."""
    from convc.pipeline import compile as compile_model

    with console.progress() as told:
        return compile_model(model, progress=lambda done, total: told("kernels", done, total), **options)


argument = click.argument("subject", metavar="X.convc|MODEL.onnx|PROBLEM")
