"""Kernels that compute each element on its own: elementwise chains, changes of layout, and whatever moves elements.

The loops follow the result in memory, its innermost axis in vectors; where a source lies along another axis than the
result, tiles of it go through the stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.ir import Node
from convc.lower.access import Access
from convc.lower.gpu_maps import threads_of, write_alike, write_regions
from convc.lower.nest import PARALLEL_WORK, Memory, as_index, block, get, number, parallel_parts, pieces, put, scratch
from convc.lower.regions import Map, Region, regions, step
from convc.lower.source import free_variables, trace
from convc.lower.transpose import fits, transpose


def write_map(kernel: Map) -> Stmt:
    """Every element of the result; lanes that pad its channels get 0, or what the same lanes of the leaves give."""
    if math.prod(kernel.shape) == 0:
        return block([])
    alike = kernel.source.elementwise and all(_same(kernel, m) for m in kernel.memories.values())
    if kernel.nest.alone:
        count = math.prod(kernel.result.layout.physical(kernel.shape))
        return write_alike(threads_of(kernel), count) if alike else write_regions(threads_of(kernel))
    if alike:
        return _flat(kernel)
    return block([s for region in regions(kernel) for s in _write_region(kernel, region)])


def _same(kernel: Map, memory: Memory) -> bool:
    one = memory.type.elements == 1
    return one or (memory.type.shape == kernel.shape and memory.layout == kernel.result.layout)


def _flat(kernel: Map) -> Stmt:
    """All tensors lie alike: one loop over memory, padded lanes included."""
    nest, result = kernel.nest, kernel.result
    count = math.prod(result.layout.physical(kernel.shape))

    def element(at: Any) -> Stmt:
        def read(memory: Memory) -> Access:
            return lambda _index: nest.load(memory, 0 if memory.type.elements == 1 else nest.simplify(at))

        leaves = {node: read(memory) for node, memory in kernel.memories.items()}
        value = kernel.source.make(leaves, nest.simplify)
        return put(result.buffer, nest.simplify(at), lambda: value([0] * len(kernel.shape)))

    def vectors(first: int, steps: int, width: int) -> Stmt:
        kind = "parallel" if count >= PARALLEL_WORK else "serial"
        return nest.loop(steps, lambda i: nest.vector(width, lambda lane: element(first + i * width + lane)), kind=kind)

    return block([vectors(*piece) for piece in pieces(count, kernel.width)])


def _write_region(kernel: Map, region: Region) -> list[Stmt]:
    nest = kernel.nest
    across = _across(kernel, region)
    if across is not None:
        return [*_tiles(kernel, region, *across), *_zeros(kernel, region)]
    region, rest = _for_threads(region)

    def body(ids: Sequence[Any]) -> Stmt:
        def element(at: Any) -> Stmt:
            index = region.place(ids, at)
            return nest.store(kernel.result, index, lambda: kernel.source.value(index))

        return block([nest.elements(region.runs, element), _pad(kernel, region, ids)])

    written = [nest.grid(region.extents, body, work=region.elements)]
    return written if rest is None else [*written, *_write_region(kernel, rest)]


def _for_threads(region: Region) -> tuple[Region, Region | None]:
    """Few outer iterations around long vectors: the vectors' own loop is cut in parts, and what is left follows."""
    outer, (first, count, lanes) = math.prod(region.extents), region.runs[0]
    parts = parallel_parts(count, outer)
    if region.elements < PARALLEL_WORK or parts == 1 or outer * count < 4 or region.zeros:
        return region, None
    size = count // parts * lanes

    def place(ids: Sequence[Any], u: Any) -> list[Any]:
        *rest, part = ids
        return region.place(rest, part * size + u)

    main = replace(region, extents=(*region.extents, parts), runs=((first, count // parts, lanes),), place=place)
    return main, replace(region, runs=region.runs[1:]) if len(region.runs) > 1 else None


def _across(kernel: Map, region: Region) -> tuple[int, list[Node]] | None:
    """The loop along which sources lie that do not lie along the vectors, and those sources."""
    nest = kernel.nest
    first, count, lanes = region.runs[0]
    if lanes == 1:
        return None
    u = nest.variable(count * lanes, begin=first)
    names = [nest.variable(e) if e > 1 else 0 for e in region.extents]
    found = trace(kernel.source, region.place(names, u))
    strided = [(n, o) for n, o in zip(found.nodes, found.offsets, strict=True) if step(o, u) not in (0, 1)]
    if not strided or any(found.nodes.count(n) > 1 or _outside(o, [*names, u]) for n, o in strided):
        return None
    for k, name in enumerate(names):
        if not isinstance(name, int) and region.extents[k] >= 4 and all(step(o, name) == 1 for _, o in strided):
            return k, [n for n, _ in strided]
    return None


def _outside(offset: Any, loops: Sequence[Any]) -> bool:
    """Whether an offset depends on more than the loop variables: on what was read."""
    known = [v for v in loops if not isinstance(v, int)]
    return any(not any(v.same_as(k) for k in known) for v in free_variables(offset))


def _tiles(kernel: Map, region: Region, along: int, staged: Sequence[Node]) -> list[Stmt]:
    """Tiles of lanes x lanes: rows are read along loop `along`, columns of the tile written along the vectors."""
    nest = kernel.nest
    around = [*region.extents[:along], *region.extents[along + 1 :]]
    side = nest.target.lanes

    def tile(v: tuple[int, int, int], u: tuple[int, int, int]) -> Stmt:
        def body(ids: Sequence[Any]) -> Stmt:
            *rest, i, j = ids

            def place(down: Any, across: Any) -> list[Any]:
                loops = [*rest[:along], v[0] + i * v[2] + down, *rest[along:]]
                return region.place(loops, u[0] + j * u[2] + across)

            return _tile(kernel, place, staged, down=v[2], across=u[2])

        work = math.prod(around) * v[1] * v[2] * u[1] * u[2]
        return nest.grid([*around, v[1], u[1]], body, work=work)

    columns = []
    for first, count, lanes in region.runs:
        wide = 2 * side if count * lanes % (2 * side) == 0 else side
        columns += pieces(count * lanes, wide, begin=first)
    return [tile(v, u) for v in pieces(region.extents[along], side) for u in columns]


def _tile(
    kernel: Map, place: Callable[[Any, Any], list[Any]], staged: Sequence[Node], *, down: int, across: int
) -> Stmt:
    """One tile: rows in, then columns out; what computes goes through a second tile and is written once, in a loop."""
    nest = kernel.nest
    if down == nest.target.lanes and across % down == 0 and fits(down, *_dtypes(kernel, staged)):
        return _square_tile(kernel, place, staged, side=down, across=across)
    tiles = _scratch(kernel, staged, down * across, "rows")

    def row(a: int) -> Stmt:
        def copy(lane: Any, node: Node) -> Stmt:
            found = trace(kernel.source, place(lane, a))
            offset = found.offsets[found.nodes.index(node)]
            return put(tiles[node][0], a * down + lane, lambda: nest.load(kernel.memories[node], offset))

        return block([nest.vector(down, partial(copy, node=node)) for node in staged])

    def below(node: Node, b: int, lane: Any) -> Expr:
        return get(tiles[node][0], lane * down + b)

    made, rows = [made for _, made in tiles.values()], [row(a) for a in range(across)]
    if kernel.source.copies:
        return block([*made, *rows, *(_column(kernel, place, staged, below, b, across) for b in range(down))])
    turned = _scratch(kernel, staged, down * across, "columns")

    def turn(b: int) -> Stmt:
        def move(lane: Any, node: Node) -> Stmt:
            return put(turned[node][0], b * across + lane, lambda: below(node, b, lane))

        return block([nest.vector(across, partial(move, node=node)) for node in staged])

    made += [made for _, made in turned.values()]
    return block([*made, *rows, *(turn(b) for b in range(down)), _columns(kernel, place, turned, down, across)])


def _scratch(kernel: Map, staged: Sequence[Node], count: int, name: str) -> dict[Node, tuple[Any, Stmt]]:
    return {n: scratch(count, kernel.memories[n].type.dtype, name) for n in staged}


def _columns(
    kernel: Map, place: Callable[[Any, Any], list[Any]], turned: Mapping[Node, tuple[Any, Stmt]],
    down: int, across: int,
) -> Stmt:  # fmt: skip
    """Every column of a tile that `turned` holds column by column, in a loop."""

    def along(node: Node, b: Any, lane: Any) -> Expr:
        return get(turned[node][0], kernel.nest.simplify(b * across + lane))

    return kernel.nest.loop(down, lambda b: _column(kernel, place, list(turned), along, b, across))


def _column(
    kernel: Map, place: Callable[[Any, Any], list[Any]], staged: Sequence[Node],
    value: Callable[[Node, Any, Any], Expr], b: Any, across: int,
) -> Stmt:  # fmt: skip
    """Column b of a tile, with value(node, b, lane) for what the source reads of `staged`."""

    def element(lane: Any) -> Stmt:
        index, values = place(b, lane), {n: value(n, b, lane) for n in staged}
        return kernel.nest.store(kernel.result, index, lambda: kernel.source.value(index, instead=values))

    return kernel.nest.vector(across, element)


def _dtypes(kernel: Map, staged: Sequence[Node]) -> list[str]:
    copied = [kernel.result.type.dtype] if kernel.source.copies else []
    return [*copied, *(kernel.memories[n].type.dtype for n in staged)]


def _square_tile(
    kernel: Map, place: Callable[[Any, Any], list[Any]], staged: Sequence[Node], *, side: int, across: int
) -> Stmt:
    """As `_tile`, of whole squares of vectors, which are turned in registers; straight into the result where it is
    nothing but what was read."""
    nest = kernel.nest
    turned = _scratch(kernel, staged, side * across, "columns")
    decided = not trace(kernel.source, place(nest.variable(side), nest.variable(across))).conditions
    straight = kernel.source.copies and decided

    def vector(offset: Any) -> Expr:
        return tirx.Ramp(as_index(nest.simplify(offset)), number(1), side)

    def square(node: Node, first: int) -> list[Stmt]:
        memory = kernel.memories[node]

        def row(a: int) -> Expr:
            found = trace(kernel.source, place(0, first + a))
            return tirx.BufferLoad(memory.buffer, [vector(found.offsets[found.nodes.index(node)])])

        made, columns = transpose([row(a) for a in range(side)], memory.type.dtype)
        if straight:
            places = [(kernel.result.buffer, kernel.result.offset(place(b, first))) for b in range(side)]
        else:
            places = [(turned[node][0], b * across + first) for b in range(side)]
        stores = [tirx.BufferStore(b, c, [vector(at)]) for (b, at), c in zip(places, columns, strict=True)]
        return [*made, *stores]

    squares = [s for first in range(0, across, side) for node in staged for s in square(node, first)]
    if straight:
        return block(squares)
    return block([*(made for _, made in turned.values()), *squares, _columns(kernel, place, turned, side, across)])


def _zeros(kernel: Map, region: Region) -> list[Stmt]:
    if not region.zeros:
        return []

    return [kernel.nest.grid(region.extents, lambda ids: _pad(kernel, region, ids))]


def _pad(kernel: Map, region: Region, ids: Sequence[Any]) -> Stmt:
    """Zeros in the lanes past the last channel."""
    nest, nothing = kernel.nest, tirx.const(0, kernel.result.type.dtype)
    return nest.elements(region.zeros, lambda at: nest.store(kernel.result, region.place(ids, at), lambda: nothing))
