"""The core of a generic kernel: one node that is no map, what is computed on the way in, and what on the way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.tirx import Expr, Stmt

from convc.ir import Node
from convc.lower.nest import Memory, Nest
from convc.lower.source import Source

HALVES = ("float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class Core:
    """`node`, what its arguments come from, and `finish`: the node's element and its index -> the result's."""

    nest: Nest
    node: Node
    args: Sequence[Source]
    result: Memory
    finish: Callable[[Expr, Sequence[Any]], Expr]

    def store(self, index: Sequence[Any], value: Callable[[], Expr]) -> Stmt:
        return self.nest.store(self.result, index, lambda: self.finish(value(), index))

    @property
    def block(self) -> int:
        """The channel block in which the first argument lies, 1 where it is row-major."""
        x = self.args[0]
        lying = [m for m in x.memories.values() if m.type.shape == x.type.shape]
        return lying[0].layout.block if lying else 1


def wide(dtype: str) -> str:
    """What sums are computed in: float32 for 2-byte floats, else the type itself."""
    return "float32" if dtype in HALVES else dtype
