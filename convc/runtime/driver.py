"""The CUDA driver as the runtime needs it: memory, kernels, streams, graphs and events of one GPU.

Addresses and streams are plain numbers. Every error is a ConvcError that names the call and has the driver's words.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from convc.errors import BudgetError, ConvcError, MissingDependencyError, TargetMismatchError
from convc.gpu import STATIC_SHARED
from convc.ir import Array
from convc.launch import Three
from convc.runtime.memory import address

LIBRARY = "libcuda.so.1"
INSTALL = "pip install 'convc[cuda]'"
NON_BLOCKING = 1  # a stream that does not wait for the legacy default stream
NO_TIMING = 2
EXTERNAL = 1  # of an event in a graph: recorded at each replay
OUT_OF_MEMORY = 2
NO_CODE = (209, 218, 221, 222, 223)  # no binary for this GPU; PTX that this driver cannot translate


class Driver:
    """One GPU through its primary context, which other libraries of the process (torch, CuPy) share.

    The thread's own current context is as before after each call. Handles of modules, kernels, graphs and events are
    the driver's objects.
    """

    def __init__(self, cuda: Any, ordinal: int) -> None:
        self._cuda = cuda
        self.ordinal = ordinal
        device = self._call("cuDeviceGet", ordinal)
        name: bytes = self._call("cuDeviceGetName", 256, device)
        self.name = name.partition(b"\0")[0].decode("ascii", "replace")
        attributes = cuda.CUdevice_attribute
        self.capability: tuple[int, int] = (
            int(self._call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)),
            int(self._call("cuDeviceGetAttribute", attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)),
        )
        self._context = self._call("cuDevicePrimaryCtxRetain", device)
        weakref.finalize(self, cuda.cuDevicePrimaryCtxRelease, device).atexit = False

    @classmethod
    def open(cls, ordinal: int = 0) -> Driver:
        """The GPU of that number among those that CUDA_VISIBLE_DEVICES leaves.

        Raises TargetMismatchError without an NVIDIA driver or without that GPU, MissingDependencyError without
        cuda-bindings.
        """
        try:
            ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise TargetMismatchError(f"this machine has no NVIDIA driver ({LIBRARY} cannot be loaded)") from error
        try:
            cuda = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise MissingDependencyError(f"running on a GPU needs cuda-bindings ({error}); run `{INSTALL}`") from error
        try:
            code, *_ = cuda.cuInit(0)
            count = 0 if code else int(_checked(cuda, "cuDeviceGetCount", cuda.cuDeviceGetCount()))
        except RuntimeError as error:  # what the bindings raise where the driver lacks a function that they know
            raise TargetMismatchError(f"the NVIDIA driver of this machine cannot be used ({error})") from error
        if code:
            raise TargetMismatchError(f"the NVIDIA driver of this machine does not start: {_words(cuda, code)}")
        if not 0 <= ordinal < count:
            raise TargetMismatchError(f"this machine has no GPU number {ordinal}, of {count} that are visible")
        return cls(cuda, ordinal)

    def allocate(self, size: int) -> int:
        """`size` bytes at a multiple of 256. Raises BudgetError where the GPU has not as many left."""
        with self._current():
            code, pointer = self._cuda.cuMemAlloc(max(size, 1))
        if code == OUT_OF_MEMORY:
            raise BudgetError(f"{self.name} has no {size} bytes of memory left")
        return int(_checked(self._cuda, "cuMemAlloc", (code, pointer)))

    def free(self, pointer: int) -> None:
        """Waits for all that may still use the memory."""
        self._enter("cuMemFree", pointer)

    def copy_in(self, to: int, data: Array, stream: int) -> None:
        """From a row-major array, which may be changed afterwards."""
        if data.nbytes:
            self._enter("cuMemcpyHtoDAsync", to, address(data), data.nbytes, stream)

    def copy_out(self, to: Array, source: int, stream: int) -> None:
        """To a row-major array, which has the values once the stream is synchronized."""
        if to.nbytes:
            self._enter("cuMemcpyDtoHAsync", address(to), source, to.nbytes, stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """On the device."""
        if size:
            self._enter("cuMemcpyDtoDAsync", to, source, size, stream)

    def load(self, image: bytes) -> Any:
        """A module of a fat binary. Raises TargetMismatchError where it holds no code that runs here."""
        with self._current():
            code, module = self._cuda.cuModuleLoadData(image)
        if code in NO_CODE:
            raise TargetMismatchError(f"the NVIDIA driver finds no code in it that runs: {_words(self._cuda, code)}")
        return _checked(self._cuda, "cuModuleLoadData", (code, module))

    def unload(self, module: Any) -> None:
        """Waits for all kernels, which may be its own."""
        self._enter("cuCtxSynchronize")
        self._enter("cuModuleUnload", module)

    def function(self, module: Any, name: str, shared: int) -> Any:
        """The kernel of that name, ready for `shared` bytes of dynamic shared memory.

        Raises TargetMismatchError where the GPU has not as many for a thread block: code runs on GPUs that have less
        than the one that it was made for.
        """
        found = self._enter("cuModuleGetFunction", module, name.encode())
        if shared > STATIC_SHARED:
            attribute = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            try:
                self._enter("cuFuncSetAttribute", found, attribute, shared)
            except ConvcError as error:
                raise TargetMismatchError(
                    f"a thread block of kernel {name} needs {shared} bytes of shared memory, which this GPU, "
                    f"{self.name}, does not grant ({error})"
                ) from error
        return found

    def launch(
        self, function: Any, grid: Three, block: Three, shared: int, args: Sequence[int], stream: int
    ) -> None:
        """Enqueue a kernel whose parameters are pointers, `args` device addresses."""
        values = (ctypes.c_void_p * len(args))(*args)
        places = [ctypes.addressof(values) + i * ctypes.sizeof(ctypes.c_void_p) for i in range(len(args))]
        parameters = (ctypes.c_void_p * max(1, len(args)))(*places)
        self._enter("cuLaunchKernel", function, *grid, *block, shared, stream, ctypes.addressof(parameters), 0)

    def stream(self) -> int:
        """A new stream, ordered with no other."""
        return int(self._enter("cuStreamCreate", NON_BLOCKING))

    def close(self, stream: int) -> None:
        """Destroy a stream that `stream` made, once it has done its work."""
        self._enter("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has done all its work. Errors of kernels show here."""
        self._enter("cuStreamSynchronize", stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """What `enqueue` puts on the stream, as a graph to be replayed; nothing of it runs yet."""
        # Relaxed: the garbage collector may free memory of this thread's earlier runs meanwhile.
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        with self._current():
            self._call("cuStreamBeginCapture", stream, mode)
            try:
                enqueue()
            except BaseException:
                _, graph = self._cuda.cuStreamEndCapture(stream)
                if graph is not None and int(graph):
                    self._cuda.cuGraphDestroy(graph)
                raise
            graph = self._call("cuStreamEndCapture", stream)
            try:
                return self._call("cuGraphInstantiate", graph, 0)
            finally:
                self._cuda.cuGraphDestroy(graph)

    def replay(self, graph: Any, stream: int) -> None:
        self._enter("cuGraphLaunch", graph, stream)

    def forget(self, graph: Any) -> None:
        """Destroy a graph, once it has ended where it is being replayed."""
        self._enter("cuGraphExecDestroy", graph)

    def event(self, *, timed: bool = False) -> Any:
        """A mark in a stream; `timed` for `elapsed`."""
        return self._enter("cuEventCreate", 0 if timed else NO_TIMING)

    def record(self, event: Any, stream: int, *, in_graph: bool = False) -> None:
        """Put the mark behind all work of the stream; `in_graph` while capturing, to put it there at each replay."""
        if in_graph:
            self._enter("cuEventRecordWithFlags", event, stream, EXTERNAL)
        else:
            self._enter("cuEventRecord", event, stream)

    def wait(self, stream: int, event: Any) -> None:
        """What is put on the stream from now on waits for the mark; this thread does not."""
        self._enter("cuStreamWaitEvent", stream, event, 0)

    def elapsed(self, start: Any, stop: Any) -> float:
        """us between two timed marks, once both are passed."""
        self._enter("cuEventSynchronize", stop)
        return float(self._enter("cuEventElapsedTime", start, stop)) * 1e3

    def drop(self, event: Any) -> None:
        """Destroy a mark."""
        self._enter("cuEventDestroy", event)

    def _enter(self, name: str, *args: Any) -> Any:
        with self._current():
            return self._call(name, *args)

    def _call(self, name: str, *args: Any) -> Any:
        return _checked(self._cuda, name, getattr(self._cuda, name)(*args))

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """The GPU's context is the thread's current one."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._cuda.cuCtxPopCurrent()


def _checked(cuda: Any, name: str, answer: tuple[Any, ...]) -> Any:
    """What a call answered. Raises ConvcError for a code other than 0."""
    code, *found = answer
    if code:
        raise ConvcError(f"the CUDA driver's {name} failed: {_words(cuda, code)}")
    return found[0] if found else None


def _words(cuda: Any, code: Any) -> str:
    _, text = cuda.cuGetErrorString(code)
    _, name = cuda.cuGetErrorName(code)
    return ": ".join(part.decode("ascii", "replace") for part in (name, text) if part) or f"code {int(code)}"
