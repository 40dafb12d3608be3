"""An artifact on a GPU: its kernels loaded, its weights packed there, and the memory of its runs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from convc.errors import TargetMismatchError
from convc.launch import Temporary, aligned
from convc.runtime.artifact import Artifact
from convc.runtime.driver import Driver
from convc.runtime.features import gpu_mismatch, open_gpu
from convc.runtime.gpu_memory import Mark, Owned, memory
from convc.runtime.program import NUMBERED, Function, Place, Program, Step, entry_of

if TYPE_CHECKING:
    from convc.runtime.gpu_run import GpuBound

MOST_GRAPHS = 16  # a workspace keeps; a graph takes some 10 KB a kernel


@dataclass(frozen=True)
class Bases:
    """Where the spaces of a plan begin, and the caller's inputs and outputs: device addresses."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    weights: int = 0
    packed: int = 0
    arena: int = 0
    scratch: int = 0

    def address(self, place: Place) -> int:
        if place.space in NUMBERED:
            ports: tuple[int, ...] = self.inputs if place.space == "input" else self.outputs
            return ports[place.at]
        return int(getattr(self, place.space)) + place.at


class Workspace:
    """The memory of one run at a time: arena and temporaries in one piece, buffers for what the caller has on the host,
    and the graphs of the addresses that it was bound to."""

    def __init__(self, driver: Driver, program: Program) -> None:
        self._driver = driver
        self._memory = memory(driver, program.workspace)
        self.arena = int(self._memory.value)
        self.scratch = self.arena + aligned(program.arena)
        self.done: Mark | None = None
        """The end of the last run in it, where nobody waited for that."""
        self._buffers: dict[Place, Owned] = {}
        self._graphs: OrderedDict[Bases, Owned] = OrderedDict()

    def buffer(self, place: Place, size: int) -> int:
        """A place on the device for an input or output that lies elsewhere; the same one each time."""
        if place not in self._buffers:
            self._buffers[place] = memory(self._driver, size)
        return int(self._buffers[place].value)

    def graph(self, bases: Bases, capture: Callable[[], Any]) -> Any:
        """The run with these addresses; captured where it is a new one."""
        if bases not in self._graphs:
            self._graphs[bases] = Owned(capture(), self._driver.forget)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(bases)
        return self._graphs[bases].value


class Device:
    """The GPU's side of a module. May serve several threads at once."""

    def __init__(self, artifact: Artifact, *, threads: int, ordinal: int = 0) -> None:
        """`threads` mean nothing here. Raises TargetMismatchError unless GPU `ordinal` runs the artifact's code."""
        self.artifact, self.program = artifact, artifact.program
        self.driver = open_gpu(artifact.manifest["target"], ordinal)
        self.gpu: str | None = self.driver.name
        self.stream = Owned(self.driver.stream(), self.driver.close)
        self._captured = Owned(self.driver.stream(), self.driver.close)
        self._capturing = threading.Lock()
        self._spare: list[Workspace] = []
        self._modules: list[Owned] = []
        self._kernels = {symbol: self._load(symbol, each) for symbol, each in self.program.functions.items()}
        self._packed = memory(self.driver, self.program.packed)
        self._weights = self._pack()

    def set_threads(self, count: int) -> None:
        """Nothing: a GPU has its own."""

    def bind(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None, *, stream: int | None
    ) -> GpuBound:
        from convc.runtime.gpu_run import GpuBound

        return GpuBound(self, inputs, outputs, stream, self._workspace())

    def _workspace(self) -> Workspace:
        """One that an earlier run has left, else a new one."""
        try:
            return self._spare.pop()
        except IndexError:
            return Workspace(self.driver, self.program)

    def keep(self, workspace: Workspace) -> None:
        """For a later run."""
        self._spare.append(workspace)

    def bases(self, inputs: tuple[int, ...], outputs: tuple[int, ...], workspace: Workspace) -> Bases:
        weights = self._weights.value if self._weights else 0
        return Bases(inputs, outputs, weights, self._packed.value, workspace.arena, workspace.scratch)

    def enqueue(self, steps: Sequence[Step], bases: Bases, stream: int) -> None:
        """Put the launches of these calls on the stream."""
        for step in steps:
            given = [bases.address(place) for place in step.args]
            launches = self.program.functions[step.symbol].launches
            for launch, kernel in zip(launches, self._kernels[step.symbol], strict=True):
                args = [bases.scratch + a.offset if isinstance(a, Temporary) else given[a] for a in launch.args]
                self.driver.launch(kernel, launch.grid, launch.block, launch.shared, args, stream)

    def capture(self, bases: Bases, events: Sequence[Any] = ()) -> Any:
        """A run as a graph, with a timed event before each call and one at the end where `events` are given."""
        stream = self._captured.value

        def enqueue() -> None:
            for i, step in enumerate(self.program.run):
                if events:
                    self.driver.record(events[i], stream, in_graph=True)
                self.enqueue([step], bases, stream)
            if events:
                self.driver.record(events[-1], stream, in_graph=True)

        with self._capturing:  # another thread's launches must not get into the graph
            return self.driver.capture(stream, enqueue)

    def _load(self, symbol: str, function: Function) -> list[Any]:
        """The handles of its kernels, launch by launch."""
        try:
            module = Owned(self.driver.load(bytes(self.artifact.entries[entry_of(symbol)])), self.driver.unload)
            self._modules.append(module)
            return [self.driver.function(module.value, each.kernel, each.shared) for each in function.launches]
        except TargetMismatchError as error:
            advice = "Compile it for this GPU's own architecture, or update the NVIDIA driver"
            raise gpu_mismatch(self.artifact.manifest["target"], str(error), advice) from error

    def _pack(self) -> Owned | None:
        """Run init. The weights as the file has them stay on the device only where runs read them."""
        weights = memory(self.driver, self.program.weights)
        scratch = memory(self.driver, self.program.scratch(self.program.init))
        data = np.frombuffer(self.artifact.weights, np.uint8)[: self.program.weights]
        stream = self.stream.value
        self.driver.copy_in(weights.value, data, stream)
        bases = Bases(weights=weights.value, packed=self._packed.value, scratch=scratch.value)
        self.enqueue(self.program.init, bases, stream)
        self.driver.synchronize(stream)
        is_read = any(place.space == "weights" for step in self.program.run for place in step.args)
        return weights if is_read else None
