"""Layouts: how the axes of a tensor lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Layout:
    """Row-major, or with the channel axis (axis 1) split in blocks of `block` that become the innermost axis.

    `Layout()` is row-major (NCHW). `Layout(16)` is NCHW16c: [N, ceil(C/16), *spatial, 16]; lanes past C hold anything
    finite or not, so whoever reads channels stops at C. With `block` = C the layout is channels-last (NHWC), which
    for a rank-2 view is a row-major matrix. Tensors of rank below 3, or with one channel, are always row-major.
    """

    block: int = 1

    def __str__(self) -> str:
        return "plain" if self.block == 1 else f"c{self.block}"

    def physical(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Extents in memory of a tensor of logical `shape`."""
        if self.block == 1:
            return tuple(shape)
        return (shape[0], -(-shape[1] // self.block), *shape[2:], self.block)

    def logical(self, index: Sequence[Any]) -> tuple[Any, ...]:
        """The logical index of a physical one (numbers or TE expressions)."""
        if self.block == 1:
            return tuple(index)
        return (index[0], index[1] * self.block + index[-1], *index[2:-1])

    def index(self, logical: Sequence[Any]) -> tuple[Any, ...]:
        """The physical index of a logical one (numbers or TE expressions)."""
        if self.block == 1:
            return tuple(logical)
        return (logical[0], logical[1] // self.block, *logical[2:], logical[1] % self.block)


PLAIN = Layout()


def blocked(shape: Sequence[int], *, block: int) -> Layout:
    """The layout with `block` channels innermost where `shape` admits one, else row-major."""
    return Layout(block) if len(shape) >= 3 and shape[1] > 1 and block > 1 else PLAIN
