"""Aligned memory: what kernels demand of every address, and numpy arrays that meet it."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any

import numpy as np

from convc.errors import BadInputError
from convc.ir import Array, TensorType

ALIGNMENT = 64
HUGE = 2 << 20


def aligned_empty(type_: TensorType) -> Array:
    """An uninitialised row-major array at a multiple of 64."""
    raw = np.empty(type_.bytes + ALIGNMENT, np.uint8)
    start = -address(raw) % ALIGNMENT
    return raw[start : start + type_.bytes].view(type_.dtype).reshape(type_.shape)


def pages(size: int) -> Array:
    """`size` zero bytes on pages of their own, huge ones where the system has them: they cost fewer TLB misses."""
    mapped = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared pages are never huge
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages: only the speed differs
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8, size)


def address(array: Array) -> int:
    """Where the array begins; of an empty one, which is never read or written, any place that kernels accept."""
    return ALIGNMENT if array.size == 0 else int(array.__array_interface__["data"][0])


def is_ready(array: Array) -> bool:
    """Kernels can use the array where it lies."""
    return array.flags.c_contiguous and array.dtype.isnative and address(array) % ALIGNMENT == 0


def ready(array: Array, type_: TensorType) -> Array:
    """The array, or a copy that kernels can use."""
    if is_ready(array):
        return array
    copy = aligned_empty(type_)
    copy[...] = array
    return copy


def as_array(value: Any, label: str) -> Array:
    """numpy's view of an array, of anything with `__dlpack__` in host memory, or of nested lists."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise BadInputError(f"'{label}' of type {type(value).__name__} cannot be read as an array: {error}") from error


def checked(array: Array, type_: TensorType, label: str) -> Array:
    """The array, where it has this shape and dtype. Raises BadInputError with both."""
    if array.shape != type_.shape or array.dtype.name != type_.dtype:
        got = TensorType(array.shape, array.dtype.name)
        raise BadInputError(f"'{label}' must be {type_}, got {got}")
    return array


def logical(physical: Array, type_: TensorType, block: int) -> Array:
    """The row-major array of a value stored with `block` channels innermost (see Layout); a copy where they differ."""
    if block == 1:
        return physical
    split = np.moveaxis(physical, -1, 2)  # [N, C/block, block, *spatial]
    merged = split.reshape(split.shape[0], -1, *split.shape[3:])
    return np.ascontiguousarray(merged[:, : type_.shape[1]])
