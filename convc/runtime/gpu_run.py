"""One run on a GPU: the caller's arrays, on the host or on the device, and the addresses that kernels get."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convc.errors import BadInputError, UsageError
from convc.ir import Array
from convc.runtime.artifact import Port
from convc.runtime.dlpack import Borrowed, borrow, is_on_gpu
from convc.runtime.gpu import Device, Workspace
from convc.runtime.gpu_memory import DeviceArray, Mark
from convc.runtime.memory import ALIGNMENT, as_array, checked, logical
from convc.runtime.program import Place

Value = Array | Borrowed


@dataclass(frozen=True, eq=False)
class Argument:
    """An input or output: `value` is where the caller has it, `address` where kernels find it."""

    place: Place
    value: Value
    size: int
    address: int

    @property
    def is_staged(self) -> bool:
        """Whether it must be copied between the two."""
        return isinstance(self.value, np.ndarray) or self.value.address != self.address


class GpuBound:
    """A run of a module with its arrays and its workspace in place, on one stream.

    A tensor on the GPU is used where it lies, if it is row-major and 64-byte aligned and no output lies in it; others
    are copied, on the device or from the host. Tensors that the caller gives must last until the run is done.
    """

    def __init__(
        self, device: Device, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None, stream: int | None,
        workspace: Workspace,
    ) -> None:  # fmt: skip
        self._device, self._driver, self.workspace = device, device.driver, workspace
        self._stream: int = device.stream.value if stream is None else stream
        given, ports = [self._taken(inputs[p.name], p) for p in device.artifact.inputs], device.artifact.outputs
        on_gpu = any(isinstance(value, Borrowed) for value in given)
        self._results = [outputs[p.name] if outputs else self._result(p, on_gpu) for p in ports]
        wanted = [self._taken(value, p) for value, p in zip(self._results, ports, strict=True)]
        _check_outputs(wanted, ports)
        self._outputs = [self._argument(Place("output", i), value, ()) for i, value in enumerate(wanted)]
        self._inputs = [self._argument(Place("input", i), value, wanted) for i, value in enumerate(given)]
        self._bases = device.bases(
            tuple(one.address for one in self._inputs), tuple(one.address for one in self._outputs), workspace
        )
        self._is_awaited = stream is None or any(isinstance(value, np.ndarray) for value in (*given, *wanted))
        self._events: list[Any] = []

    @property
    def layers(self) -> Sequence[Any]:
        return self._device.artifact.layers

    @property
    def outputs(self) -> dict[str, Any]:
        """By name: what the caller gave, else new arrays, on the device where an input is there, else on the host."""
        rows = zip(self._device.artifact.outputs, self._results, self._outputs, strict=True)
        return {p.name: one.value if isinstance(one.value, np.ndarray) else result for p, result, one in rows}

    def run(self) -> None:
        """Execute every call, as a graph; waits for it, unless on the caller's stream with all arrays on the GPU."""
        self._start(self._inputs)
        self._replay()
        self._end(self._outputs)

    def call(self, index: int) -> None:
        """Execute one kernel call on whatever earlier calls left; in order from 0 they are a run."""
        steps = self._device.program.run
        if not 0 <= index < len(steps):
            raise UsageError(f"call {index} of {len(steps)}: out of range")
        touched = set(steps[index].args)
        self._start(one for one in self._inputs if one.place in touched)
        self._device.enqueue([steps[index]], self._bases, self._stream)
        self._end([one for one in self._outputs if one.place in touched], wait=True)

    def value(self, index: int) -> Array:
        """A copy of what lies where call `index` put its result, row-major."""
        layer = self._device.artifact.layers[index]
        shape = layer.layout.physical(layer.type.shape)
        physical = np.empty(shape, layer.type.dtype)
        at = self._outputs[layer.at].address if layer.space == "output" else self._bases.arena + layer.at
        self._driver.copy_out(physical, at, self._stream)
        self._driver.synchronize(self._stream)
        return logical(physical, layer.type, layer.layout.block)

    def run_us(self) -> float:
        """us of all calls on the device, with nothing copied; right after a run that is not measured, so that the
        device has no gap before it."""
        self._start(self._inputs)
        first, last = (self._driver.event(timed=True) for _ in range(2))
        try:
            self._replay()
            self._driver.record(first, self._stream)
            self._replay()
            self._driver.record(last, self._stream)
            return self._driver.elapsed(first, last)
        finally:
            self._driver.drop(first)
            self._driver.drop(last)

    def steps_us(self) -> list[float]:
        """us of each call of one run, on the device."""
        driver, count = self._driver, len(self._device.program.run)
        self._start(self._inputs)
        events = [driver.event(timed=True) for _ in range(count + 1)]
        try:
            graph = self._device.capture(self._bases, events)
            try:
                driver.replay(graph, self._stream)
                driver.synchronize(self._stream)
                return [driver.elapsed(*pair) for pair in zip(events, events[1:], strict=False)]
            finally:
                driver.forget(graph)
        finally:
            for event in events:
                driver.drop(event)

    def release(self) -> None:
        """Leave the workspace to later runs; this one is done with."""
        self._device.keep(self.workspace)

    def _replay(self) -> None:
        graph = self.workspace.graph(self._bases, lambda: self._device.capture(self._bases))
        self._driver.replay(graph, self._stream)

    def _start(self, inputs: Iterable[Argument]) -> None:
        """Bring these in, behind whatever still runs in the workspace."""
        if self.workspace.done:
            self.workspace.done.precede(self._stream)
        for one in inputs:
            if isinstance(one.value, np.ndarray):
                self._driver.copy_in(one.address, _plain(one.value), self._stream)
            elif one.is_staged:
                self._driver.copy(one.address, one.value.address, one.size, self._stream)

    def _end(self, outputs: Sequence[Argument], *, wait: bool = False) -> None:
        """Take these out, and wait where the caller could not."""
        late: list[tuple[Array, Array]] = []
        for one in outputs:
            if isinstance(one.value, np.ndarray):
                here = _plain(one.value)  # the array itself, or a row-major one of the same type
                self._driver.copy_out(here, one.address, self._stream)
                late += [] if here is one.value else [(one.value, here)]
            elif one.is_staged:
                self._driver.copy(one.value.address, one.address, one.size, self._stream)
        awaited = wait or self._is_awaited
        if awaited:
            self._driver.synchronize(self._stream)
        done = None if awaited else Mark(self._driver, self._stream)
        self.workspace.done = done
        for result in self._results:
            if isinstance(result, DeviceArray):
                result.done = done
        for array, here in late:
            array[...] = here

    def _taken(self, value: Any, port: Port) -> Value:
        if is_on_gpu(value):
            return self._on_device(value, port)
        return checked(as_array(value, port.name), port.type, port.name)

    def _on_device(self, value: Any, port: Port) -> Borrowed:
        found = borrow(value, port.name, self._stream)
        if found.type != port.type:
            raise BadInputError(f"'{port.name}' must be {port.type}, got {found.type}")
        if found.ordinal != self._driver.ordinal:
            raise BadInputError(
                f"'{port.name}' lies on GPU {found.ordinal}, the module is loaded on GPU {self._driver.ordinal}"
            )
        if not found.is_row_major:
            raise BadInputError(f"'{port.name}' is a strided tensor on the GPU; make it contiguous")
        return found

    def _result(self, port: Port, on_gpu: bool) -> Array | DeviceArray:
        if on_gpu:
            return DeviceArray(self._driver, port.type, self._device.stream)
        return np.empty(port.type.shape, port.type.dtype)

    def _argument(self, place: Place, value: Value, others: Sequence[Value]) -> Argument:
        """`value` where it lies, or in a place of the workspace; `others` may be written while it is read."""
        size = _size(value)
        lies_well = isinstance(value, Borrowed) and value.address % ALIGNMENT == 0
        if isinstance(value, Borrowed) and lies_well and not any(_overlap(value, other) for other in others):
            return Argument(place, value, size, value.address)
        return Argument(place, value, size, self.workspace.buffer(place, size))


def _plain(array: Array) -> Array:
    """The array itself, or a row-major copy in this machine's order of bytes."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _size(value: Value) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else value.type.bytes


def _overlap(one: Value, other: Value) -> bool:
    """Whether two values share memory."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(np.may_share_memory(one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return False
    return one.address < other.address + _size(other) and other.address < one.address + _size(one)


def _check_outputs(values: Sequence[Value], ports: Sequence[Port]) -> None:
    for i, (value, port) in enumerate(zip(values, ports, strict=True)):
        if isinstance(value, np.ndarray) and not value.flags.writeable:
            raise UsageError(f"output '{port.name}' is read-only")
        if any(_overlap(value, other) for other in values[:i]):
            raise UsageError(f"output '{port.name}' shares memory with another output")
