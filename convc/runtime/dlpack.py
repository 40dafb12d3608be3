"""DLPack on the GPU: tensors of other libraries as addresses, and addresses of ours as tensors for them.

The form is that of https://dmlc.github.io/dlpack (unversioned); numpy speaks it for host memory only.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any

from convc.errors import BadInputError
from convc.ir import TensorType

CUDA = 2
LEGACY_STREAM = 1  # what DLPack and the driver call the stream 0
FRESH, USED = b"dltensor", b"used_dltensor"
SIGNED, UNSIGNED, FLOAT, BFLOAT, BOOL = 0, 1, 2, 4, 6
DTYPES = {
    (SIGNED, 8): "int8", (SIGNED, 16): "int16", (SIGNED, 32): "int32", (SIGNED, 64): "int64", (UNSIGNED, 8): "uint8",
    (UNSIGNED, 16): "uint16", (UNSIGNED, 32): "uint32", (UNSIGNED, 64): "uint64", (FLOAT, 16): "float16",
    (FLOAT, 32): "float32", (FLOAT, 64): "float64", (BFLOAT, 16): "bfloat16", (BOOL, 8): "bool",
}
CODES = {name: key for key, name in DTYPES.items()}


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


# Prototypes of our own: the attributes of ctypes.pythonapi are shared with whoever else uses it.
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer_of_dying = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Hold:
    """Keeps memory that another library lent; that library is told when the last reference to this goes."""


@dataclass(frozen=True, eq=False)
class Borrowed:
    """A tensor in the memory of GPU `ordinal`, there as long as `hold` is."""

    address: int
    type: TensorType
    is_row_major: bool
    ordinal: int
    hold: Hold


def is_on_gpu(value: Any) -> bool:
    """Whether it is a tensor in a GPU's memory: of torch, CuPy, ours."""
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == CUDA


def borrow(value: Any, label: str, stream: int) -> Borrowed:
    """A tensor on a GPU where it lies; its library makes its values ready on `stream`.

    Raises BadInputError where that library refuses or the type is unknown to convc.
    """
    try:
        capsule = value.__dlpack__(stream=stream or LEGACY_STREAM)
        managed = _Managed.from_address(_pointer(capsule, FRESH))
    except (TypeError, ValueError, RuntimeError, BufferError, AttributeError) as error:
        raise BadInputError(f"'{label}' of type {type(value).__name__} cannot be read as a tensor: {error}") from error
    _rename(capsule, USED)
    hold = Hold()
    if managed.deleter:
        weakref.finalize(hold, _Deleter(managed.deleter), ctypes.addressof(managed)).atexit = False
    tensor = managed.tensor
    dtype = DTYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise BadInputError(f"'{label}' has elements of DLPack's type {tensor.code} with {tensor.bits} bits, "
                            f"which convc does not know")  # fmt: skip
    shape = tuple(tensor.shape[: tensor.ndim])
    is_row_major = not tensor.strides or _is_row_major(shape, tuple(tensor.strides[: tensor.ndim]))
    at = (tensor.data or 0) + tensor.byte_offset
    return Borrowed(at, TensorType(shape, dtype), is_row_major, tensor.device_id, hold)


def lend(address: int, type_: TensorType, ordinal: int, owner: object) -> Any:
    """A capsule with a row-major tensor of GPU `ordinal`; `owner` lives until whoever takes it is done with it."""
    extents = (ctypes.c_int64 * max(1, type_.rank))(*type_.shape)
    strides = (ctypes.c_int64 * max(1, type_.rank))(*_strides(type_.shape))
    code, bits = CODES[type_.dtype]
    as_pointer = ctypes.POINTER(ctypes.c_int64)
    managed = _Managed(
        _Tensor(
            address, CUDA, ordinal, type_.rank, code, bits, 1, ctypes.cast(extents, as_pointer),
            ctypes.cast(strides, as_pointer), 0,
        ),
        None,
        ctypes.cast(_TAKEN_BACK, ctypes.c_void_p),
    )  # fmt: skip
    at = ctypes.addressof(managed)
    _lent[at] = (managed, extents, strides, owner)
    return _new(at, FRESH, ctypes.cast(_DYING, ctypes.c_void_p))


_lent: dict[int, tuple[object, ...]] = {}
"""What others have of ours, by the address of its description."""


def _taken_back(at: int) -> None:
    _lent.pop(at, None)


def _dying(capsule: int) -> None:
    """A capsule that goes without anyone having taken the tensor."""
    if _is_valid(capsule, FRESH):
        _lent.pop(_pointer_of_dying(capsule, FRESH), None)


_TAKEN_BACK, _DYING = _Deleter(_taken_back), _Deleter(_dying)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    found, step = [], 1
    for extent in reversed(shape):
        found.append(step)
        step *= extent
    return tuple(reversed(found))


def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    rows = zip(shape, strides, _strides(shape), strict=True)
    return 0 in shape or all(extent == 1 or stride == wanted for extent, stride, wanted in rows)
