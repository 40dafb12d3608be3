"""Loading and running artifacts: needs numpy, and nothing of the compiler."""

from __future__ import annotations

import ctypes
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from convc.errors import BadArtifactError, UsageError
from convc.ir import Array
from convc.runtime.artifact import GOLDEN, LIBRARY, Artifact, Layer, Port
from convc.runtime.library import Library, check
from convc.runtime.memory import address, aligned_empty, as_array, checked, is_ready, logical, pages, ready
from convc.target import available_threads


def load(path: str | os.PathLike[str] | Artifact, *, threads: int | None = None) -> Module:
    """The artifact, ready to run: hashes and CPU checked, code mapped, weights packed.

    `threads` per run; by default CONVC_NUM_THREADS, else what affinity and the cgroup's quota leave.
    Raises BadInputError, BadArtifactError or TargetMismatchError before any code of the artifact runs.
    """
    artifact = path if isinstance(path, Artifact) else Artifact.open(path)
    artifact.check_machine()
    return Module(artifact, threads=available_threads() if threads is None else threads)


class Module:
    """A loaded network. May be called from several threads at once; it uses one set of threads of its own."""

    def __init__(self, artifact: Artifact, *, threads: int) -> None:
        self.artifact = artifact
        self.library = Library(artifact.entries[LIBRARY], artifact.name)
        if self.library.calls() != len(artifact.layers):
            raise BadArtifactError("the library and the manifest have different numbers of calls; build it again")
        self._weights = _aligned(np.frombuffer(artifact.weights, np.uint8))
        self._packed = pages(self.library.packed_bytes())
        self._spare: list[Array] = []
        self.threads = threads
        self.set_threads(threads)
        check(self.library.init(address(self._weights), address(self._packed)), "packing the weights")

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self.artifact.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self.artifact.outputs

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.artifact.layers

    def set_threads(self, count: int) -> None:
        """Threads per run, 1 to 256, from the next run on. Not while one is in progress."""
        check(self.library.set_threads(count), f"setting {count} threads (1 to 256 can be)")
        self.threads = count
        self._spare.clear()

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """All outputs by name, for one array per input name, of exactly the declared shape and dtype.

        Takes numpy arrays and whatever has `__dlpack__` in host memory; those that are row-major and 64-byte aligned
        are read in place. Results are new arrays, or those in `outputs`.
        Raises UsageError for wrong names and BadInputError for wrong arrays.
        """
        bound = self.bind(inputs, outputs)
        bound.run()
        self._spare.append(bound.workspace)
        return bound.outputs

    def __call__(self, *inputs: Any) -> Array | tuple[Array, ...]:
        """The output, or a tuple of all, for the inputs in order."""
        if len(inputs) != len(self.inputs):
            raise UsageError(f"the model has {len(self.inputs)} inputs ({_names(self.inputs)}), got {len(inputs)}")
        found = self.run({port.name: value for port, value in zip(self.inputs, inputs, strict=True)})
        results = tuple(found.values())
        return results[0] if len(results) == 1 else results

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Array] | None = None) -> Bound:
        """A run with its arrays and its workspace in place, to be executed as often as one likes or call by call."""
        given = _arrays(inputs, self.inputs, "input")
        wanted = _arrays(outputs, self.outputs, "output") if outputs else [None] * len(self.outputs)
        return Bound(self, given, wanted, self._workspace())

    def _workspace(self) -> Array:
        """One that an earlier run has left, else a new one."""
        size = self.library.workspace_bytes()
        try:
            spare = self._spare.pop()
        except IndexError:
            return pages(size)
        return spare if spare.nbytes == size else pages(size)

    def values(self, inputs: Mapping[str, Any]) -> Iterator[tuple[Layer, Array]]:
        """Each kernel call and its result, row-major, in order of execution."""
        bound = self.bind(inputs)
        for layer in self.layers:
            bound.call(layer.index)
            yield layer, bound.value(layer.index).copy()

    def golden(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """The inputs and outputs of the self-test. Raises BadArtifactError where the artifact has none."""
        data = self.artifact.entries.get(GOLDEN)
        if data is None:
            raise BadArtifactError(f"the artifact has no {GOLDEN}")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            inputs = {port.name: file[f"input_{i}"] for i, port in enumerate(self.inputs)}
            return inputs, {port.name: file[f"output_{i}"] for i, port in enumerate(self.outputs)}


class Bound:
    """One run of a module: arrays, workspace, and the addresses of all of them."""

    def __init__(self, module: Module, given: list[Array], wanted: list[Array] | list[None], workspace: Array) -> None:
        self.module, self.workspace, self._wanted = module, workspace, wanted
        ports = list(zip(module.outputs, wanted, strict=True))
        self._outputs = [
            array if array is not None and is_ready(array) else aligned_empty(port.type) for port, array in ports
        ]
        self._given = [
            ready(array, port.type) if not _overlaps(array, self._outputs) else _copy(array, port)
            for port, array in zip(module.inputs, given, strict=True)
        ]
        arrays = _pointers(self._given), _pointers(self._outputs)
        self._addresses = (*arrays, address(module._packed), address(workspace))

    @property
    def outputs(self) -> dict[str, Array]:
        rows = zip(self.module.outputs, self._outputs, self._wanted, strict=True)
        return {port.name: found if wanted is None else wanted for port, found, wanted in rows}

    def run(self) -> None:
        """Execute every call."""
        check(self.module.library.run(*self._addresses), "the run")
        self._deliver()

    def call(self, index: int) -> None:
        """Execute one kernel call on whatever earlier calls left; in order from 0 they are a run."""
        check(self.module.library.call(index, *self._addresses), f"call {index} of {len(self.module.layers)}")
        self._deliver()

    def value(self, index: int) -> Array:
        """What lies where call `index` put its result, row-major. Valid until a later call reuses the place."""
        layer = self.module.layers[index]
        if layer.space == "output":
            return self._outputs[layer.at]
        shape = layer.layout.physical(layer.type.shape)
        count = int(np.prod(shape, dtype=object))
        physical = np.frombuffer(self.workspace, layer.type.dtype, count, layer.at).reshape(shape)
        return logical(physical, layer.type, layer.layout.block)

    def _deliver(self) -> None:
        for wanted, found in zip(self._wanted, self._outputs, strict=True):
            if wanted is not None and wanted is not found:
                wanted[...] = found


def _arrays(values: Mapping[str, Any], ports: tuple[Port, ...], kind: str) -> list[Array]:
    unknown = sorted(set(values) - {port.name for port in ports})
    missing = [port.name for port in ports if port.name not in values]
    if unknown or missing:
        wrong = f"unknown {unknown}" if unknown else f"missing {missing}"
        raise UsageError(f"wrong {kind} names, {wrong}; the {kind}s are {_names(ports)}")
    found = [checked(as_array(values[port.name], port.name), port.type, port.name) for port in ports]
    if kind == "output":
        _check_writable(found, ports)
    return found


def _check_writable(arrays: list[Array], ports: tuple[Port, ...]) -> None:
    for i, (array, port) in enumerate(zip(arrays, ports, strict=True)):
        if not array.flags.writeable:
            raise UsageError(f"output '{port.name}' is read-only")
        if _overlaps(array, arrays[:i]):
            raise UsageError(f"output '{port.name}' shares memory with another output")


def _overlaps(array: Array, others: list[Array]) -> bool:
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


def _pointers(arrays: list[Array]) -> Any:
    return (ctypes.c_void_p * max(1, len(arrays)))(*map(address, arrays))


def _names(ports: tuple[Port, ...]) -> str:
    return ", ".join(f"'{port.name}' {port.type}" for port in ports)
