"""TensorProto to numpy, with every length checked before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from onnx import TensorProto

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.external import KEYS, read_external
from convc.frontend.limits import MAX_CONSTANT_BYTES, MAX_ELEMENTS, MAX_RANK
from convc.frontend.names import quoted
from convc.ir import Array

_K = TensorProto
DTYPES: dict[int, str] = {
    _K.FLOAT: "float32", _K.DOUBLE: "float64", _K.FLOAT16: "float16", _K.BOOL: "bool",
    _K.INT8: "int8", _K.INT16: "int16", _K.INT32: "int32", _K.INT64: "int64",
    _K.UINT8: "uint8", _K.UINT16: "uint16", _K.UINT32: "uint32", _K.UINT64: "uint64",
}  # fmt: skip
NIBBLES = {TensorProto.INT4: ml_dtypes.int4, TensorProto.UINT4: ml_dtypes.uint4}
FIELDS = {"float32": "float_data", "float64": "double_data", "int64": "int64_data"}
FIELDS |= dict.fromkeys(("uint32", "uint64"), "uint64_data")
PAYLOADS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")


def dtype_name(kind: int) -> str:
    """A TensorProto data type as ONNX calls it."""
    return str(TensorProto.DataType.Name(kind)) if kind in TensorProto.DataType.values() else f"of unknown kind {kind}"


def carried(kind: int) -> str:
    """The numpy dtype in which a tensor of ONNX's data type `kind` is computed: float16 in float32."""
    if kind not in DTYPES:
        raise UnsupportedError(f"dtype {dtype_name(kind)} is not supported")
    return "float32" if kind == TensorProto.FLOAT16 else DTYPES[kind]


@dataclass
class TensorReader:
    """Reads the tensors of one model; `left` is how many bytes they may still take."""

    folder: Path | None
    left: int = MAX_CONSTANT_BYTES

    def read(self, tensor: TensorProto) -> Array:
        """The tensor as numpy; float16 becomes float32; 4-bit integers take a byte each."""
        if tensor.data_type not in DTYPES and tensor.data_type not in NIBBLES:
            raise UnsupportedError(f"a tensor of dtype {dtype_name(tensor.data_type)} is not supported")
        dims = tuple(int(d) for d in tensor.dims)
        elements = count_elements(dims)
        size = stored_bytes(tensor.data_type, elements)
        self.left -= 2 * size if tensor.data_type in NIBBLES or tensor.data_type == TensorProto.FLOAT16 else size
        if self.left < 0:
            raise UnsupportedError(f"constants of more than {MAX_CONSTANT_BYTES >> 20} MiB")
        check_payload(tensor)
        raw = self.raw(tensor, size)
        flat = typed(tensor, elements) if raw is None else decode(raw, tensor.data_type, elements)
        return flat.reshape(dims)

    def raw(self, tensor: TensorProto, size: int) -> bytes | None:
        """The bytes of a tensor that is stored as bytes."""
        if tensor.data_location == TensorProto.EXTERNAL:
            if self.folder is None:
                raise BadInputError("external data needs the model as a file: give its path")
            return read_external(self.folder, external_entries(tensor), size=size)
        if not tensor.HasField("raw_data"):
            return None
        raw = bytes(tensor.raw_data)  # protobuf makes a copy at each access
        if len(raw) != size:
            raise BadInputError(f"{len(raw)} bytes of data, dimensions {list(tensor.dims)} need {size}")
        return raw


def count_elements(dims: Sequence[int]) -> int:
    if any(d < 0 for d in dims):
        raise BadInputError(f"dimensions {list(dims)[:MAX_RANK]} with a negative entry")
    if len(dims) > MAX_RANK:
        raise UnsupportedError(f"a tensor of rank {len(dims)}; the limit is {MAX_RANK}")
    if math.prod(dims) > MAX_ELEMENTS:
        raise UnsupportedError(f"dimensions {list(dims)} have {math.prod(dims)} elements; the limit is {MAX_ELEMENTS}")
    return math.prod(dims)


def stored_bytes(kind: int, elements: int) -> int:
    return -(-elements // 2) if kind in NIBBLES else elements * np.dtype(DTYPES[kind]).itemsize


def check_payload(tensor: TensorProto) -> None:
    """One payload, and external data only where the tensor says so."""
    found = [p for p in PAYLOADS if len(getattr(tensor, p))]
    found += ["raw_data"] if tensor.HasField("raw_data") else []
    found += ["external_data"] if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data else []
    if len(found) > 1:
        raise BadInputError("data twice: in " + " and in ".join(found))
    if tensor.external_data and tensor.data_location != TensorProto.EXTERNAL:
        raise BadInputError("external_data on a tensor that is not external")
    if tensor.HasField("segment"):
        raise UnsupportedError("a tensor in segments is not supported")


def external_entries(tensor: TensorProto) -> dict[str, str]:
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in KEYS or entry.key in entries or not isinstance(entry.value, str):
            raise BadInputError(f"external data has a bad entry {quoted(str(entry.key))}: unknown or twice")
        entries[entry.key] = entry.value
    return entries


def decode(raw: bytes, kind: int, elements: int) -> Array:
    """Little-endian bytes as numpy, without a copy where none is needed."""
    if kind in NIBBLES:
        return unpack_nibbles(np.frombuffer(raw, np.uint8), kind, elements)
    name = DTYPES[kind]
    if name == "bool":
        return np.asarray(np.frombuffer(raw, np.uint8) != 0)
    found: Array = np.frombuffer(raw, np.dtype(name).newbyteorder("<"))
    native: Array = found.astype("float32" if name == "float16" else name, copy=False)
    return native


def unpack_nibbles(packed: Array, kind: int, elements: int) -> Array:
    """Two to a byte, the low half first."""
    both = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:elements]
    signed = (both ^ 8).astype(np.int8) - np.int8(8)
    found: Array = (signed if kind == TensorProto.INT4 else both).astype(NIBBLES[kind])
    return found


def typed(tensor: TensorProto, elements: int) -> Array:
    """A tensor stored in one of protobuf's number lists."""
    name = DTYPES.get(tensor.data_type, "uint8")
    field = FIELDS.get(name, "int32_data")
    values, needed = getattr(tensor, field), elements
    if tensor.data_type in NIBBLES:
        needed = -(-elements // 2)
    elsewhere = [p for p in PAYLOADS if p != field and len(getattr(tensor, p))]
    if len(values) != needed or elsewhere:
        raise BadInputError(
            f"{len(values)} entries in {field}, dimensions {list(tensor.dims)} need {needed}"
            + (f"; data in {elsewhere[0]} does not belong to dtype {dtype_name(tensor.data_type)}" if elsewhere else "")
        )
    wide = np.array(values, {"float_data": "float32", "double_data": "float64"}.get(field, field.split("_")[0]))
    if tensor.data_type == TensorProto.FLOAT16:
        return checked_cast(wide, "uint16").view(np.float16).astype(np.float32)
    if tensor.data_type in NIBBLES:
        return unpack_nibbles(checked_cast(wide, "uint8"), tensor.data_type, elements)
    return checked_cast(wide, name)


def checked_cast(wide: Array, name: str) -> Array:
    """To a narrower integer that must hold every value."""
    narrow = wide.astype(name)
    if wide.dtype.kind in "iu" and not np.array_equal(narrow.astype(wide.dtype), wide):
        raise BadInputError(f"a value outside the range of {name}")
    return narrow
