"""Artifacts without their weights: these are seeded draws, made again where the artifact runs.

A slim file is a deflated zip of the artifact's entries; in place of the weights it has their header, and a list that
says which draw lies at which offset. What is no draw travels as it is. The artifact's own hashes tell whether the draws
came out the same.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from cuda_networks import Array, Weight

from convc.runtime import container
from convc.runtime.artifact import WEIGHTS, Artifact

HEAD, REST, LIST = "weights.head", "weights.rest", "weights.json"
MOST_REST = 1 << 20  # bytes of a slim file that are no draws: more would be weights that nobody recognised


class Draws:
    """Arrays by weight, each drawn once."""

    def __init__(self) -> None:
        self._found: dict[Weight, Array] = {}

    def __getitem__(self, weight: Weight) -> Array:
        if weight not in self._found:
            self._found[weight] = weight.draw()
        return self._found[weight]


def save_slim(
    artifact: Artifact, weights: Sequence[tuple[int, Array]], draws: Mapping[str, Weight], made: Draws, path: Path
) -> None:
    """`weights` are the artifact's constants and their offsets. Raises ValueError where too many are no draws."""
    pieces, rest = [], b""
    for offset, value in weights:
        found = _recognised(value, draws, made)
        pieces.append({"offset": offset, "dtype": value.dtype.name, "bytes": value.nbytes, **found})
        rest += b"" if found else np.ascontiguousarray(value).tobytes()
    if len(rest) > MOST_REST:
        raise ValueError(f"{len(rest)} bytes of the weights of {path.name} are no draws")
    start = artifact.manifest["weights"]["offset"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, data in artifact.entries.items():
            if name == WEIGHTS:
                file.writestr(HEAD, bytes(data[:start]))
            else:
                file.writestr(name, bytes(data))
        file.writestr(LIST, json.dumps(pieces))
        file.writestr(REST, rest)


def _recognised(value: Array, draws: Mapping[str, Weight], made: Draws) -> dict[str, Any]:
    """Which draw it is, in the order of memory; nothing where it is none."""
    flat = value.reshape(-1)
    for weight in draws.values():
        if np.prod(weight.shape) != value.size:
            continue
        drawn = made[weight].astype(value.dtype)
        if np.array_equal(drawn.reshape(-1), flat):
            return {"weight": asdict(weight), "transposed": False}
        if drawn.ndim == 2 and np.array_equal(drawn.T.reshape(-1), flat):
            return {"weight": asdict(weight), "transposed": True}
    return {}


def open_slim(path: Path, made: Draws) -> Artifact:
    """The whole artifact. Raises BadArtifactError where its weights are not what they were when it was built."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    head, rest, pieces = (entries.pop(name) for name in (HEAD, REST, LIST))
    manifest = json.loads(entries["manifest.json"])
    data, at = np.zeros(manifest["entries"][WEIGHTS]["bytes"], np.uint8), 0
    data[: len(head)] = np.frombuffer(head, np.uint8)
    for piece in json.loads(pieces):
        place = data[len(head) + piece["offset"] :][: piece["bytes"]]
        if "weight" in piece:
            row = piece["weight"]
            drawn = made[Weight(**row | {"shape": tuple(row["shape"])})]
            drawn = (drawn.T if piece["transposed"] else drawn).astype(_dtype(piece["dtype"]))
            place[...] = np.ascontiguousarray(drawn).reshape(-1).view(np.uint8)
        else:
            place[...] = np.frombuffer(rest, np.uint8, piece["bytes"], at)
            at += piece["bytes"]
    names = ["manifest.json", *manifest["entries"]]
    whole = {name: memoryview(data) if name == WEIGHTS else entries[name] for name in names}
    return Artifact.from_bytes(container.pack(whole), str(path))


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401  numpy knows the name from then on
    return np.dtype(name)
