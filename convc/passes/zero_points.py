"""Zero points out of the way of integer products, which then take numbers as they are stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convc.ir import Array, Binary, Cast, Const, Conv, MatMul, Node, Pad
from convc.ir.check import SUMS
from convc.passes.rewrite import Uses

INT32 = np.iinfo("int32").max


def move_zero_point(node: Node, uses: Uses) -> Node | None:
    """conv(cast(q, int32) - zero, w, b)  ->  conv(cast(pad(q, zero), int32), w, b - zero * sums of w), padding being
    the zero point itself, and matrix products alike; q in 8 bits, zero one number of its type. Not where a sum of
    products could leave int32 without the zero point.
    """
    match node:
        case Conv(Binary("sub", Cast(q, "int32"), Const(zero)), Const(w), None | Const() as b) if _is_of(zero, q):
            shift = _shift(w.reshape(w.shape[0], -1).T, zero, 0 if b is None else b.value)
            if shift is None:
                return None
            pads = ((0, 0), (0, 0), *node.pad)
            padded = Pad(q, pads, "constant", float(zero.item()), origin=node.origin) if any(map(any, node.pad)) else q
            wide = Cast(padded, "int32", origin=node.origin)
            return replace(node, x=wide, b=Const(shift), pad=tuple((0, 0) for _ in node.pad))
        case MatMul(Binary("sub", Cast(q, "int32"), Const(zero)), Const(w)) if w.ndim == 2 and _is_of(zero, q):
            shift = _shift(w, zero, 0)
            product = replace(node, a=Cast(q, "int32", origin=node.origin))
            return None if shift is None else Binary("add", product, Const(shift), origin=node.origin)
    return None


def _is_of(zero: Array, q: Node) -> bool:
    return q.dtype in SUMS and zero.size == 1 and bool(np.iinfo(q.dtype).min <= zero.item() <= np.iinfo(q.dtype).max)


def _shift(w: Array, zero: Array, b: Array | int) -> Array | None:
    """b - zero * (sums of w [depth, channels]) in int32; None where that or a sum of products could leave it."""
    wide = w.astype(np.int64)
    shift = b - int(zero.item()) * wide.sum(axis=0)
    most = max(255 * int(np.abs(wide).sum(axis=0).max(initial=0)), int(np.abs(shift).max(initial=0)))
    return shift.astype(np.int32) if most <= INT32 else None
