"""Local response normalisation: a window over channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.ir import LRN
from convc.lower.core import Core, wide
from convc.lower.elementwise import cast
from convc.lower.functions import LIBRARIES
from convc.lower.nest import as_index, block, get, pieces, put, scratch
from convc.lower.vector_math import let


def write_lrn(core: Core) -> Stmt:
    """For every pixel (or vector of pixels where channels are not innermost) the squares of all channels are laid out
    with the window's margins as zeros, so that no window asks where the channels end."""
    node = core.node
    assert isinstance(node, LRN)
    (batch, channels), spatial = node.shape[:2], node.shape[2:]
    if core.nest.alone:
        return _by_element(core, node)
    return _by_channel(core, node, batch, channels, spatial) if core.block > 1 or not spatial else _by_pixel(core, node)


def _terms(node: LRN) -> tuple[int, int]:
    """Neighbours before and after, no more than there are channels."""
    return min((node.size - 1) // 2, node.shape[1]), min(node.size // 2, node.shape[1])


def _scaled(node: LRN, x: Expr, total: Expr, dtype: str) -> Expr:
    base = total * tirx.const(node.alpha / node.size, dtype) + tirx.const(node.bias, dtype)
    if node.beta == 0.75:
        # b^(3/4) = sqrt(b) * sqrt(sqrt(b)), far cheaper than a power; the usual exponent.
        power = let(base, lambda b: let(tirx.sqrt(b), lambda r: r * tirx.sqrt(r)))
    else:
        power = LIBRARIES[dtype].pow(base, tirx.const(node.beta, dtype))
    return cast(tirx.Div(x, power), node.dtype)


def _by_channel(core: Core, node: LRN, batch: int, channels: int, spatial: Sequence[int]) -> Stmt:
    nest, dtype, (before, after) = core.nest, wide(node.dtype), _terms(node)
    width = nest.lanes(dtype)
    while core.block < channels and core.block % width:
        width //= 2

    def body(ids: Sequence[Any]) -> Stmt:
        n, *place = ids
        squares, made = scratch(before + channels + after, dtype, "squares")

        def read(c: Any) -> Expr:
            return cast(core.args[0].value([n, c, *place]), dtype)

        def zero(at: int) -> Stmt:
            return put(squares, at, lambda: tirx.const(0, dtype))

        def square(c: Any) -> Stmt:
            return put(squares, nest.simplify(c + before), lambda: let(read(c), lambda x: x * x))

        def scale(c: Any) -> Stmt:
            def value() -> Expr:
                total = tirx.const(0, dtype)
                for t in range(before + after + 1):
                    total = total + get(squares, nest.simplify(c + t))
                return _scaled(node, read(c), total, dtype)

            return core.store([n, c, *place], value)

        margins = [zero(i) for i in (*range(before), *range(before + channels, before + channels + after))]
        each = [nest.elements(pieces(channels, width), f) for f in (square, scale)]
        return block([made, *margins, *each])

    return nest.grid([batch, *spatial], body, work=math.prod(node.shape) * node.size)


def _by_element(core: Core, node: LRN) -> Stmt:
    """On GPUs a thread an element, in the order of x in memory; what neighbours read comes from the cache."""
    nest, dtype, (before, after), size = core.nest, wide(node.dtype), _terms(node), core.block
    batch, channels, *spatial = node.shape

    def body(ids: Sequence[Any]) -> Stmt:
        n, blk, *place, lane = ids
        c = nest.simplify(blk * size + lane)
        total, made = scratch(1, dtype, "total")

        def read(at: Any) -> Expr:
            return cast(core.args[0].value([n, at, *place]), dtype)

        at = nest.variable(channels, "c")
        begin = tirx.max(as_index(c) - before, 0)
        count = tirx.min(as_index(c) + after, channels - 1) - begin + 1
        add = put(total, 0, lambda: get(total, 0) + let(read(at), lambda x: x * x))
        write = core.store([n, c, *place], lambda: _scaled(node, read(c), get(total, 0), dtype))
        start = put(total, 0, lambda: tirx.const(0, dtype))
        statements = block([made, start, tirx.For(at, begin, count, tirx.ForKind.SERIAL, add), write])
        return statements if channels % size == 0 else tirx.IfThenElse(as_index(c) < channels, statements, None)

    return nest.grid([batch, -(-channels // size), *spatial, size], body)


def _by_pixel(core: Core, node: LRN) -> Stmt:
    """Vectors of pixels; the window over channels is a loop whose bounds stay inside."""
    nest, dtype, (before, after) = core.nest, wide(node.dtype), _terms(node)
    batch, channels, *rows, last = node.shape

    def body(ids: Sequence[Any]) -> Stmt:
        n, c, *place = ids

        def part(first: Any, lanes: int) -> Stmt:
            total, made = scratch(lanes, dtype, "total")

            def read(at: Any, lane: Any) -> Expr:
                return cast(core.args[0].value([n, at, *place, nest.simplify(first + lane)]), dtype)

            def add(at: Any) -> Stmt:
                def element(lane: Any) -> Stmt:
                    return put(total, lane, lambda: get(total, lane) + let(read(at, lane), lambda x: x * x))

                return nest.vector(lanes, element)

            def write(lane: Any) -> Stmt:
                index = [n, c, *place, nest.simplify(first + lane)]
                return core.store(index, lambda: _scaled(node, read(c, lane), get(total, lane), dtype))

            at = nest.variable(channels, "c")
            begin = tirx.max(as_index(c) - before, 0)
            count = tirx.min(as_index(c) + after, channels - 1) - begin + 1
            fill = nest.vector(lanes, lambda lane: put(total, lane, lambda: tirx.const(0, dtype)))
            return block(
                [made, fill, tirx.For(at, begin, count, tirx.ForKind.SERIAL, add(at)), nest.vector(lanes, write)]
            )

        return nest.strips(pieces(last, nest.lanes(dtype)), part)

    return nest.grid([batch, channels, *rows], body, work=math.prod(node.shape) * node.size)
