"""Guards: loops that go beyond what they write. A schedule cuts an extent into tiles as if they fitted, so that what a
thread holds keeps a constant size; only the statement that stores asks whether its place exists."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

GUARD = "convc.guard"  # annotation of an sblock whose loops were split with disable_predication


def guarded(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The annotated sblocks run where all their indices are within their extents."""
    return func.with_body(tvm_ffi.structural_map(func.body, (s_tir.SBlockRealize, _guard)))


def _guard(realize: Any) -> Any:
    block = realize.block
    if GUARD not in block.annotations:
        return realize
    inside = [
        value < axis.dom.extent for value, axis in zip(realize.iter_values, block.iter_vars, strict=True)
    ]
    return s_tir.SBlockRealize(realize.iter_values, tirx.all(realize.predicate, *inside), block)
