"""The workload: what is tuned. A convolution with an epilogue that stands for its class, and data to try it on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from convc.algorithm import Choice
from convc.errors import UsageError
from convc.ir import Array, Binary, Cast, Const, Input, Node, TensorType, Unary
from convc.ir.check import SUMS
from convc.layout import PLAIN, Layout
from convc.plan.epilogue import EPILOGUES
from convc.plan.offers import ROUNDING
from convc.plan.plan import Group, Kernel, Packing
from convc.problem import Problem

LONG_SLOPE = 1.1  # of swish at most
LONG_ROUNDING = 2e-5  # of an activation, relative to the larger of 1 and its result


@dataclass(frozen=True)
class Data:
    """What a trial is given, each array as the kernel sees it in memory: x, raw weights and the epilogue's operands;
    what the result must be (float64), and by how much it may differ (float32; -1 where nothing is asked)."""

    reads: tuple[Array, ...]
    expected: Array
    tolerance: Array


@dataclass(frozen=True)
class Workload:
    """A canonical `problem` and a class of epilogues: "none", "short", "residual" or "long"."""

    problem: Problem
    epilogue: str = "none"

    def __post_init__(self) -> None:
        if self.epilogue not in EPILOGUES:
            raise UsageError(f"'{self.epilogue}' is no class of epilogues; known: {', '.join(EPILOGUES)}")

    def __str__(self) -> str:
        return f"{self.problem} {self.epilogue}"

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Convolution, bias, residual, activation, as far as the class has them; of 8-bit numbers the long one ends in
        such numbers again."""
        anchor = self.problem.node()
        if self.epilogue == "none":
            return (anchor,)
        found: list[Node] = [anchor, Binary("add", anchor, Const(np.zeros(self._bias_shape, anchor.dtype)))]
        if self.epilogue == "residual":
            found.append(Binary("add", found[-1], Input("residual", TensorType(anchor.shape, anchor.dtype))))
        if self.epilogue == "long" and self.problem.dtype in SUMS:
            return (*found, *_requantized(found[-1], self.problem.dtype, self._bias_shape))
        last = found[-1]
        found.append(Unary("swish", last, (1.0,)) if self.epilogue == "long" else Unary("relu", last))
        return tuple(found)

    @property
    def _bias_shape(self) -> tuple[int, ...]:
        p = self.problem
        return (p.oc,) if p.kind == "matmul" else (1, p.oc, *(1,) * p.rank)

    @property
    def group(self) -> Group:
        return Group.of(self.nodes)

    def layouts(self, choice: Choice) -> tuple[tuple[Layout, ...], Layout]:
        """Of every read, and of the result."""
        if self.problem.kind == "matmul":
            return (PLAIN,) * len(self.group.reads), PLAIN
        x, w = self.nodes[0].args[:2]
        fixed = {x: choice.x_layout, w: PLAIN}
        return tuple(fixed.get(read, choice.y_layout) for read in self.group.reads), choice.y_layout

    def kernel(self, choice: Choice) -> Kernel:
        layouts, result = self.layouts(choice)
        return Kernel(self.group, layouts, result, choice)

    def packing(self, choice: Choice) -> Packing:
        weights = self.group.weights
        assert weights is not None
        return Packing(weights, self.problem, choice)

    def data(self, choice: Choice, *, exact: bool) -> Data:
        """Whole numbers, of which every sum is exact (`exact`, and types that do not round; only where the algorithm
        has a grain), or normal ones with the algorithm's own bound. Lanes of padding are no numbers, or of integers the
        largest: in a network they hold whatever the kernel before has left there."""
        algorithm, rounding = choice.entry, ROUNDING.get(self.problem.dtype, 0.0)
        exact = exact or not rounding
        values = _values(self, algorithm.grain(self.problem, choice.config) if exact else None)
        layouts, result = self.layouts(choice)
        reads = tuple(laid_out(v, layout, padding=_worst(v)) for v, layout in zip(values.reads, layouts, strict=True))
        bound = 0.0 if exact else algorithm.error(self.problem, choice.config)
        reach = values.magnitude.max(initial=0.0) if algorithm.mixes else values.magnitude
        slack = values.slack + rounding * (bound * reach + 3 * values.magnitude)
        tolerance = np.nextafter(slack.astype(np.float32), np.float32(np.inf)) if slack.any() else slack
        expected = laid_out(values.expected, result)
        return Data(reads, expected, laid_out(tolerance.astype(np.float32), result, padding=-1.0))


def _requantized(total: Node, dtype: str, shape: tuple[int, ...]) -> list[Node]:
    """As the front end writes it, one factor for each output channel."""
    span = np.iinfo(dtype)
    scaled = Binary("mul", Cast(total, "float32"), Const(np.zeros(shape, np.float32)))
    found: list[Node] = [scaled.a, scaled, Unary("round", scaled)]
    found.append(Unary("clip", found[-1], (float(span.min), float(span.max))))
    return [*found, Cast(found[-1], dtype)]


def _worst(x: Array) -> float:
    return float(np.iinfo(x.dtype).max) if x.dtype.kind in "iu" else math.nan


@dataclass(frozen=True)
class _Values:
    """Logical arrays: what is read, the result, sum(|x * w|) and what follows it in magnitude, and a fixed slack."""

    reads: tuple[Array, ...]
    expected: Array
    magnitude: Array
    slack: Array


@lru_cache(maxsize=8)
def _values(workload: Workload, grain: int | None) -> _Values:
    """Whole numbers, weights in multiples of `grain`, or normal ones where it is None."""
    random = np.random.default_rng(len(str(workload)))
    x, w = workload.nodes[0].args[:2]
    reads: dict[Node, Array] = {}
    for read in workload.group.reads:
        if grain is not None:
            reads[read] = (random.integers(-3, 4, read.shape) * (grain if read is w else 1)).astype(read.dtype)
        else:
            scale = math.sqrt(2 / workload.problem.reduction) if read is w else 1.0
            reads[read] = (random.standard_normal(read.shape) * scale).astype(read.dtype)
    expected = _evaluate(workload.nodes, {r: v.astype(np.float64) for r, v in reads.items()})
    magnitude = np.zeros(expected.shape)
    if grain is None:
        absolute = {r: np.abs(v).astype(np.float64) for r, v in reads.items()}
        magnitude = _evaluate([n for n in workload.nodes if not isinstance(n, Unary)], absolute)
    slack = np.zeros(expected.shape)
    if workload.epilogue == "long" and workload.problem.dtype in ROUNDING:
        magnitude = magnitude * LONG_SLOPE
        slack = LONG_ROUNDING * np.maximum(1.0, np.abs(expected))
    return _Values(tuple(reads.values()), expected, magnitude, slack)


def _evaluate(nodes: list[Node] | tuple[Node, ...], known: dict[Node, Array]) -> Array:
    found = dict(known)
    for node in nodes:
        found[node] = node.reference(*(found[a] for a in node.args))
    return found[nodes[-1]]


def laid_out(x: Array, layout: Layout, *, padding: float = 0.0) -> Array:
    """`x` (logical) as it lies in memory; lanes beyond the channels hold `padding`."""
    if layout.block == 1:
        return np.ascontiguousarray(x)
    blocks = -(-x.shape[1] // layout.block)
    wide = np.full((x.shape[0], blocks * layout.block, *x.shape[2:]), padding, x.dtype)
    wide[:, : x.shape[1]] = x
    split = wide.reshape(x.shape[0], blocks, layout.block, *x.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))
