"""An artifact on the CPU: its library mapped, its weights packed in memory, and runs by its own thread pool."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convc.errors import BadArtifactError, UsageError
from convc.ir import Array
from convc.runtime.artifact import LIBRARY, Artifact, Layer, Port
from convc.runtime.library import Library, check
from convc.runtime.memory import address, aligned_empty, as_array, checked, is_ready, logical, pages, ready


class Host:
    """The CPU's side of a module. May serve several threads at once; uses one set of threads of its own."""

    gpu: str | None = None

    def __init__(self, artifact: Artifact, *, threads: int, ordinal: int = 0) -> None:
        """`ordinal`, of a GPU, means nothing here. Raises TargetMismatchError unless this CPU runs the code."""
        artifact.check_machine()
        self.artifact = artifact
        self.library = Library(artifact.entries[LIBRARY], artifact.name)
        if self.library.calls() != len(artifact.layers):
            raise BadArtifactError("the library and the manifest have different numbers of calls; build it again")
        self.weights = _aligned(np.frombuffer(artifact.weights, np.uint8))
        self.packed = pages(self.library.packed_bytes())
        self._spare: list[Array] = []
        self.set_threads(threads)
        check(self.library.init(address(self.weights), address(self.packed)), "packing the weights")

    def set_threads(self, count: int) -> None:
        check(self.library.set_threads(count), f"setting {count} threads (1 to 256 can be)")
        self._spare.clear()

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None, *, stream: int | None) -> HostBound:
        if stream is not None:
            raise UsageError("a stream is where artifacts for GPUs run; this one is for a CPU")
        given = _arrays(inputs, self.artifact.inputs)
        wanted = _arrays(outputs, self.artifact.outputs) if outputs else [None] * len(self.artifact.outputs)
        _check_writable(wanted, self.artifact.outputs)
        return HostBound(self, given, wanted, self._workspace())

    def keep(self, workspace: Array) -> None:
        """For a later run."""
        self._spare.append(workspace)

    def _workspace(self) -> Array:
        """One that an earlier run has left, else a new one."""
        size = self.library.workspace_bytes()
        try:
            spare = self._spare.pop()
        except IndexError:
            return pages(size)
        return spare if spare.nbytes == size else pages(size)


class HostBound:
    """One run of a module: arrays, workspace, and the addresses of all of them."""

    def __init__(
        self, host: Host, given: Sequence[Array], wanted: Sequence[Array | None], workspace: Array
    ) -> None:
        self._host, self.workspace, self._wanted = host, workspace, wanted
        ports = list(zip(host.artifact.outputs, wanted, strict=True))
        self._outputs = [
            array if array is not None and is_ready(array) else aligned_empty(port.type) for port, array in ports
        ]
        self._given = [
            ready(array, port.type) if not _overlaps(array, self._outputs) else _copy(array, port)
            for port, array in zip(host.artifact.inputs, given, strict=True)
        ]
        arrays = _pointers(self._given), _pointers(self._outputs)
        self._addresses = (*arrays, address(host.packed), address(workspace))

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self._host.artifact.layers

    @property
    def outputs(self) -> dict[str, Array]:
        rows = zip(self._host.artifact.outputs, self._outputs, self._wanted, strict=True)
        return {port.name: found if wanted is None else wanted for port, found, wanted in rows}

    def run(self) -> None:
        check(self._host.library.run(*self._addresses), "the run")
        self._deliver()

    def call(self, index: int) -> None:
        check(self._host.library.call(index, *self._addresses), f"call {index} of {len(self.layers)}")
        self._deliver()

    def value(self, index: int) -> Array:
        layer = self.layers[index]
        if layer.space == "output":
            return self._outputs[layer.at]
        shape = layer.layout.physical(layer.type.shape)
        count = int(np.prod(shape, dtype=object))
        physical = np.frombuffer(self.workspace, layer.type.dtype, count, layer.at).reshape(shape)
        return logical(physical, layer.type, layer.layout.block)

    def run_us(self) -> float:
        start = time.perf_counter_ns()
        self.run()
        return (time.perf_counter_ns() - start) / 1000

    def steps_us(self) -> list[float]:
        found = []
        for index in range(len(self.layers)):
            start = time.perf_counter_ns()
            self.call(index)
            found.append((time.perf_counter_ns() - start) / 1000)
        return found

    def release(self) -> None:
        self._host.keep(self.workspace)

    def _deliver(self) -> None:
        for wanted, found in zip(self._wanted, self._outputs, strict=True):
            if wanted is not None and wanted is not found:
                wanted[...] = found


def _arrays(values: Mapping[str, Any], ports: Sequence[Port]) -> list[Array]:
    return [checked(as_array(values[port.name], port.name), port.type, port.name) for port in ports]


def _check_writable(arrays: Sequence[Array | None], ports: Sequence[Port]) -> None:
    for i, (array, port) in enumerate(zip(arrays, ports, strict=True)):
        if array is None:
            continue
        if not array.flags.writeable:
            raise UsageError(f"output '{port.name}' is read-only")
        if _overlaps(array, [other for other in arrays[:i] if other is not None]):
            raise UsageError(f"output '{port.name}' shares memory with another output")


def _overlaps(array: Array, others: Sequence[Array]) -> bool:
    return any(np.may_share_memory(array, other) for other in others)


def _copy(array: Array, port: Port) -> Array:
    fresh = aligned_empty(port.type)
    fresh[...] = array
    return fresh


def _aligned(data: Array) -> Array:
    if is_ready(data):
        return data
    copy = pages(data.nbytes)
    copy[...] = data
    return copy


def _pointers(arrays: Sequence[Array]) -> Any:
    return (ctypes.c_void_p * max(1, len(arrays)))(*map(address, arrays))
