"""Winograd's tiles along the axes of a problem: which algorithm, how many in a group, where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from convc.algorithm import Config
from convc.numerics.bilinear import Bilinear, direct, equilibrated, integral
from convc.numerics.points import chosen_strided
from convc.problem import Problem


@dataclass(frozen=True)
class Axis:
    """One axis of the problem under a config: its algorithm, tiles of a group, interleaved ones, groups."""

    form: Bilinear
    tiles: int
    dilation: int
    groups: int

    @property
    def count(self) -> int:
        """Tiles of a group, interleaved ones counted."""
        return self.tiles * self.dilation

    @property
    def step(self) -> int:
        """Inputs from one group to the next."""
        return self.tiles * self.form.m * self.form.stride * self.dilation

    @property
    def extent(self) -> int:
        """Inputs under a group."""
        return ((self.tiles - 1) * self.form.m * self.form.stride + self.form.span) * self.dilation

    def start(self, tile: Any) -> Any:
        """First input of a tile in its group."""
        if self.dilation == 1:
            return tile * (self.form.m * self.form.stride)
        return tile // self.dilation * (self.form.m * self.form.stride * self.dilation) + tile % self.dilation

    def place(self, o: Any) -> tuple[Any, Any, Any]:
        """(tile, interleaved one, output of it) of output o, tiles counted over all groups."""
        return o // (self.form.m * self.dilation), o % self.dilation, o // self.dilation % self.form.m

    def in_group(self, tile: Any, phase: Any) -> tuple[Any, Any]:
        """(group, tile of it with the interleaved ones counted)."""
        return tile // self.tiles, tile % self.tiles * self.dilation + phase


@lru_cache(maxsize=1024)
def form_of(m: int, r: int, stride: int) -> Bilinear:
    """The algorithm with the points of the table, in numbers that cost no rounding but in the weights."""
    return direct(r, stride) if m == 1 else equilibrated(integral(chosen_strided(m, r, stride)))


def axes(p: Problem, c: Config) -> tuple[Axis, ...]:
    """With tiles of `m0` x `m1` outputs, `t0` x `t1` of them in a group."""
    found = []
    for a in range(p.rank):
        m, tiles = c[f"m{a}"], c[f"t{a}"]
        groups = -(-p.o[a] // (m * p.d[a] * tiles))
        found.append(Axis(form_of(m, p.k[a], p.s[a]), tiles, p.d[a], groups))
    return tuple(found)
