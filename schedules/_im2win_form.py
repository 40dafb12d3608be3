"""How im2win cuts a problem on GPUs, and how the window of a thread block lies in shared memory.

An access of 16 bytes serves 8 threads at once. Columns are an odd number of such accesses apart, so that 8 neighbours
read from all 32 banks; where a warp goes on in another image or with other channels, at most two threads wait for one
bank. Weights are read without conflicts. Filling the window is the price: x is read along its rows and stored across
the columns, 48 bytes apart under 3x3 taps, so that four threads wait for one bank; each element is stored once and
read many times.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from convc.algorithm import Config
from convc.gpu import STATIC_SHARED
from convc.problem import Problem
from convc.schedules import _gpu

VECTOR = 4  # float32 numbers in an access of 16 bytes


class Axis(NamedTuple):
    """Extents of x, y and taps along an axis; stride, padding before, distance of taps."""

    i: int
    o: int
    k: int
    s: int
    p: int
    d: int

    def span(self, outputs: int) -> int:
        """Elements of x from the first to the last under neighbouring outputs."""
        return (outputs - 1) * self.s + (self.k - 1) * self.d + 1


class Form(NamedTuple):
    """How a window lies in shared memory: [ck][nb][groups][across][height], with columns `pitch` elements apart and
    images `image` columns.

    strip   rows that a thread holds of a column, in accesses of `lanes`; `rows` of the window's are under a pixel.
    """

    strip: int
    lanes: int
    rows: int
    height: int
    groups: int
    across: int
    pitch: int
    image: int


@lru_cache(maxsize=4096)
def axes(p: Problem) -> tuple[Axis, Axis]:
    """(along the strips, across them)."""
    found = [Axis(*values) for values in zip(p.i, p.o, p.k, p.s, p.p, p.d, strict=True)]
    return (found[0], found[1]) if p.rank == 2 else (found[0], Axis(1, 1, 1, 1, 0, 1))


def form(p: Problem, c: Config) -> Form:
    return _form(p, c["nb"], c["hs"], c["rh"], c["wb"])


@lru_cache(maxsize=1 << 14)
def _form(p: Problem, nb: int, hs: int, rh: int, wb: int) -> Form:
    along, across = axes(p)
    step = rh * along.s
    lanes = VECTOR if hs == 1 else math.gcd(step, VECTOR)
    strip = _gpu.rounded(along.span(rh), lanes)
    height = (hs - 1) * step + strip
    pitch = _gpu.rounded(height, lanes)
    if lanes == VECTOR and pitch % 8 == 0:
        pitch += VECTOR  # an odd number of accesses: neighbouring columns then start in different banks
    groups = min(across.s, across.k) if across.d == 1 else across.s if across.k > 1 else 1
    columns = wb + (across.k - 1) * across.d // across.s
    image = groups * columns if nb == 1 else _apart(groups * columns, wb, nb)
    return Form(strip, lanes, along.span(hs * rh), height, groups, columns, pitch, image)


@lru_cache(maxsize=4096)
def _apart(held: int, wb: int, nb: int) -> int:
    """Columns from one image to the next, at least `held`, from which few of any 8 threads (as many as an access to
    shared memory serves at once) are in the same of its 8 places: columns are an odd number of places apart."""

    def crowd(image: int) -> int:
        places = [(t // wb * image + t % wb) % 8 for t in range(nb * wb)] * 2
        groups = [places[first : first + 8] for first in range(nb * wb)]
        return max(group.count(place) for group in groups for place in group)

    return min(range(held, held + 8), key=lambda image: (max(2, crowd(image)), image))


def block_columns(c: Config) -> int:
    return c["tx"] * c["tn"]


def columns(p: Problem, c: Config) -> int:
    """Output channels with the lanes that pad the last block."""
    return _gpu.rounded(p.oc, c["yb"])


def tiles(p: Problem, c: Config) -> tuple[int, int, int, int]:
    """Blocks along images, rows, columns and output channels."""
    along, across = axes(p)
    cuts = ((p.mb, c["nb"]), (along.o, c["hs"] * c["rh"]), (across.o, c["wb"]), (columns(p, c), block_columns(c)))
    a, b, d, e = (-(-extent // size) for extent, size in cuts)
    return a, b, d, e


def quads(c: Config) -> tuple[int, int, int]:
    """A block's weights of a tap as (parts, threads, neighbours): a thread has `tn` channels of y in a row, in parts of
    one access, and each part of all threads lies together."""
    lanes = math.gcd(c["tn"], VECTOR)
    return c["tn"] // lanes, c["tx"], lanes


def pixels(c: Config) -> int:
    """Threads of a block that share its weights."""
    return c["nb"] * c["hs"] * c["wb"]


def vector(p: Problem, c: Config) -> int:
    """Channels of x that one access reads; what is copied asynchronously goes where it belongs at once."""
    return VECTOR if c["micro"] and c["prefetch"] < 2 and c["xb"] % VECTOR == 0 and c["ck"] % VECTOR == 0 else 1


def shared_bytes(p: Problem, c: Config) -> int:
    """The window and the weights of a slice, or of two."""
    f = form(p, c)
    window = c["ck"] * c["nb"] * f.image * f.pitch
    return 4 * (1 + c["double"]) * (window + c["ck"] * p.taps * block_columns(c)) if c["shared"] else 0


def scope(p: Problem, c: Config) -> str:
    return "shared" if shared_bytes(p, c) <= STATIC_SHARED else "shared.dyn"
