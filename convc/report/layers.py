"""Each kernel call of a run against its reference, on the values that the call itself got: isolated errors."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convc.errors import BadInputError, ConvcError
from convc.ir import Array, Const, Conv, ConvTranspose, MatMul, Node
from convc.plan.homes import Homes
from convc.plan.plan import Call, Group, Kernel, Plan
from convc.report.accuracy import Accuracy, accuracy, ratio
from convc.runtime.artifact import Artifact, Layer
from convc.runtime.loader import Module

ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}
# Roundings of an elementwise node, in units of the largest value: exp and its like are off by a few.
NODE_ROUNDINGS = 16


@dataclass(frozen=True)
class LayerCheck:
    """`used` is the largest error as a fraction of what the algorithm's bound allows there, `bound` the most that it
    allows anywhere on these data, relative as `accuracy.max_error` is to the largest |ref|; None without a bound."""

    layer: Layer
    accuracy: Accuracy
    used: float | None = None
    bound: float | None = None

    def within(self, tolerance: float) -> bool:
        if np.dtype(self.layer.type.dtype).kind != "f":
            return self.accuracy.equal
        return self.accuracy.within(tolerance, dtype=self.layer.type.dtype) and (self.used is None or self.used <= 1)


def check_model(artifact: Artifact, model: Path) -> None:
    """Raise BadInputError unless the artifact was made of this file."""
    if hashlib.sha256(model.read_bytes()).hexdigest() != artifact.manifest["model"]["sha256"]:
        raise BadInputError(f"{model}: not the model that the artifact was made of (its sha256 differs)")


def plan_of(artifact: Artifact, model: Path) -> Plan:
    """The placed plan that the artifact was made from, made again.

    Raises ConvcError where this convc makes another one.
    """
    from convc.pipeline import run_until

    manifest = artifact.manifest
    options = {**manifest["options"], "shapes": {port.name: port.type.shape for port in artifact.inputs}}
    plan: Plan = run_until("placed", model, **options | {"target": manifest["target"]["text"]})
    same = len(plan.run) == len(artifact.layers) and all(map(_fits, plan.run, artifact.layers))
    if not same:
        raise ConvcError("this convc plans the model differently than the one that made the artifact; compile it again")
    return plan


def _fits(call: Call, layer: Layer) -> bool:
    kernel = call.kernel
    assert isinstance(kernel, Kernel)
    algorithm = kernel.choice.algorithm if kernel.choice else None
    ops, result = tuple(type(node).__name__ for node in kernel.group.nodes), kernel.group.result.type
    return (ops, result, algorithm, kernel.result) == (layer.ops, layer.type, layer.algorithm, layer.layout)


def check_layers(module: Module, plan: Plan, inputs: Mapping[str, Array]) -> Iterator[LayerCheck]:
    """Run call by call; each result against its group evaluated in float64 on what the call read."""
    bound = module.bind(inputs)
    called = Homes(plan).calls  # a kernel that several calls share holds the group of only one of them
    values = _Values(plan, called, inputs)
    for layer, group in zip(module.layers, called, strict=True):
        values.compute_views()
        reads = {node: values[node] for node in group.reads}
        bound.call(layer.index)
        found = bound.value(layer.index).copy()
        yield _check(layer, group, reads, found)
        values.keep(group.result, found)
        values.release(group)


class _Values:
    """What lies in memory by node. Views, which no call computes, are made of the values that they show."""

    def __init__(self, plan: Plan, called: Sequence[Group], inputs: Mapping[str, Array]) -> None:
        self._found: dict[Node, Array] = {node: inputs[node.label] for node in plan.inputs}
        self._views = [group for group in plan.groups if group not in set(called)]
        self._readers = Counter(node for group in (*called, *self._views) for node in group.reads)

    def __getitem__(self, node: Node) -> Array:
        return node.value if isinstance(node, Const) else self._found[node]

    def keep(self, node: Node, value: Array) -> None:
        self._found[node] = value

    def release(self, group: Group) -> None:
        """`group` has read its arguments; those that nobody reads any more are dropped."""
        self._readers.subtract(group.reads)
        for node in group.reads:
            if not self._readers[node]:
                self._found.pop(node, None)

    def compute_views(self) -> None:
        """Every view of values that are there by now."""
        waiting = []
        for group in self._views:
            if all(isinstance(node, Const) or node in self._found for node in group.reads):
                self.keep(group.result, evaluate(group.nodes, {node: self[node] for node in group.reads}))
                self.release(group)
            else:
                waiting.append(group)
        self._views = waiting


def evaluate(nodes: Sequence[Node], values: Mapping[Node, Array]) -> Array:
    """The last of `nodes` by the references; arguments are in `values`, constants, or among the nodes."""
    known = dict(values)
    for node in nodes:
        if node not in known:
            known[node] = node.reference(*(known[a] if a in known else _constant(a) for a in node.args))
    return known[nodes[-1]]


def _constant(node: Node) -> Array:
    assert isinstance(node, Const)
    return node.value


def _check(layer: Layer, group: Group, reads: Mapping[Node, Array], found: Array) -> LayerCheck:
    if found.dtype.kind != "f":
        return LayerCheck(layer, accuracy(found, evaluate(group.nodes, reads)))
    wide = {node: widened(value) for node, value in reads.items()}
    if group.anchor is None or layer.error is None:
        return LayerCheck(layer, accuracy(found, evaluate(group.nodes, wide)))
    y = evaluate([group.anchor], wide)
    reference = evaluate(group.nodes, wide | {group.anchor: y})
    allowed = allowance(group, wide, y, reference, layer.error * ROUNDING[layer.type.dtype])
    error = np.abs(found - reference)
    used = float(np.max(error / allowed, initial=0.0))
    bound = ratio(float(allowed.max(initial=0.0)), float(np.abs(reference).max(initial=0.0)))
    return LayerCheck(layer, accuracy(found, reference), used, bound)


def widened(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def allowance(group: Group, reads: Mapping[Node, Array], y: Array, reference: Array, bound: float) -> Array:
    """How far each element may be off: the algorithm's bound on y carried through the epilogue, and the epilogue's own
    roundings. The bound is relative to the largest sum of absolute products."""
    assert group.anchor is not None
    shift = bound * float(absolute_sum(group.anchor, reads).max())
    moved = [evaluate(group.nodes, {**reads, group.anchor: y + side}) - reference for side in (shift, -shift)]
    scale = max(float(np.abs(values).max()) for values in (reference, y, *reads.values()) if values.size)
    roundings = NODE_ROUNDINGS * len(group.nodes) * 2.0**-24 * scale
    widest: Array = np.maximum(np.abs(moved[0]), np.abs(moved[1])) + roundings + np.finfo(np.float64).tiny
    return widest


def absolute_sum(anchor: Node, reads: Mapping[Node, Array]) -> Array:
    """sum(|x * w|) for each element of y."""
    assert isinstance(anchor, Conv | ConvTranspose | MatMul)
    return anchor.reference(*(np.abs(reads[a] if a in reads else _constant(a)) for a in anchor.args[:2]))
