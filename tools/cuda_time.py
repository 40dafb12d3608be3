"""Contenders on a GPU: what is run, as a graph that is replayed, between two events."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cuda_check import Sample
from cuda_networks import Array

from convc.report.timing import Timing, race
from convc.runtime.artifact import Artifact
from convc.runtime.gpu import Bases, Device, Workspace
from convc.runtime.gpu_memory import Owned, memory
from convc.runtime.program import Step

MEASURED_US = 1000.0  # that the replays between two events take at least
MOST_REPEATS = 200
ROUNDS = (3, 21)
MOST_SETS = 64


def sets_for(size: int, footprint: int) -> int:
    """How many copies of a layer's x and y take turns, so that none finds its own in the last level cache."""
    return max(1, min(MOST_SETS, math.ceil(footprint / max(size, 1))))


@dataclass
class Contender:
    """`run` starts `count` executions; `start` and `stop` mark the stream, `elapsed` is the us between them."""

    name: str
    run: Callable[[], object]
    count: int
    mark: Callable[[], Any]
    elapsed: Callable[[Any, Any], float]
    repeats: int = 0

    def us(self) -> float:
        """Of one execution; after one that is not measured, so that the device has no gap before it."""
        if not self.repeats:
            total = self._measured(1)
            self.repeats = max(1, min(MOST_REPEATS, math.ceil(MEASURED_US / max(total, 1.0))))
        return self._measured(self.repeats) / self.repeats / self.count

    def _measured(self, repeats: int) -> float:
        self.run()
        first = self.mark()
        for _ in range(repeats):
            self.run()
        return self.elapsed(first, self.mark())


def take_turns(contenders: Sequence[Contender], seconds: float) -> dict[str, Timing]:
    """All in each round, in random order; as many rounds as the seconds allow."""
    start = time.perf_counter()
    for one in contenders:
        one.us()
    each = max(time.perf_counter() - start, 1e-6)
    rounds = max(ROUNDS[0], min(ROUNDS[1], int(seconds / each))) | 1
    return race({one.name: one.us for one in contenders}, rounds=rounds)


class Loaded:
    """An artifact on the GPU with its places for inputs and outputs in memory that others share."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact, self.device = artifact, Device(artifact, threads=1)
        self.driver, self.stream = self.device.driver, self.device.stream.value
        self._graphs: list[Owned] = []
        self._bases: list[Bases] = []
        self._spaces: list[Workspace] = []

    @property
    def steps(self) -> Sequence[Step]:
        return self.artifact.program.run

    @property
    def core(self) -> list[Step]:
        """The calls that compute, without those that only change layouts."""
        layers = zip(self.artifact.layers, self.steps, strict=True)
        return [step for layer, step in layers if layer.ops != ("Copy",)]

    @property
    def extra(self) -> int:
        """Bytes of temporaries that these take."""
        return self.artifact.program.scratch(self.core)

    def bind(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Another set of addresses with a workspace of its own, and everything run there once."""
        space = Workspace(self.driver, self.artifact.program)
        bases = self.device.bases((inputs[0],), (outputs[0],), space)
        self._spaces.append(space)
        self._bases.append(bases)
        self.again()

    def again(self) -> None:
        """Everything run once more in the latest set."""
        self.device.enqueue(self.steps, self._bases[-1], self.stream)
        self.driver.synchronize(self.stream)

    def contender(self, name: str, steps: Sequence[Step]) -> Contender:
        """These calls in every set of addresses, one after the other."""
        captured = Owned(self.driver.stream(), self.driver.close)

        def enqueue() -> None:
            for bases in self._bases:
                self.device.enqueue(steps, bases, captured.value)

        graph = Owned(self.driver.capture(captured.value, enqueue), self.driver.forget)
        self._graphs += [captured, graph]

        def mark() -> Any:
            event = self.driver.event(timed=True)
            self.driver.record(event, self.stream)
            return event

        def elapsed(first: Any, last: Any) -> float:
            us = self.driver.elapsed(first, last)
            for event in (first, last):
                self.driver.drop(event)
            return us

        return Contender(
            name, lambda: self.driver.replay(graph.value, self.stream), len(self._bases), mark, elapsed
        )

    def whole_us(self) -> float:
        """us of all calls, layout changes included."""
        if len(self.core) == len(self.steps):
            return math.nan
        one = self.contender("whole", self.steps)
        return statistics.median(one.us() for _ in range(5))


@dataclass
class Buffers:
    """`count` inputs with the same batch of images, and `count` outputs; on the device."""

    driver: Any
    stream: int
    x: list[Owned] = field(default_factory=list)
    y: list[Owned] = field(default_factory=list)

    def fill(self, distinct: Array, batch: int, y_bytes: int, count: int) -> None:
        each = distinct[0].nbytes
        for i in range(count):
            x = memory(self.driver, each * batch)
            if i == 0:
                self.driver.copy_in(x.value, np.ascontiguousarray(distinct), self.stream)
                for n in range(len(distinct), batch):
                    source = x.value + n % len(distinct) * each
                    self.driver.copy(x.value + n * each, source, each, self.stream)
            else:
                self.driver.copy(x.value, self.x[0].value, each * batch, self.stream)
            self.x.append(x)
            self.y.append(memory(self.driver, y_bytes))
        self.driver.synchronize(self.stream)

    def spoil(self, shape: Sequence[int], dtype: str) -> None:
        """No numbers in the first output: what is not written shows."""
        ones = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, 0xFF, np.uint8)
        self.driver.copy_in(self.y[0].value, ones, self.stream)
        self.driver.synchronize(self.stream)

    def set_first(self, image: Array) -> None:
        """In place of the first input."""
        self.driver.copy_in(self.x[0].value, np.ascontiguousarray(image), self.stream)
        self.driver.synchronize(self.stream)

    def first(self, shape: Sequence[int], dtype: str) -> Array:
        """The whole first output."""
        found = np.empty(shape, dtype)
        self.driver.copy_out(found, self.y[0].value, self.stream)
        self.driver.synchronize(self.stream)
        return found

    def sampled(self, wanted: Sample, shape: Sequence[int], dtype: str) -> Array:
        """The sampled elements of the first output."""
        one = np.empty(shape[1:], dtype)
        found = np.empty(len(wanted.places), dtype)
        for n in wanted.images:
            self.driver.copy_out(one, self.y[0].value + n * one.nbytes, self.stream)
            self.driver.synchronize(self.stream)
            here = wanted.places[:, 0] == n
            found[here] = one[tuple(wanted.places[here, 1:].T)]
        return found


def timings(found: Mapping[str, Timing], flops: int) -> dict[str, dict[str, Any]]:
    """As results.json has them."""
    return {
        name: {
            "us": t.median, "spread": t.spread, "least": t.least, "rounds": t.rounds, "gflops": flops / t.median / 1e3,
        }
        for name, t in found.items()
    }  # fmt: skip
