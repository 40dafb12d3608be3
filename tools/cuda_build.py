"""The artifacts that tools/bench_cuda.py measures, each through convc's own pipeline; needs no GPU."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cuda_points
import numpy as np
from cuda_networks import Array, Weight, onnx_of
from cuda_slim import Draws, save_slim
from cuda_subjects import Layer, Network

from convc.algorithm import Choice, Config, algorithms
from convc.dtypes import computing
from convc.frontend import import_onnx
from convc.ir import Const, Graph
from convc.lower.objects import build
from convc.passes import simplify
from convc.pipeline import run_until
from convc.plan import partition, place
from convc.plan.layouts import rates_of
from convc.plan.offers import Offer, bound_of, refusal
from convc.plan.plan import Plan
from convc.plan.relayout import relayout
from convc.plan.search import Search
from convc.plan.select import blocks_of, energies_of
from convc.problem import Problem
from convc.runtime.artifact import Artifact
from convc.runtime.package import package
from convc.target import Target, parse_target

LEFT_OUT = ("fallback",)  # it is there for what nothing else takes, and slow enough to spend the whole time of a GPU
MOST_WORDS = 300  # characters of an error
MOST_GOLDEN = 4e11  # FLOP of a network that numpy is asked for


@dataclass(frozen=True)
class Task:
    """One artifact to build: of a layer with `choice`, or of a network without."""

    subject: Layer | Network
    label: str
    choice: Choice | None
    target: str
    file: Path


def layer_weight(p: Problem) -> Weight:
    """He's scale: outputs are about as large as x."""
    return Weight(f"layer {p}", p.weights, 0.0, float(np.sqrt(2 / p.reduction)))


def layer_plan(p: Problem, choice: Choice, w: Array, machine: Target) -> Plan:
    """The placed plan of one convolution that `choice` computes, with copies where its layouts ask for them.

    Raises ValueError where the choice's blocks fit no layout.
    """
    node = p.node()
    anchor = node.with_args((node.args[0], Const(w)))
    plan = partition(Graph((anchor.args[0],), (("y", anchor),)))  # type: ignore[arg-type]
    found = {group: [Offer(choice, 1.0, 0.0, 0)] for group in plan.groups}
    for block, energy in energies_of(plan, found, blocks_of(found, machine), rates_of(machine)).items():
        solution = Search().cheapest(energy)
        chosen = relayout(plan, energy, solution, block=block) if solution else plan
        if choice in chosen.choices.values():
            return place(chosen)
    raise ValueError(f"{choice} fits no layout of {p}")


def artifact_of(plan: Plan, machine: Target) -> Artifact:
    return package(build(plan, machine), plan, machine, b"", options={"target": str(machine)}, self_test=False)


def made(task: Task) -> dict[str, Any]:
    """Build the artifact and write its slim file; its row of the plan file."""
    with _at_points(task.label):
        return _made(task)


def _made(task: Task) -> dict[str, Any]:
    subject, start = task.subject, time.perf_counter()
    machine = computing(parse_target(task.target), subject.dtype)
    row: dict[str, Any] = {"label": task.label, "file": task.file.name}
    if isinstance(subject, Layer):
        assert task.choice is not None
        p, c, algorithm = subject.problem.canonical, task.choice.config, task.choice.entry
        weight = layer_weight(subject.problem)
        plan = layer_plan(subject.problem, task.choice, weight.draw().astype(p.dtype), machine)
        draws = {weight.name: weight}
        row |= {
            "algorithm": algorithm.name, "config": dict(c), "mixes": algorithm.mixes, "bound": bound_of(p, task.choice),
            "predicted_us": 1e6 * algorithm.cost(p, machine, c), "memory": algorithm.memory(p, c),
            "limit": algorithm.limit(p, machine, c) if algorithm.limit else None,
        }  # fmt: skip
    else:
        model, found = onnx_of(subject.name, subject.batch)
        plan, draws = run_until("placed", model, target=task.target, dtype=subject.dtype), dict(found)
    artifact = artifact_of(plan, machine)
    save_slim(artifact, [(at, const.value) for _, at, const in plan.weights], draws, Draws(), task.file)
    return row | {"usage": usage_of(artifact), "bytes": task.file.stat().st_size, "seconds": _since(start)}


def usage_of(artifact: Artifact) -> list[dict[str, Any]]:
    """What its distinct kernels take: dynamic shared memory, and by architecture what ptxas reports."""
    found = []
    for symbol, function in artifact.program.functions.items():
        for launch in function.launches:
            usages = [asdict(u) for u in function.usage.get(launch.kernel, ())]
            found.append({"symbol": symbol, "kernel": launch.kernel, "shared": launch.shared, "usage": usages})
    return found


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 1)


def choices(subject: Layer, target: str, *, tries: int, best: int) -> tuple[list[tuple[str, Choice]], dict[str, str]]:
    """What to build for a layer, and why some algorithms have nothing."""
    machine, p = computing(parse_target(target), subject.dtype), subject.problem.canonical
    if subject.steps == "points":
        return _points(p, machine)
    if subject.steps == "ablation":
        return _ablation(p, machine)
    found, refused = [], {}
    plain = parse_target(target)
    for name, algorithm in algorithms("cuda").items():
        if name in LEFT_OUT:
            continue
        if reason := refusal(algorithm, p, machine):
            refused[name] = reason
        elif subject.dtype == "tf32" and refusal(algorithm, p, plain) is None:
            refused[name] = "it computes the same in float32"
        else:
            for i, c in enumerate(list(algorithm.space(p, machine))[:tries]):
                label = f"{name} #{i + 1}" if i else name
                found.append((algorithm.cost(p, machine, c), label, algorithm.choice(c)))
    found.sort(key=lambda one: one[0])
    kept = found if subject.group != "resnet50" else found[: best * tries]
    return [(label, choice) for _, label, choice in kept], refused


def _ablation(p: Problem, machine: Target) -> tuple[list[tuple[str, Choice]], dict[str, str]]:
    algorithm = algorithms("cuda")["im2win"]
    if reason := refusal(algorithm, p, machine):
        return [], {"im2win": reason}
    steps: Sequence[tuple[str, Config]] = importlib.import_module("convc.schedules._im2win_tiles").ablation(p, machine)
    return [(label, algorithm.choice(config)) for label, config in steps], {}


def _points(p: Problem, machine: Target) -> tuple[list[tuple[str, Choice]], dict[str, str]]:
    """The products themselves, and F(m, r) at the points of each: of one tile in one config."""
    found: list[tuple[str, Choice]] = []
    refused = {}
    for name in ("tensor_core", "winograd"):
        algorithm = algorithms("cuda")[name]
        if reason := refusal(algorithm, p, machine):
            refused[name] = reason
        elif name == "tensor_core":
            found.append((name, algorithm.choice(algorithm.space(p, machine)[0])))
        else:
            space = algorithm.space(p, machine)
            for m, r in cuda_points.TABLE:
                fitting = [c for c in space if (c["m0"], c["m1"]) == (m, m) and p.k == (r, r)]
                found += [(_label(m, r, of), algorithm.choice(c)) for c in fitting[:1] for of in cuda_points.sets(m, r)]
    return found, refused


def _label(m: int, r: int, points: str) -> str:
    return f"F({m},{r}) at the points of {points}"


def _at_points(label: str) -> contextlib.AbstractContextManager[None]:
    """Those that a label of `_points` names."""
    for m, r in cuda_points.TABLE:
        for points, b in cuda_points.sets(m, r).items():
            if label == _label(m, r, points):
                return cuda_points.computed_at(b)
    return contextlib.nullcontext()


def golden(name: str) -> list[float]:
    """What the network gives for the first image, in float64."""
    from cuda_check import images

    model, _ = onnx_of(name, 1)
    graph = simplify(import_onnx(model, shapes={}))
    if sum(node.flops for node in graph.nodes) > MOST_GOLDEN:
        return []
    x = images(graph.inputs[0].shape, "float32")[:1]
    (y,) = graph.evaluate({graph.inputs[0].label: x.astype(np.float64)}).values()
    return [float(value) for value in np.asarray(y, np.float64).reshape(-1)]


def rows(
    found: Sequence[Layer | Network], target: str, folder: Path, *, jobs: int, tries: int, best: int,
    told: Callable[[str], None],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The subjects as the plan file has them, with their artifacts built, in order."""
    known: dict[str, list[float]] = {}
    waiting: deque[_Started] = deque()
    with Pool(jobs) as run:
        for subject in found:
            waiting.append(_started(subject, target, folder, run, tries=tries, best=best))
            while len(waiting) > 2 * jobs:
                yield _row(*_ended(waiting.popleft(), told), known)
        while waiting:
            yield _row(*_ended(waiting.popleft(), told), known)


_Started = tuple[Layer | Network, dict[str, str], list[tuple[Task, "Future[Any]"]]]


def _started(
    subject: Layer | Network, target: str, folder: Path, run: Callable[..., Future[Any]], *, tries: int, best: int
) -> _Started:
    refused: dict[str, str] = {}
    parts: list[tuple[str, Choice | None]] = [("convc", None)]
    if isinstance(subject, Layer):
        try:
            picked, refused = choices(subject, target, tries=tries, best=best)
        except Exception as error:
            picked, refused = [], {"what to build": _words(error)}
        parts = [*picked]
    files = [folder / f"{subject.id.replace('/', '-')}-{i}.slim" for i in range(len(parts))]
    tasks = [Task(subject, label, c, target, file) for (label, c), file in zip(parts, files, strict=True)]
    return subject, refused, [(task, run(made, task)) for task in tasks]


def _ended(
    started: _Started, told: Callable[[str], None]
) -> tuple[Layer | Network, list[dict[str, Any]], dict[str, str]]:
    subject, refused, tasks = started
    artifacts = []
    for task, future in tasks:
        try:
            artifacts.append(future.result())
        except Exception as error:  # one layer must not cost the measurement of the others
            refused[task.label] = _words(error)
            told(f"{subject.id}: {task.label} cannot be built: {refused[task.label]}")
    told(f"{subject.id}: {', '.join(row['label'] for row in artifacts) or 'nothing'}")
    return subject, artifacts, refused


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:MOST_WORDS]


def _row(
    subject: Layer | Network, artifacts: list[dict[str, Any]], refused: dict[str, str], known: dict[str, list[float]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"id": subject.id, "group": subject.group, "dtype": subject.dtype}
    if isinstance(subject, Layer):
        p = subject.problem
        row |= {"kind": "layer", "problem": str(p), "steps": subject.steps, "weight": asdict(layer_weight(p))}
    else:
        if subject.name not in known:
            known[subject.name] = golden(subject.name)
        row |= {"kind": "network", "name": subject.name, "batch": subject.batch, "golden": known[subject.name]}
    return row | {"artifacts": artifacts, "refused": refused}


class Pool:
    """Calls in processes of their own, or in this one where there is to be one."""

    def __init__(self, jobs: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(jobs, mp_context=spawn) if jobs > 1 else None

    def __enter__(self) -> Callable[..., Future[Any]]:
        return self.pool.submit if self.pool else _now

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


def _now(function: Callable[..., Any], *args: Any) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(function(*args))
    except Exception as error:
        future.set_exception(error)
    return future


