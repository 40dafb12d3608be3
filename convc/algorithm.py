"""The algorithm: one way to compute a convolution on one kind of target. What a file of the schedule library holds is
registered: `ALGORITHM` for CPUs, `ON_CUDA` for GPUs, and whatever else is an Algorithm there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from convc.layout import Layout
from convc.problem import Problem
from convc.target import Target

if TYPE_CHECKING:
    from tvm import te
    from tvm.s_tir import Schedule
else:  # tvm takes over a second to import; only `define`, `pack` and `schedule` need it, and they run when building
    te = Schedule = Any

Config = Mapping[str, int]
"""The numbers of one schedule, by name. `xb` and `yb`, the channel blocks of x and of the result, are in every config;
`lanes` is the channel block of y inside the kernel where it is not `yb`."""


def _even(p: Problem, target: Target, c: Config) -> int:
    return target.threads


def _one(p: Problem, c: Config) -> int:
    return 1


@dataclass(frozen=True)
class Algorithm:
    """One way to compute y from x and w, without bias or anything after it (that is the epilogue, given to `schedule`).

    name      as in records, tests and on the command line; unique among those of a kind.
    source    the paper or document it is from.
    refuses   why it cannot do this problem on this target, or None. `convc explain` shows the reason.
    space     the configs worth trying, best guess first; for every pair of layouts it supports at least one.
    seconds   modelled time of a config on one thread: compute, loads and cache misses of the whole problem.
    pack      w as the model has it (Problem.weights) -> w as `define` wants it. Runs once, when the artifact is loaded.
    define    x (physical extents of Layout(xb)) and packed w -> y, named "y", in the physical extents of Layout(lanes),
              with no order of evaluation. Takes its type from x.
    schedule  the order of evaluation. The sblock "y" is followed by "z", the epilogue, which must be placed where y's
              register tile is complete; "t" between them copies y where the epilogue is long.
    error     bound on |y - exact| / sum(|x * w|), in units of the type's rounding (2^-24 for float32); of an algorithm
              that mixes, relative to the largest of these sums in the layer.
    memory    workspace in bytes per thread, beside x, w and y.
    tasks     equal pieces of work that the target's threads share; by default one for each of them.
    arrange   the order of evaluation of `pack`; by default as it is written, each element for itself.
    grain     small whole x and whole w that are multiples of it give y without rounding; 0 where no w does.
    limit     what of the machine the modelled time comes from, in a word or two; None where the model does not say.
    mixes     whether y's elements see weights of each other: one that is not finite then spoils its neighbours.
    kind      of targets that it is for: "cpu" or "cuda".
    """

    name: str
    source: str
    refuses: Callable[[Problem, Target], str | None]
    space: Callable[[Problem, Target], Sequence[Config]]
    seconds: Callable[[Problem, Target, Config], float]
    pack: Callable[[te.Tensor, Problem, Config], te.Tensor]
    define: Callable[[te.Tensor, te.Tensor, Problem, Config], te.Tensor]
    schedule: Callable[[Schedule, Problem, Target, Config], None]
    error: Callable[[Problem, Config], float]
    memory: Callable[[Problem, Config], int]
    tasks: Callable[[Problem, Target, Config], int] = _even
    arrange: Callable[[Schedule, Problem, Target, Config], None] | None = None
    grain: Callable[[Problem, Config], int] = _one
    limit: Callable[[Problem, Target, Config], str] | None = None
    mixes: bool = False
    kind: str = "cpu"

    def choice(self, config: Config) -> Choice:
        return Choice(self.name, config, self.kind)

    def cost(self, p: Problem, target: Target, c: Config) -> float:
        """Modelled processor time in seconds: that of one thread, and what the target's threads wait for each other."""
        return self.seconds(p, target, c) * unevenness(self.tasks(p, target, c), target.threads)


def unevenness(tasks: int, threads: int) -> float:
    """Time of equal tasks on `threads`, as a multiple of what it would be if they could be cut at will."""
    return -(-tasks // threads) * threads / tasks


@dataclass(frozen=True)
class Choice:
    """What `select` settles for one convolution: algorithm, config, and with the config the layouts."""

    algorithm: str
    config: Config
    kind: str = "cpu"

    @property
    def entry(self) -> Algorithm:
        """The algorithm itself. Raises KeyError where it is not installed."""
        return algorithms(self.kind)[self.algorithm]

    @property
    def x_layout(self) -> Layout:
        return Layout(self.config["xb"])

    @property
    def y_layout(self) -> Layout:
        return Layout(self.config["yb"])

    def __str__(self) -> str:
        return f"{self.algorithm}({','.join(f'{k}={v}' for k, v in sorted(self.config.items()))})"


KINDS = ("cpu", "cuda")


def algorithms(kind: str = "cpu") -> Mapping[str, Algorithm]:
    """Every algorithm for targets of `kind`, by name: those of the schedule library, then what the entry points
    convc.schedules add."""
    return _by_kind()[kind]


@cache
def _by_kind() -> Mapping[str, Mapping[str, Algorithm]]:
    library = importlib.import_module("convc.schedules")
    names = [m.name for m in pkgutil.iter_modules(library.__path__) if not m.name.startswith("_")]
    modules = [importlib.import_module(f"convc.schedules.{name}") for name in sorted(names)]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Algorithm)]
    found += [point.load() for point in sorted(entry_points(group="convc.schedules"), key=lambda p: p.name)]
    return {kind: {a.name: a for a in found if a.kind == kind} for kind in KINDS}
