"""Pools: blocked ones in vectors of channels, row-major ones in vectors along the last axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.ir import Pool
from convc.lower.access import least, most
from convc.lower.core import Core, wide
from convc.lower.elementwise import cast
from convc.lower.functions import LIBRARIES, maximum
from convc.lower.gpu_nest import GpuNest, Grid
from convc.lower.nest import as_index, block, get, pieces, put, scratch
from convc.lower.reduction import lowest
from convc.lower.strips import elements, lanes_of, write
from convc.lower.vector_math import dtype_of, let
from convc.lower.windows import Axis, Run, axes_of, runs

# Taps along the last axis up to which they are written out one after the other.
MOST_UNROLLED = 8


def write_pool(core: Core) -> Stmt:
    node = core.node
    assert isinstance(node, Pool)
    *outer, last = axes_of(node)
    found = [_Run(core, node, tuple(outer), last, run) for run in runs(last)]
    if isinstance(core.nest, GpuNest):
        return core.nest.together([grid for run in found for grid in run.grids()])
    by_channels = core.block > 1
    return block([s for run in found for s in (run.by_channels() if by_channels else run.by_rows())])


@dataclass(frozen=True, eq=False)
class _Run:
    """The windows of one run of the last axis, for every batch, channel and place on the `outer` axes."""

    core: Core
    node: Pool
    outer: tuple[Axis, ...]
    last: Axis
    run: Run

    @property
    def rows(self) -> list[int]:
        return [axis.to for axis in self.outer]

    @property
    def width(self) -> int:
        width = self.core.nest.lanes(self.node.x.dtype, self.dtype)
        while 1 < self.core.block < self.node.shape[1] and self.core.block % width:
            width //= 2
        return width

    @property
    def dtype(self) -> str:
        return wide(self.node.x.dtype)

    @property
    def work(self) -> int:
        return math.prod(self.node.shape[:-1]) * self.run.count * math.prod(self.node.kernel)

    def by_channels(self) -> list[Stmt]:
        grids = self.by_channels_of(self.width)
        return [self.core.nest.grid(extents, body, work=self.work) for extents, body in grids]

    def grids(self) -> list[Grid]:
        """On GPUs: a thread takes the lanes of a block, or one window."""
        width = math.gcd(self.core.block, lanes_of(self.node.dtype, self.node.x.dtype))
        return self.by_channels_of(width)

    def by_channels_of(self, width: int) -> list[Grid]:
        batch, channels = self.node.shape[:2]

        def piece(first: int, count: int, lanes: int) -> Grid:
            def body(ids: Sequence[Any]) -> Stmt:
                n, c, *place, o = ids
                return self.window(n, place, lanes, lambda lane: (first + c * lanes + lane, o))

            return [batch, count, *self.rows, self.run.count], body

        return [piece(*p) for p in pieces(channels, width)]

    def by_rows(self) -> list[Stmt]:
        nest, (batch, channels) = self.core.nest, self.node.shape[:2]

        def body(ids: Sequence[Any]) -> Stmt:
            n, c, *place = ids

            def piece(first: Any, lanes: int) -> Stmt:
                return self.window(n, place, lanes, lambda lane: (c, first + lane))

            return nest.strips(pieces(self.run.count, self.width), piece)

        return [nest.grid([batch, channels, *self.rows], body, work=self.work)]

    def window(self, n: Any, place: Sequence[Any], lanes: int, at: Callable[[Any], tuple[Any, Any]]) -> Stmt:
        """One vector of windows; `at` gives the channel of a lane and its number in the run."""
        nest = self.core.nest
        total, make = scratch(lanes, self.dtype, "acc")
        start = tirx.const(lowest(self.dtype) if self.node.kind == "max" else 0, self.dtype)

        def taps(source: Sequence[Any]) -> Stmt:
            return self._taps(lambda u, x: add_all(source, x))

        def add_all(source: Sequence[Any], x: Any) -> Stmt:
            def index(lane: Any) -> list[Any]:
                channel, o = at(lane)
                return [n, channel, *source, nest.simplify(x + o * self.last.step)]

            made, element = elements(self.core.args[0], index, lanes)

            def add(lane: Any) -> Stmt:
                return put(total, lane, lambda: self._join(get(total, lane), cast(element(lane), self.dtype)))

            return block([*made, nest.vector(lanes, add)])

        def to(lane: Any) -> list[Any]:
            channel, o = at(lane)
            return [n, channel, *place, nest.simplify(self.run.begin + o * self.run.step)]

        def finish(lane: Any) -> Expr:
            return cast(self._finish(get(total, lane), place), self.node.dtype)

        fill = nest.vector(lanes, lambda lane: put(total, lane, lambda: start))
        return block([make, fill, self._rows(place, [], taps), write(self.core, to, lanes, finish)])

    def _rows(self, place: Sequence[Any], source: list[Any], body: Callable[[Sequence[Any]], Stmt]) -> Stmt:
        """`body` for every place of a window on the outer axes that lies inside the input."""
        k = len(source)
        if k == len(self.outer):
            return body(source)
        axis, o = self.outer[k], place[k]
        begin, end = tap_bounds(self.core.nest.simplify, axis, o, before=axis.before, extent=axis.extent)

        def inner(u: Any) -> Stmt:
            at = self.core.nest.simplify(o * axis.stride + u * axis.dilation - axis.before)
            return self._rows(place, [*source, at], body)

        if isinstance(begin, int) and isinstance(end, int):
            return self.core.nest.loop(end - begin, inner, begin=begin)
        u = self.core.nest.variable(axis.taps, "u")
        return tirx.For(u, as_index(begin), as_index(end - begin), tirx.ForKind.SERIAL, inner(u))

    def _taps(self, body: Callable[[Any, Any], Stmt]) -> Stmt:
        """`body` for every tap (u, input of the run's first window) along the last axis."""
        found = self.run.taps
        if len(found) <= MOST_UNROLLED:
            return block([body(u, x) for u, x in found])
        (u0, x0), (u1, x1) = found[:2]
        return self.core.nest.loop(len(found), lambda t: body(u0 + t * (u1 - u0), x0 + t * (x1 - x0)))

    def _join(self, total: Expr, x: Expr) -> Expr:
        match self.node.kind:
            case "max":
                return maximum(total, x)
            case "average":
                return total + x
        size = x if self.node.p % 2 == 0 else tirx.abs(x)
        return total + let(size, lambda x: math.prod([x] * (self.node.p - 1), start=x))

    def _finish(self, total: Expr, place: Sequence[Any]) -> Expr:
        dtype = dtype_of(total)
        if self.node.kind == "average":
            count = self._count(place)
            return tirx.Div(total, tirx.Cast(dtype, as_index(count)))
        if self.node.kind == "lp" and self.node.p == 2:
            return tirx.sqrt(total)
        if self.node.kind == "lp" and self.node.p > 1:
            return LIBRARIES[dtype].pow(total, tirx.const(1 / self.node.p, dtype))
        return total

    def _count(self, place: Sequence[Any]) -> Any:
        """Cells that an average divides by."""
        padded, simplify = self.node.count_pad, self.core.nest.simplify
        count: Any = self.run.counted if padded else len(self.run.taps)
        for axis, o in zip(self.outer, place, strict=True):
            before, extent = (0, axis.before + axis.extent + axis.after) if padded else (axis.before, axis.extent)
            begin, end = tap_bounds(simplify, axis, o, before=before, extent=extent)
            count = count * (end - begin)
        return simplify(most(count, 1))


def tap_bounds(simplify: Callable[[Any], Any], axis: Axis, o: Any, *, before: int, extent: int) -> tuple[Any, Any]:
    """[begin, end) of the taps u with 0 <= o*s + u*d - before < extent; no tap where none is."""
    s, d = axis.stride, axis.dilation
    begin = most(simplify((before - o * s + d - 1) // d), 0)
    end = least(simplify((before + extent - 1 - o * s) // d + 1), axis.taps)
    return simplify(begin), simplify(most(end, begin))
