"""The artifact: one file with the compiled code, the weights, a self-test, and what was done.

For a CPU the code is a library with its header, for GPUs a fat binary for each function.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from convc.errors import BadArtifactError, BadInputError
from convc.ir import TensorType
from convc.layout import Layout
from convc.runtime import container
from convc.runtime.container import Bytes
from convc.runtime.features import GPU_MACHINE, check_target
from convc.runtime.program import Program, program_of

SCHEMA = 2
MANIFEST, LIBRARY, HEADER = "manifest.json", "lib/model.so", "include/model.h"
WEIGHTS, GOLDEN = "weights.safetensors", "golden.npz"
ENTRY = re.compile(r"([a-z][a-z0-9_]*/)?[a-z][a-z0-9_]*\.[a-z0-9]+")
MAX_MANIFEST = 256 << 20
MAX_ELEMENTS = 1 << 40


@dataclass(frozen=True)
class Port:
    """An input or output: the model's name for it and its type."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Layer:
    """One kernel call of a run: what it computes, how, and where its result lies after it.

    `origin` holds ONNX node names, `ops` convc's operations; `problem`, `algorithm`, `config`, `source` (of the choice:
    tuned, transferred or modelled) and `error` (the algorithm's bound, in units of the type's rounding) are None where
    no convolution is in it. `bound` is the same as a fraction, and `measured` the error that tuning measured of this
    very choice, where it did. `reads` are the layouts of the arguments; `bytes` are what must be read and written at
    least once. The result is at `at` bytes in `space`, the arena, or is the caller's output number `at`.
    """

    index: int
    symbol: str
    ops: tuple[str, ...]
    origin: tuple[str, ...]
    problem: str | None
    algorithm: str | None
    config: Mapping[str, int] | None
    source: str | None
    error: float | None
    bound: float | None
    measured: float | None
    flops: int
    bytes: int
    reads: tuple[str, ...]
    layout: Layout
    type: TensorType
    space: str
    at: int

    @property
    def choice(self) -> str:
        """Algorithm and config as text; "" where there is none."""
        from convc.algorithm import Choice  # running an artifact does without

        return "" if self.algorithm is None else str(Choice(self.algorithm, self.config or {}))


@dataclass(frozen=True, eq=False)
class Artifact:
    """The entries of an artifact file, the manifest first. Entries of an opened file are views into its mapping."""

    entries: Mapping[str, Bytes]

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(bytes(self.entries[MANIFEST]))
        return found

    @property
    def name(self) -> str:
        """The prefix of the library's functions."""
        return str(self.manifest["name"])

    @property
    def kind(self) -> str:
        """Of its target: cpu or cuda."""
        return "cuda" if self.manifest["target"]["machine"] == GPU_MACHINE else "cpu"

    @cached_property
    def program(self) -> Program:
        """What a GPU executes; only of artifacts for GPUs."""
        return program_of(self.manifest)

    @cached_property
    def inputs(self) -> tuple[Port, ...]:
        return tuple(_port(row) for row in self.manifest["inputs"])

    @cached_property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(_port(row) for row in self.manifest["outputs"])

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(_layer(i, row) for i, row in enumerate(self.manifest["calls"]))

    @property
    def weights(self) -> memoryview:
        """The data of the weights, 64-byte aligned where the artifact was opened from a file."""
        return memoryview(self.entries[WEIGHTS])[self.manifest["weights"]["offset"] :]

    def to_bytes(self) -> bytes:
        """The file's bytes: the same for the same entries."""
        return container.pack(self.entries)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; readers see the old one or the new one, never a part."""
        write_atomically(Path(path), *container.parts(self.entries))

    def extract(self, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write each entry to `folder`, as lib/model.so or include/model.h, for use without convc."""
        paths = []
        for name, data in self.entries.items():
            path = Path(folder) / _safe(name, str(folder))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
            paths.append(path)
        return tuple(paths)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Map the file and check its structure, schema and hashes. Runs no code of it.

        Raises BadInputError where the file cannot be read and BadArtifactError where it is damaged. The hashes tell
        damage, not malice: load only artifacts you trust, as you would any library.
        """
        try:
            with Path(path).open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise BadInputError(f"'{path}' cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise BadArtifactError(f"'{path}' is empty, not an artifact") from error
        return cls.from_bytes(memoryview(data), str(path))

    @classmethod
    def from_bytes(cls, data: Bytes, path: str = "<bytes>") -> Artifact:
        """As `open`, for a file in memory."""
        entries = container.unpack(data, path)
        artifact = cls(entries)
        if next(iter(entries), None) != MANIFEST or len(entries[MANIFEST]) > MAX_MANIFEST:
            raise BadArtifactError(f"'{path}' is no artifact: its first entry is not {MANIFEST}")
        _check_schema(artifact, path)
        _check_entries(artifact, path)
        return artifact

    @classmethod
    def of(
        cls, manifest: Mapping[str, Any], entries: Mapping[str, Bytes], *, hashes: Mapping[str, str] | None = None
    ) -> Artifact:
        """The artifact with these entries. Their SHA-256 go into the manifest; `hashes` are those already known."""
        known = {name: (hashes or {}).get(name) or _sha256(data) for name, data in entries.items()}
        table = {name: {"bytes": len(data), "sha256": known[name]} for name, data in entries.items()}
        full = {"schema": SCHEMA, **manifest, "entries": table}
        text = json.dumps(full, indent=1, ensure_ascii=True, allow_nan=False).encode()
        return cls({MANIFEST: text, **entries})

    def check_machine(self) -> str | None:
        """Raise TargetMismatchError unless its code runs on this machine. The name of the GPU that runs it, if any."""
        return check_target(self.manifest["target"])


def write_atomically(path: Path, *parts: Bytes) -> None:
    """Write a file, `parts` one after the other, next to its place, then rename it there."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sha256(data: Bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_schema(artifact: Artifact, path: str) -> None:
    try:
        schema = artifact.manifest["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadArtifactError(f"'{path}' is damaged: its manifest cannot be read ({error}); build it again") from error
    if schema != SCHEMA:
        raise BadArtifactError(
            f"'{path}' has schema {str(schema)[:20]}, this convc reads {SCHEMA}; build it again with this convc"
        )
    try:
        _read_all(artifact)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BadArtifactError(f"'{path}': its manifest lacks or misstates {error}; build it again") from error


def _read_all(artifact: Artifact) -> None:
    """Touch everything that loading reads, so that a wrong manifest shows here."""
    _ = artifact.inputs, artifact.outputs, artifact.layers, artifact.name
    target, entries = artifact.manifest["target"], artifact.manifest["entries"]
    if not all(isinstance(word, str) for word in (target["label"], target["machine"], *target["features"])):
        raise ValueError("the target")
    offset = artifact.manifest["weights"]["offset"]
    if not isinstance(offset, int) or not 8 <= offset <= entries[WEIGHTS]["bytes"]:
        raise ValueError(f"the offset of the weights, {offset}")
    if artifact.kind == "cuda":
        _check_memory(artifact, entries[WEIGHTS]["bytes"] - offset)


def _check_memory(artifact: Artifact, weights: int) -> None:
    """Of a GPU artifact, whose calls nothing checks later."""
    program = artifact.program
    if program.weights > weights:
        raise ValueError(f"the bytes of the weights, {program.weights} of {weights}")
    for layer in artifact.layers:
        size = math.prod(layer.layout.physical(layer.type.shape)) * np.dtype(layer.type.dtype).itemsize
        if layer.space == "arena" and layer.at + size > program.arena:
            raise ValueError(f"the place of the result of call {layer.index}")


def _check_entries(artifact: Artifact, path: str) -> None:
    table = artifact.manifest["entries"]
    names = [name for name in artifact.entries if name != MANIFEST]
    if not isinstance(table, dict) or list(table) != names:
        raise BadArtifactError(f"'{path}' is damaged: it holds other entries than its manifest says; build it again")
    for name in names:
        _safe(name, path)
        if table[name] != {"bytes": len(artifact.entries[name]), "sha256": _sha256(artifact.entries[name])}:
            raise BadArtifactError(f"'{path}' is damaged: '{name}' has not the hash in the manifest; build it again")
    code = artifact.program.entries if artifact.kind == "cuda" else (LIBRARY, HEADER)
    if missing := {WEIGHTS, *code}.difference(names):
        raise BadArtifactError(f"'{path}' lacks {', '.join(sorted(missing))}; build it again")


def _safe(name: str, path: str) -> str:
    if not ENTRY.fullmatch(name):
        raise BadArtifactError(f"'{path}': the entry name {name!r} is not one convc writes")
    return name


def _type(row: Mapping[str, Any]) -> TensorType:
    shape = tuple(int(extent) for extent in row["shape"])
    if any(extent < 0 for extent in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"the shape {shape}")
    return TensorType(shape, np.dtype(row["dtype"]).name)


def _port(row: Mapping[str, Any]) -> Port:
    return Port(str(row["name"]), _type(row))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _words(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


def _layer(index: int, row: Mapping[str, Any]) -> Layer:
    result = row["result"]
    return Layer(
        index, str(row["symbol"]), _words(row["ops"]), _words(row["origin"]), row["problem"], row["algorithm"],
        row["config"], row["source"], _number(row["error"]), _number(row.get("bound")), _number(row.get("measured")),
        int(row["flops"]), int(row["bytes"]), _words(row["reads"]), Layout(int(result["block"])), _type(result),
        str(result["space"]), int(result["at"]),
    )
