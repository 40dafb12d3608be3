"""Indices of several axes as one number, and back: numbers or expressions, the last axis fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def ravel(index: Sequence[Any], extents: Sequence[int]) -> Any:
    """The first extent is not looked at."""
    at = index[0]
    for i, extent in zip(index[1:], extents[1:], strict=True):
        at = at * extent + i
    return at


def unravel(flat: Any, extents: Sequence[int]) -> list[Any]:
    found: list[Any] = []
    for extent in reversed(extents[1:]):
        found.append(flat % extent)
        flat = flat // extent
    return [flat, *reversed(found)]
