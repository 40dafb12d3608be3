"""A GPU of host memory for tests of the runtime: kernels are Python, and nothing happens before someone waits for it.

Streams are queues, so that a runtime that forgets to wait gets rubbish. Every address must lie in memory that is
allocated just then.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import handmade
import numpy as np
import pytest

from convc.errors import BudgetError, ConvcError
from convc.ir import Array, TensorType
from convc.launch import Launch, Temporary, Three, Usage
from convc.plan.plan import Plan, Slot
from convc.runtime.artifact import Artifact
from convc.runtime.dlpack import FRESH, _Managed, _pointer
from convc.runtime.driver import Driver
from convc.runtime.memory import address, aligned_empty
from convc.runtime.package import package
from convc.target import parse_target

Work = Callable[[], None]


@dataclass(eq=False)
class Event:
    """Where it was recorded: a stream and how much work that had been given by then; and the clock when it was done."""

    timed: bool
    stream: int = 0
    position: int = 0
    us: float | None = None


class FakeDriver:
    """Has the methods of Driver. A kernel takes 10 us of its clock a launch, and 1 us more for each thread block."""

    name = "Fake GPU"

    def __init__(self, capability: tuple[int, int] = (8, 0), *, ordinal: int = 0, memory: int = 1 << 30) -> None:
        self.capability, self.ordinal, self.left = capability, ordinal, memory
        self.memory: dict[int, tuple[Array, int]] = {}
        self.borrowed: list[Array] = []
        self.queues: dict[int, list[Work]] = {0: [], 1: []}
        self.begun: dict[int, int] = {0: 0, 1: 0}
        self.graphs: dict[int, list[Work]] = {}
        self.modules: set[int] = set()
        self.events: set[Event] = set()
        self.capturing: dict[int, list[Work]] = {}
        self.launched: list[str] = []
        self.log: list[str] = []
        self.clock = 0.0
        self._number = 100
        self._lock = threading.RLock()

    @property
    def held(self) -> tuple[int, int, int, int, int]:
        """What nobody has given back: allocations, modules, graphs, events, streams."""
        return len(self.memory), len(self.modules), len(self.graphs), len(self.events), len(self.queues) - 2

    def allocate(self, size: int) -> int:
        if size > self.left:
            raise BudgetError(f"no {size} bytes")
        self.left -= size
        raw = np.full(size + 512, 0xA5, np.uint8)
        pointer = -(-address(raw) // 256) * 256
        self.memory[pointer] = (raw, max(size, 1))
        return pointer

    def free(self, pointer: int) -> None:
        for stream in list(self.queues):
            self._drain(stream)
        raw, size = self.memory.pop(pointer)
        self.left += size
        raw[:] = 0x5A

    def copy_in(self, to: int, data: Array, stream: int) -> None:
        assert data.flags.c_contiguous and data.dtype.isnative
        staged = data.tobytes()
        self.log.append("copy_in")
        self._put(stream, lambda: _move(self.inside(to, len(staged)), staged))

    def copy_out(self, to: Array, source: int, stream: int) -> None:
        assert to.flags.c_contiguous and to.dtype.isnative
        self.log.append("copy_out")

        def work() -> None:
            data = ctypes.string_at(self.inside(source, to.nbytes), to.nbytes)
            to[...] = np.frombuffer(data, to.dtype).reshape(to.shape)

        self._put(stream, work)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self.log.append("copy")
        self._put(stream, lambda: _move(self.inside(to, size), ctypes.string_at(self.inside(source, size), size)))

    def load(self, image: bytes) -> int:
        self.modules.add(self._new())
        self.log.append(f"load {image.decode()}")
        return self._number

    def unload(self, module: int) -> None:
        self.modules.remove(module)

    def function(self, module: int, name: str, shared: int) -> str:
        assert module in self.modules
        if name not in KERNELS:
            raise ConvcError(f"no kernel {name}")
        return name

    def launch(
        self, function: str, grid: Three, block: Three, shared: int, args: Sequence[int], stream: int
    ) -> None:
        assert all(arg % 64 == 0 for arg in args)

        def work() -> None:
            self.launched.append(function)
            self.clock += 10 + grid[0]
            KERNELS[function](self, *args)

        self._put(stream, work)

    def stream(self) -> int:
        self.queues[self._new()] = []
        self.begun[self._number] = 0
        return self._number

    def close(self, stream: int) -> None:
        self._drain(stream)
        del self.queues[stream]

    def synchronize(self, stream: int) -> None:
        self.log.append(f"synchronize {stream}")
        self._drain(stream)

    def capture(self, stream: int, enqueue: Work) -> int:
        assert stream not in self.capturing
        self.capturing[stream] = []
        time.sleep(1e-3)  # for others to come in between
        try:
            enqueue()
        finally:
            works = self.capturing.pop(stream)
        self.graphs[self._new()] = works
        self.log.append("capture")
        return self._number

    def replay(self, graph: int, stream: int) -> None:
        works = self.graphs[graph]
        self.log.append("replay")
        self._put(stream, lambda: [work() for work in works] and None)

    def forget(self, graph: int) -> None:
        del self.graphs[graph]

    def event(self, *, timed: bool = False) -> Event:
        event = Event(timed)
        self.events.add(event)
        return event

    def record(self, event: Event, stream: int, *, in_graph: bool = False) -> None:
        assert in_graph == (stream in self.capturing)

        def work() -> None:
            event.us = self.clock

        self._put(stream, work)
        if not in_graph:
            event.stream, event.position = stream, self.begun[stream] + len(self.queues[stream])

    def wait(self, stream: int, event: Event) -> None:
        self.log.append(f"wait {stream} for {event.stream}")
        other, position = event.stream, event.position
        self._put(stream, lambda: self._drain(other, position))

    def elapsed(self, start: Event, stop: Event) -> float:
        assert start.timed and stop.timed
        self._drain(stop.stream, stop.position)
        assert start.us is not None and stop.us is not None
        return stop.us - start.us

    def drop(self, event: Event) -> None:
        self.events.remove(event)

    def inside(self, at: int, size: int) -> int:
        """The address, if all of it is memory that is there."""
        spans = [(pointer, length) for pointer, (_, length) in list(self.memory.items())]
        spans += [(address(array), array.nbytes) for array in self.borrowed]
        assert any(start <= at and at + size <= start + length for start, length in spans), "outside of all memory"
        return at

    def floats(self, at: int, *shape: int) -> Array:
        """An array of the device."""
        size = 4 * int(np.prod(shape))
        kept = (ctypes.c_char * size).from_address(self.inside(at, size))
        return np.frombuffer(kept, np.float32).reshape(shape)

    def _new(self) -> int:
        self._number += 1
        return self._number

    def _put(self, stream: int, work: Work) -> None:
        self.capturing.get(stream, self.queues[stream]).append(work)

    def _drain(self, stream: int, until: int | None = None) -> None:
        with self._lock:
            queue = self.queues.get(stream, [])
            while queue and (until is None or self.begun[stream] < until):
                work = queue.pop(0)
                self.begun[stream] += 1
                work()


def _move(to: int, data: bytes) -> None:
    ctypes.memmove(to, data, len(data))


def _copy(gpu: FakeDriver, x: int, y: int) -> None:
    gpu.floats(y, handmade.C)[...] = gpu.floats(x, handmade.C)


def _scale(gpu: FakeDriver, x: int, w: int, y: int) -> None:
    """Channels in blocks of 4; the spare lanes are not numbers."""
    n, c, block = handmade.N, handmade.C, handmade.BLOCK
    wide = np.full((n, 2 * block, handmade.H, handmade.W), np.nan, np.float32)
    wide[:, :c] = gpu.floats(x, *handmade.SHAPE) * gpu.floats(w, c)[:, None, None]
    split = wide.reshape(n, 2, block, handmade.H, handmade.W)
    gpu.floats(y, n, 2, handmade.H, handmade.W, block)[...] = np.moveaxis(split, 2, -1)


def _clip(gpu: FakeDriver, y: int, b: int, z: int) -> None:
    blocked = gpu.floats(y, handmade.N, 2, handmade.H, handmade.W, handmade.BLOCK)
    value = np.moveaxis(blocked, -1, 2).reshape(handmade.N, -1, handmade.H, handmade.W)[:, : handmade.C]
    gpu.floats(z, *handmade.SHAPE)[...] = np.maximum(value + gpu.floats(b, handmade.C)[:, None, None], 0)


KERNELS: dict[str, Callable[..., None]] = {
    "k_pack_0": _copy, "k_pack_1": _copy, "k_scale_0": _copy, "k_scale_1": _scale, "k_clip_0": _clip,
}
ONE = (1, 1, 1)
LAUNCHES = {
    "k_pack": (
        Launch("k_pack_0", ONE, (32, 1, 1), 0, (0, Temporary(256))),
        Launch("k_pack_1", ONE, (32, 1, 1), 0, (Temporary(256), 1)),
    ),
    "k_scale": (
        Launch("k_scale_0", ONE, (32, 1, 1), 0, (1, Temporary(0))),
        Launch("k_scale_1", (5, 1, 1), (64, 2, 1), 64 << 10, (0, Temporary(0), 2)),
    ),
    "k_clip": (Launch("k_clip_0", (2, 3, 1), (128, 1, 1), 0, (0, 1, 2)),),
}
SCRATCH = {"k_pack": 512, "k_scale": 256, "k_clip": 0}
USAGE = {
    symbol: {each.kernel: (Usage("sm_80", 40, 0, 0, 0, 0), Usage("sm_90a", 42, 16, 8, 4, 4)) for each in launches}
    for symbol, launches in LAUNCHES.items()
}


def plan(*, seed: int = 1, reads_weights: bool = True) -> Plan:
    """That of `handmade`; without `reads_weights` its second kernel adds w, packed, instead of b."""
    made = handmade.plan(seed=seed)
    if reads_weights:
        return made
    y, _, z = made.run[1].args
    return replace(made, run=(made.run[0], replace(made.run[1], args=(y, Slot("packed", 64), z))))


@cache
def artifact(
    *, seed: int = 1, reads_weights: bool = True, target: str = "cuda/sm_80,sm_90a"
) -> Artifact:
    made = plan(seed=seed, reads_weights=reads_weights)
    names = dict(zip([c.kernel for c in (*made.init, *made.run)], LAUNCHES, strict=True))
    images = tuple(symbol.encode() for symbol in LAUNCHES)
    built = handmade.Objects(images, names, SCRATCH, LAUNCHES, USAGE)
    return package(built, made, parse_target(target), b"model", name="tiny")


class Tensor:
    """What tensors of torch on a GPU look like from here."""

    def __init__(self, driver: FakeDriver, values: Array, *, ordinal: int = 0, shift: int = 0) -> None:
        """`shift` bytes behind a multiple of 64."""
        raw = aligned_empty(TensorType((values.nbytes + shift,), "uint8"))
        self.array = raw[shift:].view(values.dtype).reshape(values.shape)
        self.array[...] = values
        self.driver, self.ordinal = driver, ordinal
        self.streams: list[int | None] = []
        driver.borrowed.append(raw)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.ordinal

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams.append(stream)
        capsule = self.array.__dlpack__()
        lent = _Managed.from_address(_pointer(capsule, FRESH)).tensor  # numpy's, moved to the GPU
        lent.device_type, lent.device_id = self.__dlpack_device__()
        return capsule


@contextmanager
def only_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """The only GPU of this machine. At the end nothing of it may be held."""
    fake = FakeDriver()
    monkeypatch.setattr(Driver, "open", staticmethod(lambda ordinal=0: fake))
    yield fake
    gc.collect()
    assert fake.held == (0, 0, 0, 0, 0)
