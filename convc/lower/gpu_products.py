"""Products of two activations on GPUs: a thread block owns a square of the result, a thread 4 x 4 of it, and both
operands go through shared memory, `DEPTH` of the sum at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.ir import MatMul
from convc.lower.access import align
from convc.lower.core import Core, wide
from convc.lower.elementwise import cast
from convc.lower.gpu_nest import GpuNest, barrier, both, when
from convc.lower.nest import as_index, block, get, put, scratch

DEPTH = 16
OWN = 4  # rows and columns of a thread
SIDES = (64, 32)  # of a block's square
ENOUGH = 128  # blocks, from which the larger square is taken
LEAST = 8  # rows and columns, below which squares would be mostly empty


def is_square(node: MatMul) -> bool:
    return min(node.shape[-2:]) >= LEAST and node.a.shape[-1] >= LEAST


def write_squares(core: Core, nest: GpuNest) -> Stmt:
    node = core.node
    assert isinstance(node, MatMul)
    *stack, m, n = node.shape
    counts = {side: math.prod(stack) * -(-m // side) * -(-n // side) for side in SIDES}
    side = next((s for s in SIDES if counts[s] >= ENOUGH), SIDES[-1])
    return _Squares(core, nest, node, side).write()


class _Squares:
    def __init__(self, core: Core, nest: GpuNest, node: MatMul, side: int) -> None:
        self.core, self.nest, self.node, self.side = core, nest, node, side
        *self.stack, self.m, self.n = node.shape
        self.depth, self.dtype = node.a.shape[-1], wide(node.dtype)
        self.threads = (side // OWN) ** 2

    def write(self) -> Stmt:
        extents = [*self.stack, -(-self.m // self.side), -(-self.n // self.side)]

        def body(group: Any, thread: Any) -> Stmt:
            at = self.nest.variable(math.prod(extents), "at")
            here = tirx.Bind(at, group)
            return block([here, self.nest.decoded(at, extents, lambda ids: self._square(ids, thread))])

        return self.nest.blocks(math.prod(extents), self.threads, body)

    def _square(self, ids: Sequence[Any], thread: Any) -> Stmt:
        *stack, bi, bj = ids
        nest, wideness = self.nest, self.side // OWN
        acc, made = scratch(OWN * OWN, self.dtype, "acc")
        a, b = (
            tirx.decl_buffer((DEPTH * (self.side + 1),), self.dtype, name, scope="shared") for name in ("left", "right")
        )
        across, down = nest.simplify(thread % wideness), nest.simplify(thread // wideness)

        def step(k0: Any) -> Stmt:
            loads = [self._left(a, stack, bi, k0, thread), self._right(b, stack, bj, k0, thread)]
            return block([*loads, barrier(), nest.loop(DEPTH, multiply), barrier()])

        def multiply(k: Any) -> Stmt:
            left, also = scratch(OWN, self.dtype, "l")
            right, too = scratch(OWN, self.dtype, "r")
            base = k * (self.side + 1)

            def product(i: Any) -> Stmt:
                return nest.each_lane(OWN, lambda j: self._add(acc, i, j, left, right))

            return block([
                also, too, nest.each_lane(OWN, lambda i: put(left, i, lambda: get(a, base + down * OWN + i))),
                nest.each_lane(OWN, lambda j: put(right, j, lambda: get(b, base + across + j * wideness))),
                nest.each_lane(OWN, product),
            ])  # fmt: skip

        def finish(i: Any) -> Stmt:
            return nest.each_lane(OWN, lambda j: store(i, j))

        def store(i: Any, j: Any) -> Stmt:
            row, column = bi * self.side + down * OWN + i, bj * self.side + across + j * wideness
            inside = both(_inside(row, self.m, self.side), _inside(column, self.n, self.side))
            value = get(acc, i * OWN + j)
            return when(inside, self.core.store([*stack, row, column], lambda: cast(value, self.node.dtype)))

        fill = nest.each_lane(OWN * OWN, lambda i: put(acc, i, lambda: tirx.const(0, self.dtype)))
        sums = nest.loop(-(-self.depth // DEPTH), lambda s: step(s * DEPTH))
        return block([made, fill, tirx.AllocBuffer(a), tirx.AllocBuffer(b), sums, nest.each_lane(OWN, finish)])

    def _add(self, acc: Any, i: Any, j: Any, left: Any, right: Any) -> Stmt:
        return put(acc, i * OWN + j, lambda: get(acc, i * OWN + j) + get(left, i) * get(right, j))

    def _left(self, to: Any, stack: Sequence[Any], bi: Any, k0: Any, thread: Any) -> Stmt:
        """Neighbouring threads along the rows of the left operand, which are its sums."""

        def place(t: Any) -> tuple[Any, Any]:
            return t // DEPTH, t % DEPTH

        def read(row: Any, k: Any) -> Expr:
            return self._value(0, stack, bi * self.side + row, k0 + k, self.m, self.depth)

        return self._copied(thread, lambda t: put(to, place(t)[1] * (self.side + 1) + place(t)[0],
                                                  lambda: read(*place(t))))  # fmt: skip

    def _right(self, to: Any, stack: Sequence[Any], bj: Any, k0: Any, thread: Any) -> Stmt:
        def place(t: Any) -> tuple[Any, Any]:
            return t // self.side, t % self.side

        def read(k: Any, column: Any) -> Expr:
            return self._value(1, stack, k0 + k, bj * self.side + column, self.depth, self.n)

        return self._copied(thread, lambda t: put(to, place(t)[0] * (self.side + 1) + place(t)[1],
                                                  lambda: read(*place(t))))  # fmt: skip

    def _copied(self, thread: Any, body: Callable[[Any], Stmt]) -> Stmt:
        each = DEPTH * self.side // self.threads
        return self.nest.each_lane(each, lambda i: body(self.nest.simplify(i * self.threads + thread)))

    def _value(self, which: int, stack: Sequence[Any], row: Any, column: Any, rows: int, columns: int) -> Expr:
        """An element of an operand; 0 outside."""
        shape, simplify = self.node.args[which].shape, self.nest.simplify
        held = [simplify(tirx.min(as_index(i), e - 1)) for i, e in ((row, rows), (column, columns))]
        index = [*align([*stack, 0, 0], shape)[:-2], *held]
        found = cast(self.core.args[which].value(index), self.dtype)
        inside = simplify(tirx.all(as_index(row) < rows, as_index(column) < columns))
        return found if inside is True else tirx.Select(inside, found, tirx.const(0, self.dtype))


def _inside(at: Any, extent: int, side: int) -> Any:
    return True if extent % side == 0 else as_index(at) < extent
