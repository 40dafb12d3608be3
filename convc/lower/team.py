"""Folds on GPUs: threads that share a kept element each fold a part of it, and then fold their states.

A team is `columns` threads along the kept elements that lie side by side in memory, times `rows` threads along the
folded ones; neighbouring threads read neighbouring elements. States meet in registers (shuffles of a warp), then in
shared memory (warps of a team). Every thread of a team ends with the same state, bit for bit: merging takes its
arguments in either order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.gpu import WARP
from convc.lower.core import Core
from convc.lower.fold import ACCUMULATORS, Fold, Folding, Lanes, Space, space
from convc.lower.gpu_nest import THREADS, GpuNest, barrier, both, when
from convc.lower.nest import as_index, block, get, put, scratch

LARGEST = 512  # threads of a team
FILLED = 1 << 17  # threads that keep the largest GPUs busy
SHORTEST = 8  # folded elements, of which one thread can as well take all
FEWEST = 4  # of those, for each thread of a team
SPREAD = 256  # blocks, up to which a warp has one for itself
ALL_LANES = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class Member(Lanes):
    """A thread of a team: its kept element is `first`, and there where `exists` holds; `row` is its number among those
    who share it, `column` its number beside them."""

    row: Any
    column: Any
    exists: Any


@dataclass(frozen=True, eq=False)
class Teams(Space):
    """A Space whose kept elements have teams; `count` of them in a thread block. `contiguous` are the folded elements
    along the vector axis that lie side by side."""

    columns: int
    rows: int
    count: int
    contiguous: int

    @property
    def gpu(self) -> GpuNest:
        assert isinstance(self.nest, GpuNest)
        return self.nest

    @property
    def threads(self) -> int:
        return self.columns * self.rows

    @property
    def turned(self) -> bool:
        """Whether the blocks of the folded vector axis are counted outside of the other folded axes, as they lie."""
        extent = self.extents[self.vector]
        return self.across and self.contiguous < extent and extent % self.contiguous == 0

    @property
    def folded_extents(self) -> list[int]:
        """Of the loops over the folded elements in the order of memory, so far as that is known."""
        others = [self.extents[k] for k in self.others(folded=True)]
        if not self.across:
            return others
        extent = self.extents[self.vector]
        return [extent // self.contiguous, *others, self.contiguous] if self.turned else [*others, extent]

    def each_kept(self, body: Callable[[Sequence[Any], Lanes], Stmt]) -> Stmt:
        extents = self.extents
        side = 1 if self.across else extents[self.vector]
        outer = [*(extents[k] for k in self.others(folded=False)), -(-side // self.columns)]
        total, nest = math.prod(outer), self.gpu
        if total == 0:
            return block([])

        def member(group: Any, thread: Any) -> Stmt:
            at, row = nest.variable(total, "at"), nest.variable(self.rows, "row")
            column = nest.variable(self.columns, "column")
            team = group * self.count + thread // self.threads
            exists = as_index(team) < total if total % self.count else True

            def place(ids: Sequence[Any]) -> Stmt:
                *kept, part = ids
                if self.across:
                    return body(kept, Member(0, 1, row, column, exists))
                first = nest.variable(side, "first")
                here = nest.simplify(part * self.columns + column)
                there = exists if side % self.columns == 0 else both(exists, as_index(here) < side)
                bound = tirx.Bind(first, as_index(nest.simplify(tirx.min(as_index(here), side - 1))))
                return block([bound, body(kept, Member(first, 1, row, column, there))])

            names = [
                tirx.Bind(at, as_index(nest.simplify(tirx.min(as_index(team), total - 1)))),
                tirx.Bind(row, as_index(nest.simplify(thread % self.threads // self.columns))),
                tirx.Bind(column, as_index(nest.simplify(thread % self.columns))),
            ]
            return block([*names, nest.decoded(at, outer, place)])

        return nest.blocks(-(-total // self.count), self.count * self.threads, member)

    def once(self, at: Lanes, statement: Stmt) -> Stmt:
        assert isinstance(at, Member)
        return when(both(at.exists, tirx.EQ(at.row, 0)), statement)

    def each_folded(self, at: Lanes, body: Callable[[Sequence[Any], Any], Stmt]) -> Stmt:
        assert isinstance(at, Member)
        return when(at.exists, self.shared_out(at, lambda i: self.element(i, at, body)))

    def shared_out(self, at: Member, body: Callable[[Any], Stmt]) -> Stmt:
        """`body` for every folded element that is this thread's, by its number."""
        whole, rest = divmod(math.prod(self.folded_extents), self.rows)
        each = self.nest.loop(whole, lambda i: body(i * self.rows + at.row)) if whole else None
        return block([each, when(at.row < rest, body(whole * self.rows + at.row)) if rest else None])

    def element(self, number: Any, at: Lanes, body: Callable[[Sequence[Any], Any], Stmt]) -> Stmt:
        """`body` with the folded index, and the position along the vector axis, of a folded element."""
        extents, nest = self.folded_extents, self.gpu

        def place(ids: Sequence[Any]) -> Stmt:
            if not self.across:
                return body(ids, at.first)
            if self.turned:
                outer, *others, lane = ids
                return body(others, nest.simplify(outer * self.contiguous + lane))
            *others, position = ids
            return body(others, position)

        if sum(e > 1 for e in extents) <= 1:
            return place([nest.simplify(number) if e > 1 else 0 for e in extents])
        name = nest.variable(math.prod(extents))
        return block([tirx.Bind(name, as_index(nest.simplify(number))), nest.decoded(name, extents, place)])

    def fold(
        self,
        rule: Fold,
        at: Lanes,
        value: Callable[[Sequence[Any], Any], Expr],
        position: Callable[[Sequence[Any], Any], Any] = lambda _ids, _at: 0,
    ) -> tuple[list[Any], Stmt]:
        return _TeamFolding(self, rule, at, value, position).write()


@dataclass(frozen=True, eq=False)
class _TeamFolding(Folding):
    space: Teams

    def write(self) -> tuple[list[Any], Stmt]:
        space, at = self.space, self.at
        assert isinstance(at, Member)
        whole, rest = divmod(math.prod(space.folded_extents), space.rows)
        most = ACCUMULATORS if len(self.rule.dtypes) == 1 else 1  # a state of several parts is long text as it is
        count = max(a for a in (1, 2, most) if a <= max(min(whole, most), 1))
        part, made = self._state("part", count)
        total, also = self._state("total")

        def step(i: Any, buffers: list[Any], a: int) -> Stmt:
            return space.element(
                i * space.rows + at.row, at, lambda ids, place: self._step(ids, place, 1, buffers, a)
            )

        def run(first: Any, size: int) -> Stmt:
            return self._run(size, lambda i, a: step(first + i, part, a), part, total, count)

        last = when(at.row < rest, step(whole, total, 0)) if rest else None
        parts = [made, also, self._reset(total, 1), self._chunks(whole, run), last]
        return total, block([*parts, self._among_lanes(total), self._among_warps(total, at)])

    def _state(self, name: str, count: int = 1) -> tuple[list[Any], Stmt]:
        made = [scratch(count, d, name) for d in self.rule.dtypes]
        return [b for b, _ in made], block([s for _, s in made])

    def _among_lanes(self, total: list[Any]) -> Stmt:
        """Fold the states of the lanes of a warp that are in one column."""
        other, made = self._state("other")
        statements, mask = [made], self.space.columns
        while mask < min(WARP, self.space.threads):
            statements += [put(o, 0, partial(_from_lane, get(t, 0), mask)) for o, t in zip(other, total, strict=True)]
            statements.append(self._join(total, 0, other, 0, 1))
            mask *= 2
        return block(statements) if len(statements) > 1 else block([])

    def _among_warps(self, total: list[Any], at: Member) -> Stmt:
        """Fold the states of the warps of a team."""
        space, warps = self.space, self.space.threads // WARP
        if warps <= 1:
            return block([])
        columns, simplify = space.columns, space.nest.simplify
        shared = [
            tirx.decl_buffer((warps * columns,), d, "shared", scope="shared") for d in self.rule.dtypes
        ]
        made = [tirx.AllocBuffer(b) for b in shared]
        deep = WARP // columns  # rows of a warp
        place = simplify(at.row // deep * columns + at.column)
        puts = block([put(s, place, partial(get, t, 0)) for s, t in zip(shared, total, strict=True)])
        mine = when(tirx.EQ(at.row % deep, 0) if deep > 1 else True, puts)
        joins = [self._join(total, 0, shared, simplify(w * columns + at.column), 1) for w in range(warps)]
        return block([*made, mine, barrier(), self._reset(total, 1), *joins])


def _from_lane(x: Expr, mask: int) -> Expr:
    """x of the lane whose number differs in the bits of `mask`; small integers travel as int."""
    return tirx.call_extern(str(x.ty), "__shfl_xor_sync", tirx.const(ALL_LANES, "uint32"), x, tirx.const(mask, "int32"))


def folds(core: Core, folded: Sequence[int]) -> Space:
    """The index space of a fold of the first argument of `core` over axes `folded`."""
    found = space(core, core.args[0], folded)
    return _teams(found, core.block) if core.nest.alone else found


def _teams(found: Space, lanes: int) -> Space:
    """Teams where one thread for each kept element would leave the machine idle, or read apart from its neighbours."""
    extents = found.extents
    kept = math.prod(e for e, folded in zip(extents, found.folded, strict=True) if not folded)
    folded = math.prod(extents) // max(kept, 1)
    side = extents[found.vector]
    if kept == 0 or folded < (WARP if found.across else SHORTEST) or (not found.across and kept >= FILLED):
        return found
    beside = min(side, lanes) if lanes > 1 else side  # elements in a row along the vector axis
    columns = 1 if found.across else min(WARP, _power(beside))
    around = kept if found.across else kept // side * -(-side // columns) * columns
    rows = min(_power(folded // FEWEST), LARGEST // columns, _power(-(-2 * FILLED // around) - 1))
    rows = max(rows, WARP // columns)
    count = min(THREADS // WARP, _power(around // columns // SPREAD)) if columns * rows == WARP else 1
    known = {f.name: getattr(found, f.name) for f in fields(found)}
    return Teams(**known, columns=columns, rows=rows, count=count, contiguous=beside)


def _power(value: int) -> int:
    """The largest power of two up to `value`, at least 1."""
    return 1 << max(value, 1).bit_length() - 1
