"""Maps on GPUs: a thread computes a strip of the result, 16 bytes where its operands allow it, else one element.

Strips are the lanes of a block, and what lies along rows whose extents are multiples. Threads follow the result in
memory; where a source lies along another axis, its lanes or rows are what neighbouring threads read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tvm import tirx
from tvm.tirx import Expr, Stmt

from convc.ir import Node
from convc.lower.gpu_nest import GpuNest, Grid
from convc.lower.nest import Memory, block, get, put, scratch
from convc.lower.regions import Map, Region, regions
from convc.lower.strips import Strip, Value, first_of, lanes_of, load, moved, store, strip_of


@dataclass(frozen=True, eq=False)
class Threads(Map):
    """A map whose runs are strips."""

    @property
    def width(self) -> int:
        return lanes_of(self.result.type.dtype, *(m.type.dtype for m in self.memories.values()))

    @property
    def gpu(self) -> GpuNest:
        assert isinstance(self.nest, GpuNest)
        return self.nest


def threads_of(kernel: Map) -> Threads:
    return Threads(**{f.name: getattr(kernel, f.name) for f in fields(Map)})


def write_alike(kernel: Threads, count: int) -> Stmt:
    """All tensors lie alike: `count` elements of memory, padded lanes included."""
    nest, lanes = kernel.gpu, kernel.width

    def reads(at: Any) -> Mapping[Node, Any]:
        return {node: 0 if memory.type.elements == 1 else at for node, memory in kernel.memories.items()}

    def value(at: Any, instead: Mapping[Node, Expr]) -> Expr:
        def read(node: Node, memory: Memory, offset: Any) -> Callable[[Any], Expr]:
            return lambda _index: instead[node] if node in instead else nest.load(memory, offset)

        leaves = {n: read(n, kernel.memories[n], offset) for n, offset in reads(at).items()}
        return kernel.source.make(leaves, nest.simplify)([0] * len(kernel.shape))

    def grid(first: int, steps: int, width: int) -> Grid:
        def body(ids: Sequence[Any]) -> Stmt:
            def to(u: Any) -> Any:
                return nest.simplify(first + ids[0] * width + u)

            strip = Strip(kernel.memories, lambda u: reads(to(u)), lambda u, instead: value(to(u), instead))
            made, values = load(nest, strip, width)
            return block([*made, store(nest, kernel.result, to, width, values)])

        return (steps,), body

    whole = count // lanes
    return nest.together([grid(0, whole, lanes), grid(whole * lanes, count % lanes, 1)])


def write_regions(kernel: Threads) -> Stmt:
    """The regions of a map as one kernel."""
    return kernel.gpu.together([grid for region in regions(kernel) for grid in _grids(kernel, region)])


def _grids(kernel: Threads, region: Region) -> list[Grid]:
    if sum(count * lanes for _, count, lanes in (*region.runs, *region.zeros)) <= kernel.width:
        return [(region.extents, lambda ids: _one_block(kernel, region, ids))]
    found = [_grid(kernel, region, run) for run in region.runs]
    return [*found, *(_zeros(kernel, region, run) for run in region.zeros)]


def _grid(kernel: Threads, region: Region, run: tuple[int, int, int]) -> Grid:
    first, count, lanes = run
    if lanes > 1 and not _is_stored_whole(kernel, region, run):
        count, lanes = count * lanes, 1

    def body(ids: Sequence[Any]) -> Stmt:
        *outer, at = ids
        begin = kernel.nest.simplify(first + at * lanes)
        made, values = _loaded(kernel, region, outer, begin, lanes)
        return block([*made, store(kernel.gpu, kernel.result, _to(kernel, region, outer, begin), lanes, values)])

    return (*region.extents, count), body


def _is_stored_whole(kernel: Threads, region: Region, run: tuple[int, int, int]) -> bool:
    """Whether one access stores each strip of a run."""
    nest, (first, count, lanes) = kernel.gpu, run
    names = [nest.variable(e) if e > 1 else 0 for e in region.extents]
    at, u = nest.variable(count) if count > 1 else 0, nest.variable(lanes, "u")
    return first_of(nest, kernel.result, u, _to(kernel, region, names, first + at * lanes)(u), lanes) is not None


def _loaded(
    kernel: Threads, region: Region, ids: Sequence[Any], begin: Any, lanes: int
) -> tuple[list[Stmt], Value]:
    strip = strip_of(kernel.source, lambda u: region.place(ids, kernel.nest.simplify(begin + u)))
    return load(kernel.gpu, strip, lanes)


def _to(kernel: Threads, region: Region, ids: Sequence[Any], begin: Any) -> Callable[[Any], Any]:
    nest = kernel.nest
    return lambda u: nest.simplify(kernel.result.offset(region.place(ids, nest.simplify(begin + u))))


def _zeros(kernel: Threads, region: Region, run: tuple[int, int, int]) -> Grid:
    first, count, lanes = run

    def body(ids: Sequence[Any]) -> Stmt:
        *outer, at = ids
        return put(kernel.result.buffer, _to(kernel, region, outer, first + at)(0), lambda: _nothing(kernel))

    return (*region.extents, count * lanes), body


def _nothing(kernel: Threads) -> Expr:
    return tirx.const(0, kernel.result.type.dtype)


def _one_block(kernel: Threads, region: Region, ids: Sequence[Any]) -> Stmt:
    """The lanes of one block: all runs of a region, and zeros in the lanes that pad it."""
    nest = kernel.gpu
    runs = [(first + i * lanes, lanes) for first, count, lanes in region.runs for i in range(count)]
    zeros = [first + i for first, count, lanes in region.zeros for i in range(count * lanes)]
    begin, total = runs[0][0], sum(lanes for _, lanes in runs) + len(zeros)
    to = _to(kernel, region, ids, begin)
    if len(runs) == 1 and not zeros:
        made, values = _loaded(kernel, region, ids, begin, total)
        return block([*made, store(nest, kernel.result, to, total, values)])
    out, allocated = scratch(total, kernel.result.type.dtype, "lanes")
    statements: list[Stmt] = [allocated]
    for at, lanes in runs:
        made, values = _loaded(kernel, region, ids, at, lanes)
        statements += [*made, _held(nest, out, at - begin, lanes, values)]
    statements += [put(out, at - begin, lambda: _nothing(kernel)) for at in zeros]
    u = nest.variable(total, "u")
    first = first_of(nest, kernel.result, u, to(u), total)
    if first is not None:
        return block([*statements, moved(kernel.result.buffer, first, out, 0, total)])
    return block([*statements, nest.each_lane(total, lambda u: put(kernel.result.buffer, to(u), lambda: get(out, u)))])


def _held(nest: GpuNest, out: Any, begin: int, lanes: int, values: Value) -> Stmt:
    return nest.each_lane(lanes, lambda u: put(out, begin + u, lambda: values(u)))
