"""Generic kernels as functions of this process: groups of nodes compiled, run in guarded memory, and referenced."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convc.ir import Const, Input, Node, TensorType
from convc.layout import PLAIN, Layout
from convc.plan.plan import Group, Kernel
from convc.target import Target, parse_target

# Workspace from the heap; parallel loops as `tasks` calls, the last first, so that no order between them is relied on.
SETUP = r"""
#include <stdint.h>
#include <stdlib.h>
typedef struct { void* sync; int32_t tasks; } Env;
typedef int (*Task)(int, Env*, void*);
extern __attribute__((weak)) void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern __attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void*);
extern __attribute__((weak)) int (*__TVMBackendParallelLaunch)(Task, void*, int);
int tasks = 1;
static void* take(int a, int b, uint64_t n, int c, int d) { return aligned_alloc(64, (n + 63) / 64 * 64); }
static int give(int a, int b, void* p) { free(p); return 0; }
static int launch(Task f, void* closure, int n) {
  Env env = {0, tasks};
  for (int i = tasks - 1; i >= 0; i--) f(i, &env, closure);
  return 0;
}
void setup(int count) {
  tasks = count;
  if (&__TVMBackendAllocWorkspace) { __TVMBackendAllocWorkspace = take; __TVMBackendFreeWorkspace = give; }
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;
}
"""
PAGE = mmap.PAGESIZE


@functools.cache
def native() -> Target:
    return parse_target("native")


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    (folder / "setup.c").write_text(SETUP)
    subprocess.run(["cc", "-c", "-O1", "-fPIC", "-w", "setup.c"], cwd=folder, check=True)
    return folder


class Memory:
    """An array that ends (rounded up to 64 bytes) where the next page may not be touched, poisoned with 0xFF."""

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        rounded = -(-max(size, 1) // 64) * 64
        pages = -(-rounded // PAGE)
        self.map = mmap.mmap(-1, (pages + 1) * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(base + pages * PAGE), PAGE, 0) == 0
        begin = pages * PAGE - rounded
        self.slack = np.frombuffer(self.map, np.uint8, rounded - size, begin + size)
        bytes_ = np.frombuffer(self.map, np.uint8, size, begin)
        bytes_[:] = 0xFF
        self.slack[:] = 0xA5
        self.array = bytes_.view(dtype).reshape(shape)

    @property
    def pointer(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.array.ctypes.data)


def laid_out(x: np.ndarray, layout: Layout) -> Memory:
    """x in memory as `layout` has it; what lies in padded lanes is NaN, or all bits."""
    memory = Memory(layout.physical(x.shape), x.dtype.name)
    if layout.block == 1:
        memory.array[...] = x
    else:
        for c in range(x.shape[1]):
            memory.array[:, c // layout.block, ..., c % layout.block] = x[:, c]
    return memory


def read_back(y: np.ndarray, shape: Sequence[int], layout: Layout) -> np.ndarray:
    if layout.block == 1:
        return y.copy()
    channels = [y[:, c // layout.block, ..., c % layout.block] for c in range(shape[1])]
    return np.stack(channels, axis=1)


def kernel_of(nodes: Sequence[Node], reads: Sequence[Node], layouts: Sequence[Layout], result: Layout) -> Kernel:
    return Kernel(Group(tuple(nodes), tuple(reads)), tuple(layouts), result)


def compiled(schedule: object, target: Target | None = None, *, tasks: int = 1) -> ctypes._CFuncPtr:
    from convc.lower.build import build_object

    data, _ = build_object(schedule, "kernel", target or native())
    folder = Path(tempfile.mkdtemp(dir=_folder()))
    (folder / "kernel.o").write_bytes(data)
    subprocess.run(["cc", "-shared", "-o", "kernel.so", "../setup.o", "kernel.o", "-lm"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "kernel.so"))
    library.setup(tasks)
    return library.kernel


def call(
    schedule: object,
    inputs: Sequence[Memory],
    type_: TensorType,
    layout: Layout,
    *,
    tasks: int = 1,
    target: Target | None = None,
) -> np.ndarray:
    """The physical result of a scheduled function."""
    out = Memory(layout.physical(type_.shape), type_.dtype)
    assert compiled(schedule, target, tasks=tasks)(*(m.pointer for m in inputs), out.pointer) == 0
    assert (out.slack == 0xA5).all(), "the kernel wrote past the end of its result"
    return out.array


def run(
    nodes: Sequence[Node],
    values: dict[Node, np.ndarray],
    layouts: Sequence[Layout] | None = None,
    result: Layout = PLAIN,
    *,
    tasks: int = 1,
    target: Target | None = None,
) -> np.ndarray:
    """What the group `nodes` makes of `values`, which are its reads in order."""
    from convc.lower.generic import generic

    reads, last = tuple(values), nodes[-1] if nodes else next(iter(values))
    given = layouts or [PLAIN] * len(reads)
    kernel = kernel_of(nodes, reads, given, result)
    inputs = [laid_out(v, layout) for v, layout in zip(values.values(), given, strict=True)]
    schedule = generic(kernel, target or native())
    return read_back(call(schedule, inputs, last.type, result, tasks=tasks, target=target), last.shape, result)


def reference(nodes: Sequence[Node], values: dict[Node, np.ndarray]) -> np.ndarray:
    """The nodes' own references, float32 arguments as float64."""
    known = {n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in values.items()}
    for node in nodes:
        args = [known[a] if a in known else wide(a) for a in node.args]
        known[node] = node.reference(*args)
    return known[nodes[-1]]


def wide(node: Node) -> np.ndarray:
    assert isinstance(node, Const)
    return node.value.astype(np.float64) if node.value.dtype == np.float32 else node.value


def assert_close(y: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Exactly, or within `tolerance` of the largest magnitude."""
    assert y.shape == expected.shape
    if not tolerance:
        np.testing.assert_array_equal(y, expected.astype(y.dtype))
        return
    scale = float(np.max(np.abs(expected[np.isfinite(expected)]), initial=1e-30))
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * scale)


def check(
    nodes: Sequence[Node],
    values: dict[Node, np.ndarray],
    layouts: Sequence[Layout] | None = None,
    result: Layout = PLAIN,
    *,
    tolerance: float = 0.0,
    tasks: int = 1,
) -> None:
    """The compiled group agrees with the reference, as `assert_close` has it."""
    assert_close(run(nodes, values, layouts, result, tasks=tasks), reference(nodes, values), tolerance)


def placeholder(*shape: int, dtype: str = "float32") -> Input:
    return Input("x", TensorType(shape, dtype))


def whole(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    """Whole numbers, so that sums are exact in every order."""
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.integers(0 if dtype.startswith("u") else -9, 10, shape).astype(dtype)
