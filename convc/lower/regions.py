"""In which order the elements of a map are written: regions of nested loops around vectors, each region straight.

Index space is cut into boxes where guards change (so Concat is a copy per part, Pad a fill per border), and channels
into runs in which neither the result nor a source passes from one block to the next.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.tirx import Expr

from convc.ir import Node
from convc.lower.boxes import Box, boxes, linear
from convc.lower.nest import Memory, Nest, pieces, unmerge
from convc.lower.source import Source, free_variables, trace

# A channel index that no formula of the lanes gives is written lane by lane; beyond this many the code would not pay.
MOST_SINGLE_CHANNELS = 1024
# On GPUs: the width below which a box has too few threads beside each other, and how many boxes a kernel may have.
NARROW = 32
MOST_BOXES = 48


@dataclass(frozen=True, eq=False)
class Map:
    """Every element of `result` is that of `source`."""

    source: Source
    result: Memory

    @property
    def nest(self) -> Nest:
        return self.source.nest

    @property
    def memories(self) -> Mapping[Node, Memory]:
        return self.source.memories

    @property
    def shape(self) -> tuple[int, ...]:
        return self.result.type.shape

    @property
    def block(self) -> int:
        return self.result.layout.block

    @property
    def width(self) -> int:
        return self.nest.lanes(self.result.type.dtype, *(m.type.dtype for m in self.memories.values()))


@dataclass(frozen=True, eq=False)
class Region:
    """Loops over `extents` around vectors along one more axis: `runs` (first, count, lanes) of it.

    `place` gives the logical index from the loop variables and the position along that axis. `zeros` are the runs of
    lanes that pad a block.
    """

    extents: tuple[int, ...]
    runs: tuple[tuple[int, int, int], ...]
    place: Callable[[Sequence[Any], Any], list[Any]]
    zeros: tuple[tuple[int, int, int], ...] = ()

    @property
    def elements(self) -> int:
        return math.prod(self.extents) * sum(count * lanes for _, count, lanes in self.runs)


def regions(kernel: Map) -> Iterator[Region]:
    """All of the result, each element once."""
    walked = _walked(kernel)
    axes = _merged_axes(kernel, None if walked is None else walked[0])
    nest, extents = kernel.nest, [math.prod(kernel.shape[a] for a in axis) for axis in axes]
    names = [nest.variable(e) if e > 1 else 0 for e in extents]
    conditions = trace(kernel.source, unmerge(nest, kernel.shape, axes, names)).conditions
    cut = boxes(conditions, [n for n in names if not isinstance(n, int)], [e for e in extents if e > 1])
    if nest.alone:
        cut = _coarse(cut, [e for e in extents if e > 1])
    for box in cut:
        yield from _of_box(kernel, axes, _whole_box(box, extents), walked)


def _coarse(cut: Sequence[Box], extents: Sequence[int]) -> list[Box]:
    """The boxes, whole along the last axis where they are narrow there: threads of a row belong together, and guards
    cost a thread little. All of it where they are many."""
    if len(cut) == 1:
        return list(cut)
    if min(end - begin for *_, (begin, end) in cut) < NARROW:
        cut = list(dict.fromkeys((*outer, (0, extents[-1])) for *outer, _ in cut))
    return list(cut) if len(cut) <= MOST_BOXES else [tuple((0, e) for e in extents)]


def _of_box(kernel: Map, axes: Sequence[Sequence[int]], box: Box, walked: tuple[int, int] | None) -> Iterator[Region]:
    if walked is None:
        return iter([_plain_region(kernel, axes, box)])
    if kernel.block > 1 or kernel.nest.alone or walked[0] == len(box) - 1:
        return _lane_regions(kernel, axes, box, *walked)
    return _unblocking_regions(kernel, axes, box, *walked)


def _whole_box(box: Box, extents: Sequence[int]) -> Box:
    spans = iter(box)
    return tuple(next(spans) if e > 1 else (0, 1) for e in extents)


def _merged_axes(kernel: Map, walked: int | None) -> list[list[int]]:
    """The axes of the result, trailing ones as one where every read runs through them evenly; `walked` stays alone."""
    rank = len(kernel.shape)
    for start in range(0 if walked is None else walked + 1, rank - 1):
        axes = [[a] for a in range(start)] + [list(range(start, rank))]
        if _evenly(kernel, axes):
            return axes
    return [[a] for a in range(rank)] or [[]]


def _evenly(kernel: Map, axes: Sequence[Sequence[int]]) -> bool:
    names = [kernel.nest.variable(math.prod(kernel.shape[a] for a in axis)) for axis in axes]
    found = trace(kernel.source, unmerge(kernel.nest, kernel.shape, axes, names))
    even = all(linear(offset, names[-1]) is not None for offset in found.offsets)
    return even and not any(v.same_as(names[-1]) for c in found.conditions for v in free_variables(c))


def _walked(kernel: Map) -> tuple[int, int] | None:
    """(axis, block): the axis of the result that is walked in blocks, its own channels or those of a source."""
    if kernel.block > 1:
        return 1, kernel.block
    nest = kernel.nest
    names = [nest.variable(e) for e in kernel.shape]
    found = trace(kernel.source, names)
    for node, index in zip(found.nodes, found.indices, strict=True):
        size = kernel.memories[node].layout.block
        forms = [linear(index[1], name) for name in names] if size > 1 else []
        for axis, form in enumerate(forms):
            if form is not None and form[0] == 1:
                return axis, size
    return None


def _plain_region(kernel: Map, axes: Sequence[Sequence[int]], box: Box) -> Region:
    *outer, (begin, end) = box

    def place(ids: Sequence[Any], u: Any) -> list[Any]:
        names = [i + b for i, (b, _) in zip(ids, outer, strict=True)]
        return unmerge(kernel.nest, kernel.shape, axes, [*names, u])

    extents = tuple(e - b for b, e in outer)
    return Region(extents, tuple(pieces(end - begin, kernel.width, begin=begin)), place)


def _lane_regions(kernel: Map, axes: Sequence[Sequence[int]], box: Box, walked: int, size: int) -> Iterator[Region]:
    """Vectors along the lanes of blocks: those of the result, or those of a source where its channels come last."""
    around = [(b, e - b) for b, e in box]
    width, total = kernel.width, math.prod(kernel.shape[a] for a in axes[walked])
    for co, count, first, last in _channel_runs(box[walked], size):

        def place(ids: Sequence[Any], u: Any, co: int = co) -> list[Any]:
            names = [i + b for i, (b, _) in zip(ids, around, strict=True)]
            names[walked] = (ids[walked] + co) * size + u
            return unmerge(kernel.nest, kernel.shape, axes, names)

        def extents(blocks: int) -> tuple[int, ...]:
            return tuple(blocks if k == walked else e for k, (_, e) in enumerate(around))

        cuts = _lane_cuts(kernel, axes, box, walked, size, lanes=(first, last))
        padded = kernel.block > 1 and last < size and co * size + last == total
        zeros = tuple(pieces(size - last, width, begin=last)) if padded else ()
        if cuts is None and total <= MOST_SINGLE_CHANNELS:
            single = tuple((lane, 1, 1) for lane in range(first, last))
            for c in range(co, co + count):
                yield Region(extents(1), single, partial(_at_block, place, walked, c), zeros)
            continue
        ends = [first, *(cuts or []), last]
        runs = [p for a, b in itertools.pairwise(ends) for p in pieces(b - a, width, begin=a)]
        yield Region(extents(count), tuple(runs), place, zeros)


def _at_block(place: Callable[..., list[Any]], axis: int, at: int, ids: Sequence[Any], u: Any) -> list[Any]:
    return place([at if k == axis else i for k, i in enumerate(ids)], u, 0)


def _unblocking_regions(
    kernel: Map, axes: Sequence[Sequence[int]], box: Box, walked: int, size: int
) -> Iterator[Region]:
    """A row-major result of blocked sources: the lanes of a block are the loop after the blocks, vectors run along the
    last axis."""
    *outer, (begin, end) = box
    for co, count, first, last in _channel_runs(box[walked], size):
        cuts = _lane_cuts(kernel, axes, box, walked, size, lanes=(first, last)) or []
        for a, b in itertools.pairwise([first, *cuts, last]):

            def place(ids: Sequence[Any], u: Any, co: int = co, a: int = a) -> list[Any]:
                rest = [*ids[: walked + 1], *ids[walked + 2 :]]
                names = [i + s for i, (s, _) in zip(rest, outer, strict=True)]
                names[walked] = (ids[walked] + co) * size + (ids[walked + 1] + a)
                return unmerge(kernel.nest, kernel.shape, axes, [*names, u])

            extents = [e - s for s, e in outer]
            extents[walked : walked + 1] = [count, b - a]
            yield Region(tuple(extents), tuple(pieces(end - begin, kernel.width, begin=begin)), place)


def _channel_runs(span: tuple[int, int], size: int) -> list[tuple[int, int, int, int]]:
    """(first block, blocks, first lane, end lane): a range of channels as runs of equal blocks."""
    found, (at, end) = [], span
    while at < end:
        lane = at % size
        count = (end - at) // size if lane == 0 else 0
        taken = count * size if count else min(size - lane, end - at)
        found.append((at // size, max(count, 1), lane, size if count else lane + taken))
        at += taken
    return found


def _lane_cuts(
    kernel: Map, axes: Sequence[Sequence[int]], box: Box, walked: int, size: int, *, lanes: tuple[int, int]
) -> list[int] | None:
    """Lanes at which a source passes into its next block; None where a source's channel is no formula of the lane."""
    nest = kernel.nest
    names = [nest.variable(e - b, begin=b) if e - b > 1 else b for b, e in box]
    channel = names[walked]
    if isinstance(channel, int):
        return []
    found, cuts = trace(kernel.source, unmerge(kernel.nest, kernel.shape, axes, names)), set()
    for node, offset, index in zip(found.nodes, found.offsets, found.indices, strict=True):
        memory = kernel.memories[node]
        source = memory.layout.block
        if source == 1 or source >= memory.type.shape[1]:
            if linear(offset, channel) is None:
                return None
            continue
        form = linear(index[1], channel)
        if form is None or form[0] not in (0, 1) or any(step(i, channel) != 0 for i in [index[0], *index[2:]]):
            return None
        if form[0] == 1 and isinstance(form[1], int):
            cuts |= {lane for lane in range(*lanes) if (lane + form[1]) % math.gcd(source, size) == 0}
    return sorted(c for c in cuts if lanes[0] < c < lanes[1])


def step(offset: Any, var: Expr) -> int | None:
    form = linear(offset, var)
    return None if form is None else form[0]
