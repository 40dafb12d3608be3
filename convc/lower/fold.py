"""Folds over axes in vector accumulators, in an order that depends on nothing but the extents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.lower.boxes import linear
from convc.lower.core import Core, wide
from convc.lower.nest import Nest, block, get, pieces, put, scratch, unmerge
from convc.lower.source import Source, trace

# Independent accumulators: a vector addition takes 4 cycles and two start in each.
ACCUMULATORS = 4
# Additions into one accumulator before it joins the total. Rounding errors grow with this, not with the extent.
LONGEST_RUN = 256

State = Sequence[Expr]


@dataclass(frozen=True)
class Fold:
    """A state of several numbers: its start, its parts after one more element at a position, and two states in one.

    Part k of a step or merge may use the parts from k on: they are replaced in order.
    """

    dtypes: tuple[str, ...]
    start: tuple[float, ...]
    step: Callable[[int, State, Expr, Any], Expr]
    merge: Callable[[int, State, State], Expr]


@dataclass(frozen=True, eq=False)
class Lanes:
    """The vector axis at one place of the loops: `lanes` elements from `first` where it is kept, else all of it."""

    first: Any
    lanes: int


@dataclass(frozen=True, eq=False)
class Space:
    """The index space of x, its axes merged to `axes`: some kept, some folded, one of either along the vectors."""

    nest: Nest
    x: Source
    shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    folded: tuple[bool, ...]
    vector: int
    width: int

    @property
    def extents(self) -> list[int]:
        found = []
        for axis in self.axes:
            extent = 1
            for a in axis:
                extent *= self.shape[a]
            found.append(extent)
        return found

    @property
    def across(self) -> bool:
        """Whether the vectors lie along a folded axis, so that their lanes are folded in the end."""
        return self.folded[self.vector]

    def others(self, *, folded: bool) -> list[int]:
        """The merged axes beside that of the vectors."""
        return [k for k in range(len(self.axes)) if k != self.vector and self.folded[k] == folded]

    def index(self, kept: Sequence[Any], folded: Sequence[Any], at: Any) -> list[Any]:
        names: list[Any] = [0] * len(self.axes)
        for k, name in zip(self.others(folded=False), kept, strict=True):
            names[k] = name
        for k, name in zip(self.others(folded=True), folded, strict=True):
            names[k] = name
        names[self.vector] = at
        return unmerge(self.nest, self.shape, self.axes, names)

    def each_kept(self, body: Callable[[Sequence[Any], Lanes], Stmt]) -> Stmt:
        """`body` for every kept index, in parallel."""
        extents, kept = self.extents, self.others(folded=False)
        outer, work = [extents[k] for k in kept], self.x_elements
        if self.across:
            return self.nest.grid(outer, lambda ids: body(ids, Lanes(0, self.width)), work=work)

        def run(first: int, count: int, lanes: int) -> Stmt:
            def place(ids: Sequence[Any]) -> Stmt:
                *rest, i = ids
                return body(rest, Lanes(first + i * lanes, lanes))

            return self.nest.grid([*outer, count], place, work=work)

        return block([run(*piece) for piece in pieces(extents[self.vector], self.width)])

    def once(self, at: Lanes, statement: Stmt) -> Stmt:
        """`statement`, which writes for a kept index, by one of those who compute for it."""
        return statement

    @property
    def x_elements(self) -> int:
        total = 1
        for e in self.extents:
            total *= e
        return total

    def each_folded(self, at: Lanes, body: Callable[[Sequence[Any], Any], Stmt]) -> Stmt:
        """`body` in a vector loop for every folded index, given the index and the position along the vector axis."""
        nest, extents = self.nest, self.extents
        outer = [extents[k] for k in self.others(folded=True)]
        runs = pieces(extents[self.vector], self.width) if self.across else [(at.first, 1, at.lanes)]

        return nest.grid(outer, lambda ids: nest.elements(runs, lambda place: body(ids, place)))

    def fold(
        self,
        rule: Fold,
        at: Lanes,
        value: Callable[[Sequence[Any], Any], Expr],
        position: Callable[[Sequence[Any], Any], Any] = lambda _ids, _at: 0,
    ) -> tuple[list[Any], Stmt]:
        """The state's buffers (element lane where kept, element 0 where the lanes were folded) and what fills them."""
        return Folding(self, rule, at, value, position).write()


def space(core: Core, x: Source, folded: Sequence[int]) -> Space:
    """The index space of a fold of x over axes `folded`: vectors along the axis that lies innermost in memory."""
    shape, nest = x.type.shape, core.nest
    alone = 1 if core.block > 1 else None
    axes = _runs(shape, folded, alone)
    if not _evenly(x, axes):
        axes = [(a,) for a in range(len(shape))] or [()]
    long = [k for k, axis in enumerate(axes) if any(shape[a] > 1 for a in axis)]
    vector = axes.index((1,)) if alone else (long[-1] if long else 0)
    width = nest.lanes(x.type.dtype, wide(x.type.dtype))
    while alone and core.block < shape[1] and core.block % width:
        width //= 2
    kinds = tuple(bool(axis) and axis[0] in folded for axis in axes)
    return Space(nest, x, shape, tuple(axes), kinds, vector, width)


def _runs(shape: Sequence[int], folded: Sequence[int], alone: int | None) -> list[tuple[int, ...]]:
    """Neighbouring axes that are all kept or all folded, as one."""
    found: list[tuple[int, ...]] = []
    for a in range(len(shape)):
        joins = found and (a in folded) == (found[-1][-1] in folded) and alone not in (a, found[-1][-1])
        if joins:
            found[-1] = (*found[-1], a)
        else:
            found.append((a,))
    return found or [()]


def _evenly(x: Source, axes: Sequence[Sequence[int]]) -> bool:
    names = []
    for axis in axes:
        extent = 1
        for a in axis:
            extent *= x.type.shape[a]
        names.append(x.nest.variable(extent))
    offsets = trace(x, unmerge(x.nest, x.type.shape, axes, names)).offsets
    merged = [n for n, axis in zip(names, axes, strict=True) if len(axis) > 1]
    return all(linear(offset, name) is not None for offset in offsets for name in merged)


@dataclass(frozen=True, eq=False)
class Folding:
    space: Space
    rule: Fold
    at: Lanes
    value: Callable[[Sequence[Any], Any], Expr]
    position: Callable[[Sequence[Any], Any], Any]

    def write(self) -> tuple[list[Any], Stmt]:
        space, lanes = self.space, self.at.lanes
        inner = space.others(folded=True)[-1:] if not space.across else []
        outer = [space.extents[k] for k in space.others(folded=True) if k not in inner]
        length = space.extents[inner[0]] if inner else 1
        steps = max(c for _, c, _ in pieces(space.extents[space.vector], space.width)) if space.across else length
        count = max(a for a in (1, 2, ACCUMULATORS) if a <= max(steps, 1))
        parts = [scratch(count * lanes, d, "part") for d in self.rule.dtypes]
        totals = [scratch(lanes, d, "total") for d in self.rule.dtypes]
        part, total = [b for b, _ in parts], [b for b, _ in totals]

        def body(ids: Sequence[Any]) -> Stmt:
            if space.across:
                return self._along_vectors(ids, part, total, count)
            return self._along_loop(ids, length, part, total, count, has_loop=bool(inner))

        made = [statement for _, statement in (*parts, *totals)]
        statements = [*made, self._reset(total, lanes), space.nest.grid(outer, body)]
        return total, block([*statements, self._fold_lanes(total) if space.across else None])

    def _along_loop(
        self, ids: Sequence[Any], length: int, part: list[Any], total: list[Any], count: int, *, has_loop: bool
    ) -> Stmt:
        def run(first: Any, size: int) -> Stmt:
            def step(i: Any, a: int) -> Stmt:
                return self._step([*ids, first + i] if has_loop else list(ids), self.at.first, self.at.lanes, part, a)

            return self._run(size, step, part, total, count)

        return self._chunks(length, run)

    def _along_vectors(self, ids: Sequence[Any], part: list[Any], total: list[Any], count: int) -> Stmt:
        def run_of(first: int, lanes: int) -> Callable[[Any, int], Stmt]:
            def run(begin: Any, size: int) -> Stmt:
                def step(i: Any, a: int) -> Stmt:
                    return self._step(ids, first + (begin + i) * lanes, lanes, part, a)

                return self._run(size, step, part, total, count)

            return run

        space = self.space
        runs = pieces(space.extents[space.vector], space.width)
        return block([self._chunks(n, run_of(first, w)) for first, n, w in runs])

    def _chunks(self, length: int, run: Callable[[Any, int], Stmt]) -> Stmt:
        """`length` steps in runs short enough for their rounding errors."""
        size = LONGEST_RUN * ACCUMULATORS
        whole, rest = divmod(length, size)
        chunks = [self.space.nest.loop(whole, lambda t: run(t * size, size))] if whole else []
        return block([*chunks, *([run(whole * size, rest)] if rest else [])])

    def _run(self, size: int, step: Callable[[Any, int], Stmt], part: list[Any], total: list[Any], count: int) -> Stmt:
        """Start the accumulators, step through `size` elements in turns, and join them to the total."""
        nest, lanes = self.space.nest, self.at.lanes
        turns, rest = divmod(size, count)
        statements = [self._reset(part, count * lanes)]
        if turns:
            statements.append(nest.loop(turns, lambda i: block([step(i * count + a, a) for a in range(count)])))
        statements += [step(turns * count + a, a) for a in range(rest)]
        half = count // 2
        while half:
            statements += [self._join(part, a * lanes, part, (a + half) * lanes, lanes) for a in range(half)]
            half //= 2
        return block([*statements, self._join(total, 0, part, 0, lanes)])

    def _reset(self, state: list[Any], size: int) -> Stmt:
        def element(lane: Any) -> Stmt:
            parts = zip(state, self.rule.dtypes, self.rule.start, strict=True)
            return block([put(b, lane, partial(tirx.const, s, d)) for b, d, s in parts])

        return self.space.nest.vector(size, element)

    def _step(self, ids: Sequence[Any], first: Any, lanes: int, part: list[Any], a: int) -> Stmt:
        nest, base = self.space.nest, a * self.at.lanes

        def element(lane: Any) -> Stmt:
            at, place = nest.simplify(first + lane), base + lane

            def value(k: int) -> Expr:
                state = [get(b, place) for b in part]
                return self.rule.step(k, state, self.value(ids, at), self.position(ids, at))

            return block([put(b, place, partial(value, k)) for k, b in enumerate(part)])

        return nest.vector(lanes, element)

    def _join(self, to: list[Any], here: int, other: list[Any], there: int, lanes: int) -> Stmt:
        def element(lane: Any) -> Stmt:
            left = [get(b, here + lane) for b in to]
            right = [get(b, there + lane) for b in other]
            parts = [partial(self.rule.merge, k, left, right) for k in range(len(to))]
            return block([put(b, here + lane, part) for b, part in zip(to, parts, strict=True)])

        return self.space.nest.vector(lanes, element)

    def _fold_lanes(self, total: list[Any]) -> Stmt:
        statements, half = [], self.at.lanes // 2
        while half:
            statements.append(self._join(total, 0, total, half, half))
            half //= 2
        return block(statements)
