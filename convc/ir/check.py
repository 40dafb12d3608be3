"""What every operation checks of its arguments, each check with the reason in words and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from convc.ir.node import TensorType

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES = (*FLOATS, *INTEGERS, "bool")
SUMS = {"int8": "int32", "uint8": "int32"}
"""By the type of activations, what their products by int8 weights are summed in; every other type sums in itself."""


def refuse(bad: bool, reason: str) -> None:
    """Raise ValueError(reason) where `bad` holds."""
    if bad:
        raise ValueError(reason)


def check_same_dtype(**types: TensorType) -> str:
    """The one dtype of all `types`; ValueError that names them where they differ."""
    dtypes = {t.dtype for t in types.values()}
    refuse(len(dtypes) > 1, "dtypes differ: " + ", ".join(f"{name} is {t}" for name, t in types.items()))
    return dtypes.pop()


def check_products(**types: TensorType) -> str:
    """The dtype of the sums of products of the second of `types` and the first; ValueError where they have none."""
    x, w = types.values()
    if x.dtype in SUMS and w.dtype == "int8":
        return SUMS[x.dtype]
    dtype = check_same_dtype(**types)
    refuse(dtype in SUMS, f"weights by which {dtype} is multiplied must be int8")
    return dtype


def check_numbers(name: str, type_: TensorType) -> None:
    refuse(type_.dtype not in FLOATS + INTEGERS, f"{name} must hold numbers, not {type_.dtype}")


def check_floats(name: str, type_: TensorType) -> None:
    refuse(type_.dtype not in FLOATS, f"{name} must hold floats, not {type_.dtype}")


def check_axis(axis: int, rank: int) -> None:
    refuse(not 0 <= axis < rank, f"axis {axis} lies outside a tensor of rank {rank}")


def check_axes(axes: Sequence[int], rank: int) -> None:
    """`axes` are within the rank, ascending and without repetition."""
    for axis in axes:
        check_axis(axis, rank)
    refuse(list(axes) != sorted(set(axes)), f"axes {tuple(axes)} are not ascending without repetition")


def check_lengths(count: int, **attributes: Sequence[object]) -> None:
    for name, value in attributes.items():
        refuse(len(value) != count, f"{name} has {len(value)} entries where {count} axes need one each")


def check_positive(**attributes: Sequence[int]) -> None:
    for name, value in attributes.items():
        refuse(any(v < 1 for v in value), f"{name} is {tuple(value)}; every entry must be 1 or more")


def check_spatial(x: TensorType) -> None:
    """x is [N, C, *I] with 1 to 3 spatial axes and no empty axis."""
    refuse(not 3 <= x.rank <= 5, f"x is {x}; it needs a batch axis, a channel axis and 1 to 3 spatial axes")
    check_positive(x=x.shape)
    check_numbers("x", x)


def window_extents(
    extents: Sequence[int],
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    pad: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    overhang: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """How many windows fit along each axis, with every number checked first."""
    beyond = tuple(overhang or (0,) * len(extents))
    check_lengths(len(extents), kernel=kernel, stride=stride, pad=pad, dilation=dilation, overhang=beyond)
    check_positive(kernel=kernel, stride=stride, dilation=dilation)
    refuse(any(p < 0 for pair in pad for p in pair), f"pad {tuple(pad)} has a negative entry")
    refuse(any(v < 0 for v in beyond), f"overhang {beyond} has a negative entry")
    found = []
    for i, k, s, (before, after), d, extra in zip(extents, kernel, stride, pad, dilation, beyond, strict=True):
        span, room = (k - 1) * d + 1, i + before + after + extra
        refuse(span > room, f"a kernel of {k} taps at dilation {d} spans {span}, the padded input only {room}")
        found.append((room - span) // s + 1)
    return tuple(found)


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """numpy's broadcasting of shapes, in Python integers."""
    rank = max((len(s) for s in shapes), default=0)
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    found = []
    for extents in zip(*padded, strict=True):
        wide = {e for e in extents if e != 1}
        refuse(len(wide) > 1, "shapes " + ", ".join(map(str, shapes)) + " do not broadcast together")
        found.append(wide.pop() if wide else 1)
    return tuple(found)


def wide_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float32 for the 2-byte floats, whose sums are not worth having; every other dtype is its own."""
    return np.dtype(np.float32) if dtype in (np.float16, ml_dtypes.bfloat16) else dtype
