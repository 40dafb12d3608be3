"""What the tests of the plan share: random graphs, algorithms without code, and a numpy interpreter of placed plans."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st

from convc.algorithm import Algorithm, Config
from convc.ir import (
    Array,
    Binary,
    Concat,
    Const,
    Conv,
    Graph,
    Input,
    MatMul,
    Node,
    Pool,
    Reduce,
    Reshape,
    Slice,
    TensorType,
    Transpose,
    Unary,
)
from convc.layout import Layout
from convc.plan.energy import Option
from convc.plan.layouts import activations
from convc.plan.plan import Call, Group, Packing, Plan, Slot
from convc.problem import Problem
from convc.target import Target

LABELS = [(0, 0), (0, 1), (1, 0), (1, 1)]
TARGET = Target("test", "x86_64-unknown-linux-gnu", 8, 16, ("avx2",))


def fake(
    name: str = "fake",
    *,
    seconds: Callable[[Problem, Target, Config], float] | None = None,
    error: float = 1.0,
    blocks: tuple[int, ...] = (1, 8),
    refusal: str | None = None,
) -> Algorithm:
    """An algorithm with one config for every pair of `blocks` that fits; its times are random but fixed."""

    def space(p: Problem, target: Target) -> list[Config]:
        if p.kind == "matmul":
            return [{"xb": p.ic, "yb": p.oc}]
        return [
            {"xb": xb, "yb": yb}
            for xb in (blocks if p.ic > 1 else (1,))
            for yb in (blocks if p.oc > 1 else (1,))
        ]

    def random_seconds(p: Problem, target: Target, c: Config) -> float:
        return (1 + zlib.crc32(f"{p} {c['xb']} {c['yb']}".encode()) % 1000) * 1e-8

    def nothing(*args: object) -> None:
        raise AssertionError("no code is generated in these tests")

    return Algorithm(
        name, "none", lambda p, t: refusal, space, seconds or random_seconds, nothing, nothing, {"cpu": nothing},
        lambda p, c: error * p.reduction, lambda p, c: 0,
    )


@contextmanager
def library(*algorithms: Algorithm, packed: Mapping[str, int] | None = None) -> Iterator[None]:
    """The schedule library holds `algorithms` and nothing else; packed weights are as large as the model's, times what
    `packed` says of the algorithm."""
    table = {a.name: a for a in algorithms}

    def elements(shape: tuple[int, ...], dtype: str, problem: Problem, name: str, kind: str, config: object) -> int:
        return math.prod(shape) * (packed or {}).get(name, 1)

    with (
        patch("convc.plan.offers.algorithms", lambda kind: table),
        patch("convc.plan.arena._algorithm_elements", elements),
    ):
        yield


def integers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def image(*shape: int, label: str = "x") -> Input:
    return Input(label, TensorType(shape))


def conv(x: Node, channels: int, *, taps: int = 1, bias: bool = True, seed: int = 0) -> Conv:
    """A convolution that keeps the spatial extents."""
    w = Const(integers(seed, channels, x.shape[1], *(taps,) * (x.type.rank - 2)))
    b = Const(integers(seed + 1, channels)) if bias else None
    ones = (1,) * (x.type.rank - 2)
    return Conv(x, w, b, ones, ((taps // 2, taps // 2),) * len(ones), ones, 1)


def relu(x: Node) -> Unary:
    return Unary("relu", x)


def add(a: Node, b: Node) -> Binary:
    return Binary("add", a, b)


def channels_of(x: Node, begin: int, size: int) -> Slice:
    shape = x.shape
    return Slice(x, (0, begin, *[0] * (len(shape) - 2)), (shape[0], size, *shape[2:]), (1,) * len(shape))


def graph_of(*outputs: Node) -> Graph:
    found = Graph((), tuple((f"y{i}", node) for i, node in enumerate(outputs)))
    inputs = tuple(n for n in found.nodes if isinstance(n, Input))
    return Graph(inputs, found.outputs)


def shuffled(x: Node, groups: int) -> Node:
    n, c, *rest = x.shape
    split = Reshape(x, (n, groups, c // groups, *rest))
    return Reshape(Transpose(split, (0, 2, 1, *range(3, 3 + len(rest)))), x.shape)


def _conv_clipped(r: random.Random, values: list[Node]) -> Node:
    x = r.choice([v for v in values if v.type.rank == 4])
    return Unary("clip", conv(x, r.choice((1, 4, 8, 12, 16)), taps=r.choice((1, 3)), seed=r.randrange(99)), (-4.0, 4.0))


def _joined(r: random.Random, values: list[Node]) -> Node:
    first = r.choice(values)
    axis = r.choice([1, len(first.shape) - 1])
    same = [v for v in values if v.shape[:axis] + v.shape[axis + 1 :] == first.shape[:axis] + first.shape[axis + 1 :]]
    xs = [first, *(r.choice(same) for _ in range(r.randrange(1, 4)))]
    if r.random() < 0.2:
        xs.append(Const(integers(r.randrange(99), *first.shape)))
    return Concat(tuple(xs), axis) if sum(x.shape[axis] for x in xs) <= 64 else relu(first)


def _sliced(r: random.Random, values: list[Node]) -> Node:
    x = r.choice([v for v in values if v.shape[1] >= 4])
    begin = r.choice((0, 2, x.shape[1] // 2))
    return channels_of(x, begin, r.choice((1, x.shape[1] // 2, x.shape[1] - begin)))


def _sum(r: random.Random, values: list[Node]) -> Node:
    a = r.choice(values)
    return Unary("clip", add(a, r.choice([v for v in values if v.shape == a.shape])), (-8.0, 8.0))


def _scaled(r: random.Random, values: list[Node]) -> Node:
    x = r.choice([v for v in values if v.type.rank == 4])
    means = Unary("clip", Reduce("max", x, (2, 3)), (-2.0, 2.0))
    return Unary("clip", Binary("mul", means, x), (-8.0, 8.0))


def _flattened(r: random.Random, values: list[Node]) -> Node:
    x = r.choice(values)
    return Reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def _projected(r: random.Random, values: list[Node]) -> Node:
    x = _flattened(r, values)
    return Unary("clip", MatMul(x, Const(integers(r.randrange(99), x.shape[1], 16))), (-4.0, 4.0))


def _pooled(r: random.Random, values: list[Node]) -> Node:
    x = r.choice([v for v in values if v.type.rank == 4])
    return Pool("max", x, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (0, 0))


def _moved(r: random.Random, values: list[Node]) -> Node:
    x = r.choice(values)
    return Transpose(x, (0, *reversed(range(1, x.type.rank))))


def _mixed(r: random.Random, values: list[Node]) -> Node:
    return shuffled(r.choice([v for v in values if v.type.rank == 4 and v.shape[1] % 2 == 0]), 2)


def _rectified(r: random.Random, values: list[Node]) -> Node:
    return relu(r.choice(values))


STEPS = (
    _conv_clipped, _conv_clipped, _joined, _joined, _sliced, _sum, _scaled, _flattened, _projected, _pooled, _moved,
    _mixed, _rectified,
)


def random_graph(seed: int, *, batch: int = 1, steps: int = 12) -> Graph:
    """A graph of integer-valued float32 tensors, small enough that float32 computes it exactly."""
    r = random.Random(seed)
    values: list[Node] = [image(batch, 8, 4, 4), image(batch, 8, 4, 4, label="x2")]
    for _ in range(steps):
        values.append(r.choice(STEPS)(r, values))
    ends = [values[-1], *r.sample(values, r.randrange(1, 3))]
    return graph_of(*ends, *([Const(integers(1, 3))] if r.random() < 0.2 else []))


graphs = st.builds(random_graph, st.integers(0, 2**32), batch=st.sampled_from((1, 1, 2)), steps=st.integers(3, 20))


def inputs_of(graph: Graph) -> dict[str, Array]:
    return {x.label: integers(i, *x.shape) for i, x in enumerate(graph.inputs)}


class Interpreter:
    """Runs a placed plan in buffers of bytes. Lanes past the channels are written, with what is no number."""

    def __init__(self, plan: Plan, inputs: Mapping[str, Array]) -> None:
        self.plan = plan
        sizes = {"weights": plan.weight_bytes, "packed": plan.packed_bytes, "arena": plan.arena_bytes}
        self.spaces = {name: np.full(size, 0xFF, np.uint8) for name, size in sizes.items()}
        for i, node in enumerate(plan.inputs):
            self.spaces[f"input{i}"] = np.ascontiguousarray(inputs[node.label]).reshape(-1).view(np.uint8).copy()
        for i, (_, result) in enumerate(plan.outputs):
            self.spaces[f"output{i}"] = np.full(result.type.bytes, 0xFF, np.uint8)
        for _, offset, const in plan.weights:
            self._bytes(Slot("weights", offset), const.type.bytes)[:] = const.value.reshape(-1).view(np.uint8)

    def run(self) -> dict[str, Array]:
        for call in self.plan.init:
            self._pack(call)
        for call in self.plan.run:
            self._call(call)
        found = [(name, self.spaces[f"output{i}"], n) for i, (name, n) in enumerate(self.plan.outputs)]
        return {name: raw.view(n.dtype).reshape(n.shape) for name, raw, n in found}

    def _bytes(self, slot: Slot, size: int) -> Array:
        assert slot.offset % 64 == 0
        space = self.spaces[slot.space + (str(slot.index) if slot.space in ("input", "output") else "")]
        assert slot.offset + size <= len(space), f"{slot} of {size} bytes reaches beyond {len(space)}"
        return space[slot.offset : slot.offset + size]

    def _physical(self, slot: Slot, type_: TensorType, layout: Layout) -> Array:
        shape = layout.physical(type_.shape)
        return self._bytes(slot, math.prod(shape) * np.dtype(type_.dtype).itemsize).view(type_.dtype).reshape(shape)

    def read(self, slot: Slot, type_: TensorType, layout: Layout) -> Array:
        raw = self._physical(slot, type_, layout)
        if layout.block == 1:
            return raw.copy()
        lanes_second = np.moveaxis(raw, -1, 2)
        channels = lanes_second.reshape(raw.shape[0], raw.shape[1] * layout.block, *raw.shape[2:-1])
        return channels[:, : type_.shape[1]].copy()

    def write(self, slot: Slot, value: Array, layout: Layout) -> None:
        raw = self._physical(slot, TensorType(value.shape, value.dtype.name), layout)
        if layout.block == 1:
            raw[...] = value
            return
        padded = np.full((raw.shape[0], raw.shape[1] * layout.block, *raw.shape[2:-1]), np.nan, value.dtype)
        padded[:, : value.shape[1]] = value
        raw[...] = np.moveaxis(padded.reshape(raw.shape[0], raw.shape[1], layout.block, *raw.shape[2:-1]), 2, -1)

    def _pack(self, call: Call) -> None:
        packing = call.kernel
        assert isinstance(packing, Packing)
        source, result = call.args
        self.write(result, self.read(source, packing.weight.type, Layout()), packing.layout)

    def _call(self, call: Call) -> None:
        kernel = call.kernel
        assert not isinstance(kernel, Packing)
        *reads, result = call.args
        values: dict[Node, Array] = {}
        for node, slot, layout in zip(kernel.group.reads, reads, kernel.layouts, strict=True):
            values[node] = self.read(slot, node.type, layout)
        if kernel.in_place is not None:
            assert result == reads[kernel.in_place]
        self.write(result, compute(kernel.group, values), kernel.result)


def compute(group: Group, values: dict[Node, Array]) -> Array:
    """The group's result by the references of its nodes."""
    for node in group.nodes:
        values.update((a, a.value) for a in node.args if isinstance(a, Const) and a not in values)
        values[node] = node.reference(*(values[a] for a in node.args))
    return values[group.result]


def options_of(plan: Plan, seed: int) -> dict[Group, list[Option]]:
    """Random options of every anchored group: one or two for each pair of labels, the dearer of fewer bytes."""
    r = random.Random(seed)
    found: dict[Group, list[Option]] = {}
    for group in plan.groups:
        if group.anchor is not None and activations(group):
            labels = r.sample(LABELS, r.randrange(1, 5))
            found[group] = [Option(pair, r.randrange(10**5, 10**7), 64 * r.randrange(3, 9)) for pair in labels]
            found[group] += [Option(o.labels, 2 * o.cost, o.bytes - 128) for o in found[group] if r.random() < 0.5]
    return found
