"""Windows packed column by column: how the rows under some output rows lie in memory, and the reduction over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convc.algorithm import Config
from convc.problem import Problem

CACHE_LINE = 64
CONFLICT = 1024  # pixels this many bytes apart share a quarter of the sets of L1
SIZES = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Window:
    """How a packed window lies in memory: [width][*slots][channels], then `gap` elements that nobody reads.

    width     columns of x, padding included.
    slots     rows per axis but the last: those of the taps or, under a chunk of output rows, all from first to last.
    channels  of one group, those of one part of the reduction.
    loops     (extent, stride in elements) of the reduction, outermost first, neighbours that are contiguous merged: the
              last has stride 1, and under a single output row without dilation it is the only one.
    """

    width: int
    slots: tuple[int, ...]
    channels: int
    gap: int
    loops: tuple[tuple[int, int], ...]

    @property
    def column(self) -> int:
        """Elements packed of one column of x."""
        return math.prod(self.slots) * self.channels

    @property
    def elements(self) -> int:
        return self.width * (self.column + self.gap)


def window(p: Problem, c: Config) -> Window:
    """The window of `cb` channels under `hc` output rows of `wc` pixels."""
    chunked, channels = c["hc"] > 1, c["cb"]
    slots = list(p.k[:-1])
    if chunked:
        slots[-1] = (c["hc"] - 1) * p.s[-2] + (p.k[-2] - 1) * p.d[-2] + 1
    column, size = math.prod(slots) * channels, SIZES[p.dtype]
    gap = 0 if column * p.s[-1] * size % CONFLICT else CACHE_LINE // size
    axes = [(p.k[-1], p.d[-1] * (column + gap))]
    for axis, taps in enumerate(p.k[:-1]):
        apart = p.d[axis] if chunked and axis == p.rank - 2 else 1
        axes.append((taps, apart * math.prod(slots[axis + 1 :]) * channels))
    width = (c["wc"] - 1) * p.s[-1] + (p.k[-1] - 1) * p.d[-1] + 1
    return Window(width, tuple(slots), channels, gap, _merged([*axes, (channels, 1)]))


def _merged(axes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found = [axes[-1]]
    for extent, stride in reversed(axes[:-1]):
        inner, step = found[0]
        if inner * step == stride:
            found[0] = (extent * inner, step)
        elif extent > 1:
            found.insert(0, (extent, stride))
    return tuple(found)


def window_bytes(p: Problem, c: Config) -> int:
    """Those of all groups."""
    return window(p, c).elements * p.g * SIZES[p.dtype]


def pieces(p: Problem, c: Config) -> tuple[int, ...]:
    """Windows per axis: chunks of `hc` rows, or of `wc` pixels where there is one axis."""
    if p.rank == 1:
        return (p.o[0] // c["wc"],)
    return (*p.o[:-2], -(-p.o[-2] // c["hc"]))
