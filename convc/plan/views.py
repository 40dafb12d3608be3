"""Views: results that need no kernel, because their bytes lie already in another value's buffer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from convc.ir import Concat, Node, Reshape, Slice
from convc.layout import PLAIN, Layout, blocked
from convc.plan.plan import Copy

ALIGNMENT = 64
"""Bytes. Generated code takes it for granted of every pointer."""


def align(size: int) -> int:
    """`size` bytes rounded up to whole units of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def buffer_bytes(node: Node, layout: Layout) -> int:
    """What a value takes in memory, the lanes past its channels included."""
    return math.prod(layout.physical(node.shape)) * np.dtype(node.dtype).itemsize


def is_row_major(shape: Sequence[int], layout: Layout) -> bool:
    """Whether the bytes under `layout` are those of the row-major tensor: whole blocks, one pixel."""
    return layout == PLAIN or (shape[1] % layout.block == 0 and math.prod(shape[2:]) == 1)


def view_offsets(node: Node, reads: Sequence[Layout], result: Layout) -> tuple[int, ...] | None:
    """How far, in bytes, the result begins behind each argument in one common buffer; None where elements must move.

    Negative for the parts of a Concat, which begin behind their result. All are multiples of ALIGNMENT.
    """
    found: tuple[int, ...] | None = None
    match node:
        case Copy(x) | Reshape(x):
            same = node.shape == x.shape and reads[0] == result
            found = (0,) if same or (is_row_major(x.shape, reads[0]) and is_row_major(node.shape, result)) else None
        case Slice():
            found = _slice_offset(node, result) if reads[0] == result else None
        case Concat():
            found = _concat_offsets(node, result) if all(r == result for r in reads) else None
    return found if found is not None and all(offset % ALIGNMENT == 0 for offset in found) else None


def may_be_view(node: Node) -> bool:
    """Whether some choice of layouts (blocks of 8 or 16 where there are channels) makes `node` a view."""
    layouts = [PLAIN, *(blocked(node.shape, block=b) for b in (8, 16))]
    return any(view_offsets(node, [layout] * len(node.args), layout) is not None for layout in layouts)


def _slice_offset(node: Slice, layout: Layout) -> tuple[int, ...] | None:
    """The range is contiguous where every axis outside the last one that it cuts has one element left."""
    if any(step != 1 and size != 1 for step, size in zip(node.step, node.size, strict=True)):
        return None
    begin, block = node.begin, layout.block
    if block > 1:
        cut, last = begin[1] % block != 0, begin[1] + node.size[1] == node.x.shape[1]
        if cut or (node.size[1] % block != 0 and not last):
            return None
        begin = (begin[0], begin[1] // block, *begin[2:], 0)
    whole, kept = layout.physical(node.x.shape), layout.physical(node.shape)
    inmost = max((axis for axis, extent in enumerate(whole) if kept[axis] != extent), default=0)
    if math.prod(kept[:inmost]) != 1 and kept != whole:
        return None
    steps = [math.prod(whole[axis + 1 :]) for axis in range(len(whole))]
    return (sum(b * s for b, s in zip(begin, steps, strict=True)) * np.dtype(node.dtype).itemsize,)


def _concat_offsets(node: Concat, layout: Layout) -> tuple[int, ...] | None:
    """Parts follow each other where no axis outside theirs has more than one element; only the last may leave lanes."""
    if math.prod(layout.physical(node.shape)[: node.axis]) != 1:
        return None
    if node.axis == 1 and any(x.shape[1] % layout.block for x in node.xs[:-1]):
        return None
    sizes = [buffer_bytes(x, layout) for x in node.xs]
    return tuple(-sum(sizes[:i]) for i in range(len(sizes)))
