"""Along one spatial axis: which taps of a window fall inside the input, as runs of outputs with the same taps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from convc.ir import Conv, ConvTranspose, Pool


@dataclass(frozen=True)
class Axis:
    """One spatial axis: tap u of output o reads input o*s + u*d - p, or transposed (o + p - u*d) / s where whole."""

    extent: int
    to: int
    taps: int
    stride: int
    dilation: int
    before: int
    after: int = 0
    transposed: bool = False

    @property
    def phases(self) -> int:
        """Outputs that far apart read alike."""
        return self.stride if self.transposed else 1

    @property
    def step(self) -> int:
        """Input elements between the reads of two outputs of one phase."""
        return 1 if self.transposed else self.stride

    def source(self, o: int, u: int) -> int | None:
        """The input element, None where there is none."""
        if self.transposed:
            at, rest = divmod(o + self.before - u * self.dilation, self.stride)
            at = -1 if rest else at
        else:
            at = o * self.stride + u * self.dilation - self.before
        return at if 0 <= at < self.extent else None

    def counted(self, o: int) -> int:
        """Cells of window o that lie inside the padded input."""
        cells = (o * self.stride + u * self.dilation for u in range(self.taps))
        return sum(c < self.before + self.extent + self.after for c in cells)


@dataclass(frozen=True)
class Run:
    """Outputs begin, begin + step, ...: `count` of them with the same taps, (u, input of the first output) each."""

    begin: int
    count: int
    step: int
    taps: tuple[tuple[int, int], ...]
    counted: int


def axes_of(node: Conv | ConvTranspose | Pool) -> list[Axis]:
    """The spatial axes of a window operation."""
    kernel = node.kernel if isinstance(node, Pool) else node.w.shape[2:]
    found = zip(node.x.shape[2:], node.shape[2:], kernel, node.stride, node.dilation, node.pad, strict=True)
    turned = isinstance(node, ConvTranspose)
    return [Axis(i, o, k, s, d, lo, hi, turned) for i, o, k, s, d, (lo, hi) in found]


def runs(axis: Axis) -> list[Run]:
    """The outputs of an axis in runs, phase by phase."""
    found = []
    for phase in range(min(axis.phases, axis.to)):
        outputs = range(phase, axis.to, axis.phases)
        for (taps, counted), group in groupby(outputs, lambda o: (_valid(axis, o), axis.counted(o))):
            here = list(group)
            first = here[0]
            reads = tuple((u, source) for u in taps if (source := axis.source(first, u)) is not None)
            found.append(Run(first, len(here), axis.phases, reads, counted))
    return found


def _valid(axis: Axis, o: int) -> tuple[int, ...]:
    return tuple(u for u in range(axis.taps) if axis.source(o, u) is not None)
