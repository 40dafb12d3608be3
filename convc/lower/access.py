"""Access: a tensor as a function from its logical index to a value, whatever its layout in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.sym import Analyzer
from tvm.tirx import Expr

from convc.ir.node import Array
from convc.layout import Layout

Access = Callable[[Sequence[Expr]], Expr]
Simplify = Callable[[Expr], Expr]


def access(tensor: te.Tensor, shape: Sequence[int], layout: Layout, *, dtype: str | None = None) -> Access:
    """Read `tensor`, the physical form in `layout` of logical `shape`, broadcasting as numpy does; as `dtype` if given.

    An index may be longer or larger than `shape`: leading axes are dropped, an axis of extent 1 is read at 0. A channel
    past the last one in memory (the lanes that pad a block of the reader) is read at the last, which TVM drops where it
    sees that there is none.
    """
    channels = layout.physical(shape)[1] * layout.block if layout.block > 1 else None

    def read(index: Sequence[Expr]) -> Expr:
        at = within(align(index, shape), shape, rank=len(index), channels=channels)
        value = tensor(*layout.index(at))
        return value if dtype is None else tirx.Cast(dtype, value)

    return read


def align(index: Sequence[Any], shape: Sequence[int]) -> list[Any]:
    """The index into a tensor of `shape` that numpy's broadcasting makes of an index of higher rank or extents."""
    tail = index[len(index) - len(shape) :]
    return [0 if extent == 1 else i for i, extent in zip(tail, shape, strict=True)]


def within(index: Sequence[Any], shape: Sequence[int], *, rank: int, channels: int | None = None) -> list[Any]:
    """`index` with the one axis that can lie past its end, a reader's channel axis (1 of `rank` axes), held inside."""
    axis = 1 - (rank - len(shape))
    found = list(index)
    if rank >= 3 and axis >= 0 and shape[axis] > 1:
        last = (channels if channels is not None and axis == 1 else shape[axis]) - 1
        found[axis] = least(found[axis], last)
    return found


def least(a: Any, b: Any) -> Any:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)


def most(a: Any, b: Any) -> Any:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.max(a, b)


def literal_of(value: Array) -> Expr:
    """The one element of `value`."""
    item = value.reshape(-1)[0].item()
    return tirx.const(item if np.isfinite(item) or value.dtype.kind == "f" else float(item), value.dtype.name)


def simplifier(analyzer: Analyzer | None = None) -> Simplify:
    known = analyzer or Analyzer()

    def simplify(x: Any) -> Any:
        return x if isinstance(x, int | bool) else plain_int(known.simplify(x))

    return simplify


def plain_int(x: Any) -> Any:
    """A constant integer or truth value as Python's own, so that it decides branches while code is written."""
    if isinstance(x, tirx.IntImm):
        return bool(x.value) if str(x.ty) == "bool" else int(x.value)
    return x
