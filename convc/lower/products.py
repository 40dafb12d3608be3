"""Sums of products that no algorithm of the library takes: convolutions in integers or by weights that are not
constant, and matrix products of two activations. Register tiles of outputs, each operand read once per tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.ir import Conv, ConvTranspose, MatMul
from convc.lower.access import align
from convc.lower.core import Core, wide
from convc.lower.elementwise import cast
from convc.lower.gpu_nest import GpuNest, Grid
from convc.lower.gpu_products import is_square, write_squares
from convc.lower.nest import as_index, block, get, pieces, put, scratch
from convc.lower.windows import Axis, Run, axes_of, runs

# 4 rows of 2 vectors: 8 accumulators, 2 vectors of one operand and a broadcast of the other fit 16 registers.
ROWS = 4


def _strips(extent: int) -> list[tuple[int, int, int]]:
    """(first, count, rows) of the strips of up to ROWS rows that cover `extent`."""
    whole, rest = divmod(extent, ROWS)
    return [(0, whole, ROWS)] * bool(whole) + [(whole * ROWS, 1, rest)] * bool(rest)


def _tile(
    core: Core,
    rows: int,
    lanes: int,
    *,
    sum_over: Callable[[Callable[..., Stmt]], Stmt],
    products: Callable[..., tuple[Callable[[Any], Expr], Callable[[int], Expr]]],
    write: Callable[[int, Any, Callable[[], Expr]], Stmt],
) -> Stmt:
    """acc[row, lane] = sum of vector(lane) * scalar(row), then `write` each. `sum_over` loops, `products` has both."""
    nest, dtype = core.nest, wide(core.node.dtype)
    acc, make = scratch(rows * lanes, dtype, "acc")

    def fill(lane: Any) -> Stmt:
        return put(acc, lane, lambda: tirx.const(0, dtype))

    def step(*place: Any) -> Stmt:
        vector, scalar = products(*place)

        def row(r: int) -> Stmt:
            def element(lane: Any) -> Stmt:
                at = r * lanes + lane
                return put(acc, at, lambda: get(acc, at) + cast(vector(lane), dtype) * cast(scalar(r), dtype))

            return nest.vector(lanes, element)

        return nest.unrolled(rows, row)

    def finish(r: int) -> Stmt:
        return nest.vector(lanes, lambda lane: write(r, lane, lambda: get(acc, r * lanes + lane)))

    return block([make, nest.vector(rows * lanes, fill), sum_over(step), nest.unrolled(rows, finish)])


def write_matmul(core: Core) -> Stmt:
    node, nest = core.node, core.nest
    assert isinstance(node, MatMul)
    *stack, m, n = node.shape
    depth, (a, b) = node.a.shape[-1], core.args
    shapes = [[*x.shape[:-2], x.shape[-2], x.shape[-1]] for x in (node.a, node.b)]

    def tile(ids: Sequence[Any], row: Any, rows: int, column: Any, lanes: int) -> Stmt:
        def products(k: Any) -> tuple[Callable[[Any], Expr], Callable[[int], Expr]]:
            vector = lambda lane: b.value([*align([*ids, k, column + lane], shapes[1])[:-2], k, column + lane])  # noqa: E731
            scalar = lambda r: a.value([*align([*ids, row + r, k], shapes[0])[:-2], row + r, k])  # noqa: E731
            return vector, scalar

        def write(r: int, lane: Any, value: Callable[[], Expr]) -> Stmt:
            return core.store([*ids, row + r, column + lane], lambda: cast(value(), node.dtype))

        return _tile(core, rows, lanes, sum_over=lambda step: nest.loop(depth, step), products=products, write=write)

    def alone(first: int, count: int, rows: int) -> Grid:
        def body(ids: Sequence[Any]) -> Stmt:
            *rest, i, column = ids
            return tile(rest, first + i * rows, rows, column, 1)

        return [*stack, count, n], body

    if isinstance(nest, GpuNest) and is_square(node):
        return write_squares(core, nest)
    if isinstance(nest, GpuNest):
        return nest.together([alone(*s) for s in _strips(m)])

    def strip(first: int, count: int, rows: int) -> Stmt:
        def body(ids: Sequence[Any]) -> Stmt:
            *rest, i = ids
            parts = pieces(n, nest.lanes(wide(node.dtype)))
            return nest.strips(parts, lambda column, lanes: tile(rest, first + i * rows, rows, column, lanes))

        return nest.grid([*stack, count], body, work=math.prod(stack) * m * n * depth)

    return block([strip(*s) for s in _strips(m)])


def write_conv(core: Core) -> Stmt:
    """Vectors along the last axis, run by run; rows are output channels of one group."""
    node = core.node
    assert isinstance(node, Conv | ConvTranspose)
    *outer, last = axes_of(node)
    group = node.shape[1] // node.group
    parts = [(core, tuple(outer), last, run, strip) for run in runs(last) for strip in _strips(group)]
    if isinstance(core.nest, GpuNest):
        return core.nest.together([_conv_grid(*part) for part in parts])
    return block([_conv_run(*part) for part in parts])


def _conv_run(core: Core, outer: Sequence[Axis], last: Axis, run: Run, strip: tuple[int, int, int]) -> Stmt:
    nest = core.nest
    extents, tile = _conv_tiles(core, outer, last, run, strip)
    parts = pieces(run.count, nest.lanes(wide(core.node.dtype)))

    def body(ids: Sequence[Any]) -> Stmt:
        return nest.strips(parts, lambda first, lanes: tile(ids, first, lanes))

    return nest.grid(extents, body, work=core.node.flops // 2)


def _conv_grid(core: Core, outer: Sequence[Axis], last: Axis, run: Run, strip: tuple[int, int, int]) -> Grid:
    """On GPUs: a thread for every pixel of a strip of channels."""
    extents, tile = _conv_tiles(core, outer, last, run, strip)
    return [*extents, run.count], lambda ids: tile(ids[:-1], ids[-1], 1)


def _conv_tiles(
    core: Core, outer: Sequence[Axis], last: Axis, run: Run, strip: tuple[int, int, int]
) -> tuple[list[int], Callable[[Sequence[Any], Any, int], Stmt]]:
    """Loops around tiles of rows along the last axis, and tile(ids, first, lanes)."""
    nest, node = core.nest, core.node
    assert isinstance(node, Conv | ConvTranspose)
    turned = isinstance(node, ConvTranspose)
    x, w, *bias = core.args
    per_in, per_out = node.x.shape[1] // node.group, node.shape[1] // node.group
    first, count, rows = strip

    def tile(ids: Sequence[Any], begin: Any, lanes: int) -> Stmt:
        n, g, o, *place = ids
        channel = nest.simplify(g * per_out + first + o * rows)

        def products(c: Any, taps: Sequence[Any], source: Sequence[Any], u: Any, at: Any) -> Any:
            vector = lambda lane: x.value([n, g * per_in + c, *source, at + (begin + lane) * last.step])  # noqa: E731
            if turned:
                return vector, lambda r: w.value([g * per_in + c, first + o * rows + r, *taps, u])
            return vector, lambda r: w.value([channel + r, c, *taps, u])

        def sum_over(step: Callable[..., Stmt]) -> Stmt:
            def along(c: Any, taps: Sequence[Any], source: Sequence[Any]) -> Stmt:
                return _last_taps(core, run, lambda u, at: step(c, taps, source, u, at))

            return nest.loop(per_in, lambda c: _outer_taps(core, outer, place, [], [], lambda t, s: along(c, t, s)))

        def write(r: int, lane: Any, value: Callable[[], Expr]) -> Stmt:
            def total() -> Expr:
                added = cast(bias[0].value([channel + r]), wide(node.dtype)) if bias else None
                return cast(value() if added is None else value() + added, node.dtype)

            index = [n, channel + r, *place, nest.simplify(run.begin + (begin + lane) * run.step)]
            return core.store(index, total)

        return _tile(core, rows, lanes, sum_over=sum_over, products=products, write=write)

    extents = [node.shape[0], node.group, count, *(axis.to for axis in outer)]
    return extents, tile


def _outer_taps(
    core: Core,
    outer: Sequence[Axis],
    place: Sequence[Any],
    taps: list[Any],
    source: list[Any],
    body: Callable[[Sequence[Any], Sequence[Any]], Stmt],
) -> Stmt:
    """`body` for every tap on the outer axes whose input exists, given the taps and the inputs."""
    k = len(taps)
    if k == len(outer):
        return body(taps, source)
    axis, o, simplify = outer[k], place[k], core.nest.simplify

    def inner(u: Any) -> Stmt:
        if axis.transposed:
            at = o + axis.before - u * axis.dilation
            fits = tirx.all(tirx.EQ(as_index(at) % axis.stride, 0), at >= 0, at < axis.extent * axis.stride)
            at = at // axis.stride
        else:
            at = o * axis.stride + u * axis.dilation - axis.before
            fits = tirx.all(as_index(at) >= 0, as_index(at) < axis.extent)
        rest = _outer_taps(core, outer, place, [*taps, u], [*source, simplify(at)], body)
        known = simplify(fits)
        if isinstance(known, bool):
            return rest if known else block([])
        return tirx.IfThenElse(known, rest, None)

    return core.nest.loop(axis.taps, inner)


def _last_taps(core: Core, run: Run, body: Callable[[Any, Any], Stmt]) -> Stmt:
    if len(run.taps) <= ROWS:
        return block([body(u, x) for u, x in run.taps])
    (u0, x0), (u1, x1) = run.taps[:2]
    return core.nest.loop(len(run.taps), lambda t: body(u0 + t * (u1 - u0), x0 + t * (x1 - x0)))
