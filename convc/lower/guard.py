"""Guards: loops that go beyond what they write. A schedule cuts an extent into tiles as if they fitted, so that what a
thread holds keeps a constant size; only the statement that stores asks whether its place exists."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

# Annotation of an sblock whose loops were split with disable_predication: by axis, of how many elements each is there
# or not there as one, so that a vector of them asks once.
GUARD = "convc.guard"


def guarded(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The annotated sblocks run where all their indices are within their extents."""
    return func.with_body(tvm_ffi.structural_map(func.body, (s_tir.SBlockRealize, _guard)))


def _guard(realize: Any) -> Any:
    block = realize.block
    if GUARD not in block.annotations:
        return realize
    together = [int(count) for count in block.annotations[GUARD]]
    axes = zip(realize.iter_values, block.iter_vars, together, strict=True)
    inside = [value // count < axis.dom.extent // count for value, axis, count in axes]
    return s_tir.SBlockRealize(realize.iter_values, tirx.all(realize.predicate, *inside), block)
