"""From a path, bytes or a parsed model to a ModelProto, and nothing trusted about it yet."""

from __future__ import annotations

import stat
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from convc.errors import BadInputError
from convc.frontend.limits import MAX_MODEL_BYTES

MAGIC = {
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x7fELF": "an executable",
    b"\x89HDF": "an HDF5 file (Keras); export it to ONNX first",
    b"%PDF": "a PDF",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself",
}


def load(source: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """The model and the folder that its external data may come from (None where the source is not a file)."""
    if isinstance(source, onnx.ModelProto):
        return source, None
    if isinstance(source, bytes):
        return parse(source), None
    path = Path(source).absolute()
    return parse(read(path)), path.parent


def read(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadInputError(f"{path}: not a plain file")
        if found.st_size > MAX_MODEL_BYTES:
            raise BadInputError(f"{path}: {found.st_size} bytes; an ONNX file has at most {MAX_MODEL_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from error


def parse(data: bytes) -> onnx.ModelProto:
    if not data:
        raise BadInputError("not an ONNX model: the file is empty")
    for magic, what in MAGIC.items():
        if data.startswith(magic):
            raise BadInputError(f"not an ONNX model: it is {what}")
    if len(data) > MAX_MODEL_BYTES:
        raise BadInputError(f"not an ONNX model: {len(data)} bytes, at most {MAX_MODEL_BYTES} are possible")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise BadInputError("not an ONNX model, or one cut short: it does not parse as protobuf") from error
    return model
