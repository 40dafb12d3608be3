"""What a kernel call is called in reports."""

from __future__ import annotations

from convc.runtime.artifact import Layer

COPY = ("Copy",)
LONGEST = 48


def layer_name(layer: Layer) -> str:
    """The first of the ONNX nodes it computes, and how many more there are."""
    if not layer.origin:
        return "(layout)" if is_relayout(layer) else ""
    first, more = layer.origin[0], len(layer.origin) - 1
    short = first if len(first) <= LONGEST else f"...{first[-LONGEST:]}"
    return f"{short} +{more}" if more else short


def kernel_name(layer: Layer) -> str:
    """The algorithm, else the operations."""
    if layer.algorithm:
        return layer.algorithm
    first, more = layer.ops[0] if layer.ops else "", len(layer.ops) - 1
    return f"{first.lower()} +{more}" if more > 0 else first.lower()


def is_relayout(layer: Layer) -> bool:
    """Whether it only moves a value to another layout or buffer."""
    return layer.ops == COPY


def is_generic(layer: Layer) -> bool:
    """Whether it computes something, and no algorithm of the library does it."""
    return layer.algorithm is None and not is_relayout(layer)
