"""Loading and running artifacts: needs numpy, for GPUs cuda-bindings, and nothing of the compiler."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from convc.errors import BadArtifactError, UsageError
from convc.ir import Array
from convc.runtime.artifact import GOLDEN, Artifact, Layer, Port
from convc.runtime.stream import handle_of
from convc.target import available_threads


class Bound(Protocol):
    """A run with its arrays and its workspace in place, to be executed as often as one likes or call by call."""

    @property
    def layers(self) -> Sequence[Layer]: ...
    @property
    def outputs(self) -> dict[str, Any]: ...

    def run(self) -> None:
        """Execute every call."""

    def call(self, index: int) -> None:
        """Execute one kernel call on whatever earlier calls left; in order from 0 they are a run."""

    def value(self, index: int) -> Array:
        """What lies where call `index` put its result, row-major. Valid until a later call reuses the place."""

    def run_us(self) -> float:
        """us of a run, on a GPU without the copies from and to the host."""

    def steps_us(self) -> list[float]:
        """us of each call of one run."""

    def release(self) -> None:
        """Leave the workspace to later runs. Not to be executed after that."""


class Side(Protocol):
    """Where a loaded artifact runs. `gpu` is the name of the GPU, None on a CPU."""

    @property
    def gpu(self) -> str | None: ...

    def set_threads(self, count: int) -> None: ...
    def bind(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None, *, stream: int | None
    ) -> Bound: ...


SIDES = {"cpu": ("convc.runtime.host", "Host"), "cuda": ("convc.runtime.gpu", "Device")}
"""By kind of target: the class that runs it, made of the artifact, `threads` and `ordinal`; imported when used."""


def load(path: str | os.PathLike[str] | Artifact, *, threads: int | None = None, device: int = 0) -> Module:
    """The artifact, ready to run: hashes and machine checked, code loaded, weights packed.

    `threads` per run on a CPU; by default CONVC_NUM_THREADS, else what affinity and the cgroup's quota leave. `device`
    is the number of the GPU, for artifacts that run on one.
    Raises BadInputError, BadArtifactError or TargetMismatchError before any code of the artifact runs, and
    MissingDependencyError where a GPU is here and cuda-bindings is not.
    """
    artifact = path if isinstance(path, Artifact) else Artifact.open(path)
    return Module(artifact, threads=available_threads() if threads is None else threads, device=device)


class Module:
    """A loaded network. May be called from several threads at once."""

    def __init__(self, artifact: Artifact, *, threads: int, device: int = 0) -> None:
        self.artifact = artifact
        self.threads = threads
        home, name = SIDES[artifact.kind]
        make: Callable[..., Side] = getattr(import_module(home), name)
        self.side = make(artifact, threads=threads, ordinal=device)

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self.artifact.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self.artifact.outputs

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.artifact.layers

    @property
    def gpu(self) -> str | None:
        """The name of the GPU that it runs on; None on a CPU."""
        return self.side.gpu

    def set_threads(self, count: int) -> None:
        """Threads per run, 1 to 256, from the next run on. Not while one is in progress. Nothing to a GPU."""
        self.side.set_threads(count)
        self.threads = count

    def run(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, stream: Any = None
    ) -> dict[str, Any]:
        """All outputs by name, for one array per input name, of exactly the declared shape and dtype.

        Takes numpy arrays and whatever has `__dlpack__`, in host memory or, for an artifact that runs there, on its
        GPU; those that are row-major and 64-byte aligned are read in place. Results are those in `outputs`, written
        where they lie, else new arrays: numpy's, or where an input is on the GPU such as lie there too (DeviceArray).
        `stream` is a CUDA stream: a number, or an object of torch, CuPy or cuda.core; where all arrays are on the GPU
        the run is only put there and not waited for, and they must last until it is done. Without one the results are
        there on return.
        Raises UsageError for wrong names and BadInputError for wrong arrays.
        """
        bound = self.bind(inputs, outputs, stream=stream)
        bound.run()
        bound.release()
        return bound.outputs

    def __call__(self, *inputs: Any) -> Any:
        """The output, or a tuple of all, for the inputs in order."""
        if len(inputs) != len(self.inputs):
            raise UsageError(f"the model has {len(self.inputs)} inputs ({_names(self.inputs)}), got {len(inputs)}")
        found = self.run({port.name: value for port, value in zip(self.inputs, inputs, strict=True)})
        results = tuple(found.values())
        return results[0] if len(results) == 1 else results

    def bind(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, stream: Any = None
    ) -> Bound:
        """A run with its arrays and its workspace in place. Arguments as for `run`; arrays on the host are read and
        written at each execution."""
        _check_names(inputs, self.inputs, "input")
        if outputs:
            _check_names(outputs, self.outputs, "output")
        return self.side.bind(inputs, outputs or None, stream=handle_of(stream))

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


def _check_names(values: Mapping[str, Any], ports: tuple[Port, ...], kind: str) -> None:
    unknown = sorted(set(values) - {port.name for port in ports})
    missing = [port.name for port in ports if port.name not in values]
    if unknown or missing:
        wrong = f"unknown {unknown}" if unknown else f"missing {missing}"
        raise UsageError(f"wrong {kind} names, {wrong}; the {kind}s are {_names(ports)}")


def _names(ports: tuple[Port, ...]) -> str:
    return ", ".join(f"'{port.name}' {port.type}" for port in ports)
