"""CUDA streams as callers have them."""

from __future__ import annotations

from typing import Any

from convc.errors import UsageError


def handle_of(stream: Any) -> int | None:
    """The number of a CUDA stream: given as one, or as an object of torch, CuPy, cuda.core or numba."""
    if stream is None or (isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0):
        return stream
    if callable(protocol := getattr(stream, "__cuda_stream__", None)):
        return int(protocol()[1])
    for name in ("cuda_stream", "ptr"):
        if isinstance(found := getattr(stream, name, None), int):
            return found
    raise UsageError(f"a stream is a number or has __cuda_stream__, cuda_stream or ptr; got {type(stream).__name__}")
