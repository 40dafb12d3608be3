"""Loop nests for GPUs: each outermost grid of loops is a kernel, each of its iterations a thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.tirx import Stmt

from convc.lower.nest import Nest, block, number
from convc.target import Target

THREADS = 256  # of a block: enough to fill a multiprocessor at any number of registers that these kernels take
SPREAD = 256  # blocks, up to which they are smaller, so that more multiprocessors have one

Grid = tuple[Sequence[int], Callable[[list[Any]], Stmt]]
"""Extents, and what is done at each index: a thread each."""


@dataclass(eq=False)
class GpuNest(Nest):
    """A Nest whose outermost loops are threads; what lies inside of them is as on a CPU, one element at a time.

    Vectors are for where the address is known to be a multiple of them (convc/lower/gpu_maps.py): a row of an odd
    length is not.
    """

    launched: bool = field(default=False, init=False)

    @property
    def alone(self) -> bool:
        return True

    def lanes(self, *dtypes: str, vectors: int = 2) -> int:
        return 1

    def loop(self, extent: int, body: Callable[[Any], Stmt], *, kind: str = "serial", begin: int = 0) -> Stmt:
        if self.launched and kind == "vectorized":
            return self.each_lane(extent, body, begin=begin)
        if self.launched:
            return super().loop(extent, body, begin=begin)
        return self.grid([extent], lambda ids: body(self.simplify(begin + ids[0])))

    def each_lane(self, extent: int, body: Callable[[Any], Stmt], *, begin: int = 0) -> Stmt:
        """Element by element in registers. TVM's own vectors go wrong: it writes a 64-bit constant as four of 32."""
        if extent == 1:
            return body(begin)
        var = self.variable(extent, "lane", begin=begin)
        return tirx.For(var, number(begin), number(extent), tirx.ForKind.UNROLLED, body(var))

    def grid(self, extents: Sequence[int], body: Callable[[list[Any]], Stmt], *, work: int = 0) -> Stmt:
        if self.launched:
            return self._serial(list(extents), [], body)
        return self._kernel(list(extents), body)

    def _kernel(self, extents: list[int], body: Callable[[list[Any]], Stmt]) -> Stmt:
        return self.together([(extents, body)])

    def together(self, grids: Sequence[Grid]) -> Stmt:
        """Several grids as one kernel: its threads take the indices of one after those of the other."""
        some = [(list(extents), math.prod(extents), body) for extents, body in grids if math.prod(extents)]
        count = sum(size for _, size, _ in some)
        if count == 0:
            return block([])
        threads = next((t for t in (64, 128) if count < t * SPREAD), THREADS)
        groups = -(-count // threads)

        def inner(group: Any, thread: Any) -> Stmt:
            at, end = group * threads + thread, count
            found = None
            for k, (extents, size, body) in reversed(list(enumerate(some))):
                begin = end - size
                there = self._named(at - begin if begin else at, size, extents, body)
                every = k == len(some) - 1 and groups * threads == count
                found = there if every else tirx.IfThenElse(at < end, there, found)
                end = begin
            return found

        return self.blocks(groups, threads, inner)

    def blocks(self, count: int, threads: int, body: Callable[[Any, Any], Stmt]) -> Stmt:
        """A kernel: body(block, thread) in each of `count` blocks of `threads`."""
        group, thread = self.variable(count, "group"), self.variable(threads, "thread")
        self.launched = True
        try:
            inner = body(group, thread)
        finally:
            self.launched = False
        return bound(group, count, "blockIdx.x", bound(thread, threads, "threadIdx.x", inner))

    def decoded(self, position: Any, extents: Sequence[int], body: Callable[[list[Any]], Stmt]) -> Stmt:
        """`body` with the indices into `extents` that `position`, a name, counts."""
        return self._decoded(position, list(extents), body)

    def _named(self, at: Any, count: int, extents: list[int], body: Callable[[list[Any]], Stmt]) -> Stmt:
        position = self.variable(count)
        return block([tirx.Bind(position, at), self._decoded(position, extents, body)])


def bound(var: Any, extent: int, tag: str, body: Stmt) -> Stmt:
    """A loop whose iterations are the blocks or threads along `tag`."""
    axis = tirx.IterVar(None, tirx.Var(tag, "int32"), tirx.IterVar.ThreadIndex, tag)
    return tirx.For(var, number(0), number(extent), tirx.ForKind.THREAD_BINDING, body, thread_binding=axis)


def barrier() -> Stmt:
    """All threads of the block meet, and see what the others have written to shared memory."""
    return tirx.Evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))


def when(condition: Any, statement: Stmt) -> Stmt:
    return statement if condition is True else tirx.IfThenElse(condition, statement, None)


def both(a: Any, b: Any) -> Any:
    return b if a is True else a if b is True else tirx.all(a, b)


def nest_for(target: Target) -> Nest:
    return GpuNest(target) if target.kind == "cuda" else Nest(target)
