"""Weights as a safetensors file: each constant at the offset the plan gives it, with filler tensors between."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np

from convc.ir import Const
from convc.plan.plan import Plan
from convc.runtime.container import ALIGNMENT
from convc.runtime.memory import pages

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}
RESERVED = "__metadata__"


def safetensors(plan: Plan) -> tuple[memoryview, int]:
    """The file and where its data start, in bytes, a multiple of 64. The data are `plan.weight_bytes` long.

    The data lie at a multiple of 64 in memory too, so that the library can read them where they are.
    """
    header: dict[str, object] = {RESERVED: {"format": "convc"}}
    for name, offset, const in _with_fillers(plan):
        size = const if isinstance(const, int) else const.value.nbytes
        key = _unused(name, header)
        dtype, shape = ("U8", [size]) if isinstance(const, int) else _form(const)
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
    text = json.dumps(header, separators=(",", ":")).encode()
    start = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT
    file = pages(start + plan.weight_bytes)
    file[:start] = np.frombuffer((start - 8).to_bytes(8, "little") + text.ljust(start - 8), np.uint8)
    for _, offset, const in plan.weights:
        place = file[start + offset : start + offset + const.value.nbytes]
        place.view(const.value.dtype).reshape(const.shape)[...] = const.value
    return file.data.toreadonly(), start


def _with_fillers(plan: Plan) -> Iterable[tuple[str, int, Const | int]]:
    """(name, offset, constant) in order of offset, and the size of each hole where a constant would be."""
    at = 0
    for name, offset, const in sorted(plan.weights, key=lambda w: w[1]):
        if offset < at or offset + const.value.nbytes > plan.weight_bytes:
            raise ValueError(f"weight {name!r} at {offset} overlaps another or the end, {plan.weight_bytes}")
        if offset > at:
            yield f"filler_{at}", at, offset - at
        yield name, offset, const
        at = offset + const.value.nbytes
    if at < plan.weight_bytes:
        yield f"filler_{at}", at, plan.weight_bytes - at


def _form(const: Const) -> tuple[str, list[int]]:
    """safetensors' dtype and shape; types it does not know are bytes."""
    value = const.value
    known = DTYPES.get(value.dtype.name)
    return (known, list(value.shape)) if known else ("U8", [value.nbytes])


def _unused(name: str, header: dict[str, object]) -> str:
    key, count = name or "unnamed", 0
    while key in header:
        count += 1
        key = f"{name}.{count}"
    return key
