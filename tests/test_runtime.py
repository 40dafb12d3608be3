"""Does the runtime execute a plan right: on any threads and pools, within its memory, with any caller's arrays?"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest

from convc.errors import BadInputError, ConvcError, UsageError
from convc.ir import Array, TensorType
from convc.runtime.artifact import LIBRARY
from convc.runtime.library import Library
from convc.runtime.loader import Module, load
from convc.runtime.memory import address, aligned_empty

PAGE = mmap.PAGESIZE


def module(*, threads: int = 1, seed: int = 1) -> Module:
    return load(handmade.artifact(seed=seed), threads=threads)


def guarded(size: int) -> tuple[Array, mmap.mmap]:
    """`size` bytes (a multiple of 64) whose end touches a page that must not be touched."""
    span = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, span + PAGE)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    code = libc.mprotect(ctypes.c_void_p(address(whole) + span), ctypes.c_size_t(PAGE), 0)
    assert code == 0, os.strerror(ctypes.get_errno())
    return whole[span - size : span], memory


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_exact_on_any_number_of_threads(threads: int) -> None:
    x, z = handmade.example()
    loaded = module(threads=threads)
    for _ in range(20):
        assert np.array_equal(loaded(x), z)


def test_thread_count_may_change_between_runs() -> None:
    x, z = handmade.example()
    loaded = module()
    for threads in (1, 4, 2, 256, 1, 3):
        loaded.set_threads(threads)
        assert np.array_equal(loaded(x), z)


def test_several_callers_of_one_module() -> None:
    loaded = module(threads=3)
    x, z = handmade.example()

    def repeat(k: int) -> bool:
        return all(np.array_equal(loaded.run({"x": x * (k + 1)})["z"], exact[k]) for _ in range(100))

    exact = [module().run({"x": x * (k + 1)})["z"] for k in range(4)]
    assert np.array_equal(exact[0], z)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(repeat, range(4)))


def test_two_modules_at_once() -> None:
    pairs = [(module(threads=2, seed=seed), *handmade.example(seed=seed)) for seed in (1, 2)]
    assert not np.array_equal(pairs[0][2], pairs[1][2])

    def repeat(pair: tuple[Module, Array, Array]) -> bool:
        return all(np.array_equal(pair[0](pair[1]), pair[2]) for _ in range(100))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(repeat, pairs))


def test_one_artifact_loaded_twice_shares_nothing() -> None:
    one, two = module(threads=1), module(threads=5)
    assert one.side.library.workspace_bytes() < two.side.library.workspace_bytes()


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def settles(count: int) -> bool:
    """This process comes to have so many threads: one that has ended is listed a moment longer."""
    end = time.monotonic() + 5
    while tasks() != count and time.monotonic() < end:
        time.sleep(0.001)
    return tasks() == count


def steady(count: Callable[[], int]) -> int:
    """`count` once what earlier tests of this process left behind is gone."""
    gc.collect()
    known, same = count(), 0
    while same < 5:
        time.sleep(0.05)
        known, same = (known, same + 1) if count() == known else (count(), 0)
    return known


def test_workers_come_late_and_leave_affinity_alone() -> None:
    x, _ = handmade.example()
    before, affinity = steady(tasks), os.sched_getaffinity(0)
    loaded = module(threads=3)
    assert tasks() == before
    loaded(x)
    assert tasks() == before + 2
    assert os.sched_getaffinity(0) == affinity
    del loaded
    gc.collect()
    assert settles(before)


def test_unloading_unmaps_the_code() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("convc")

    before = steady(mapped)
    loaded = module(threads=2)
    loaded(handmade.example()[0])
    assert mapped() > before
    del loaded
    gc.collect()
    assert mapped() == before


def test_fork_makes_threads_anew() -> None:
    code = (
        "import os, handmade, numpy as np\n"
        "from convc.runtime.loader import load\n"
        "m = load(handmade.artifact(), threads=3)\n"
        "x, z = handmade.example()\n"
        "assert np.array_equal(m(x), z)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if np.array_equal(m(x), z) and len(os.listdir('/proc/self/task')) == 3 else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert np.array_equal(m(x), z)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent, timeout=60)


def test_loading_imports_no_compiler(tmp_path: Path) -> None:
    path = tmp_path / "x.convc"
    handmade.artifact().save(path)
    code = (
        "import sys, numpy, convc\n"
        f"m = convc.load({str(path)!r})\n"
        "m.run(m.golden()[0])\n"
        "heavy = {'tvm', 'tvm_ffi', 'onnx', 'networkx', 'scipy', 'torch', 'safetensors', 'click', 'rich', 'psutil'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


TASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
POOL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, TASK, ctypes.c_void_p, ctypes.c_int)


def in_reverse(task: Callable[..., int], arg: int, num: int) -> int:
    return max([task(arg, i, num) for i in reversed(range(num))])


def on_foreign_threads(task: Callable[..., int], arg: int, num: int) -> int:
    with ThreadPoolExecutor(num) as pool:
        return max(pool.map(lambda i: task(arg, i, num), range(num)))


def set_pool(loaded: Module, pool: Any, tag: int) -> None:
    loaded.side.library.set_parallel_for(ctypes.cast(pool, ctypes.c_void_p), tag)


@pytest.mark.parametrize("strategy", [in_reverse, on_foreign_threads])
def test_callers_pool(strategy: Callable[..., int]) -> None:
    seen: list[tuple[int, int]] = []

    def pool(tag: int, task: Callable[..., int], arg: int, num: int) -> int:
        seen.append((tag, num))
        return strategy(task, arg, num)

    kept = POOL(pool)
    loaded = module(threads=3)
    x, z = handmade.example()
    set_pool(loaded, kept, 77)
    before = tasks()
    assert np.array_equal(loaded(x), z)
    assert seen == [(77, 3)]  # kernel 0 has the only parallel loop
    assert settles(before)
    set_pool(loaded, POOL(), 0)
    assert np.array_equal(loaded(x), z)
    assert len(seen) == 1


def test_callers_pool_that_fails() -> None:
    loaded = module(threads=2)
    kept = POOL(lambda *_: 3)
    set_pool(loaded, kept, 0)
    with pytest.raises(ConvcError, match="a kernel failed"):
        loaded(handmade.example()[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_stays_within_its_memory(threads: int) -> None:
    """Every buffer ends at a guard page and has a canary before it; the workspace is full of rubbish."""
    artifact = handmade.artifact()
    library = Library(artifact.entries[LIBRARY], artifact.name)
    library.set_threads(threads)
    x, z = handmade.example()
    flat = artifact.weights.tobytes()
    sizes = [len(flat), library.packed_bytes(), library.workspace_bytes(), x.nbytes, z.nbytes]
    places = [guarded(-(-size // 64) * 64) for size in sizes]
    weights, packed, workspace, given, result = (place for place, _ in places)
    for place, memory in places:
        np.frombuffer(memory, np.uint8, len(memory) - PAGE - len(place))[:] = 0xC5
        place[:] = 0xA5
    weights[: len(flat)] = np.frombuffer(flat, np.uint8)
    given[: x.nbytes] = np.frombuffer(x.tobytes(), np.uint8)
    assert library.init(address(weights), address(packed)) == 0
    pointers = [(ctypes.c_void_p * 1)(address(place)) for place in (given, result)]
    for _ in range(3):
        assert library.run(*pointers, address(packed), address(workspace)) == 0
        assert result[: z.nbytes].tobytes() == z.tobytes()
    assert (result[z.nbytes :] == 0xA5).all()
    assert given[: x.nbytes].tobytes() == x.tobytes() and weights[: len(flat)].tobytes() == flat
    for place, memory in places:
        assert (np.frombuffer(memory, np.uint8, len(memory) - PAGE - len(place)) == 0xC5).all()


def test_statuses() -> None:
    artifact = handmade.artifact()
    library = Library(artifact.entries[LIBRARY], artifact.name)
    size = max(library.packed_bytes(), library.workspace_bytes(), 4096)
    x, z, packed, workspace, weights = (aligned_empty(TensorType((size,), "uint8")) for _ in range(5))
    for place in (x, packed, weights):
        place[:] = 0
    given, result = ((ctypes.c_void_p * 1)(address(place)) for place in (x, z))
    good = (given, result, address(packed), address(workspace))
    assert library.run(*good) == 3, "run before init"
    assert library.init(address(weights) + 4, address(packed)) == 2
    assert library.init(address(weights), 0) == 2
    assert library.init(address(weights), address(packed)) == 0
    assert library.run(*good) == 0
    assert library.run(given, result, address(packed), address(workspace) + 32) == 2
    assert library.run((ctypes.c_void_p * 1)(0), result, *good[2:]) == 2
    assert library.call(-1, *good) == library.call(2, *good) == 5
    assert library.set_threads(0) == library.set_threads(257) == 5
    assert library.calls() == 2 and library.version().startswith(b"convc ")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failing_kernel_is_reported_and_leaves_no_trace(threads: int) -> None:
    loaded = module(threads=threads)
    x, z = handmade.example()
    bad = x.copy()
    bad.flat[0] = 2e30  # the handmade kernel refuses it
    for _ in range(50):
        with pytest.raises(ConvcError, match="a kernel failed"):
            loaded(bad)
        assert np.array_equal(loaded(x), z)


def test_values_of_every_call_are_row_major() -> None:
    x, z = handmade.example()
    (first, scaled), (second, clipped) = module().values({"x": x})
    w, _ = handmade.weights(1)
    assert np.array_equal(scaled, x * w) and np.array_equal(clipped, z)
    assert (first.origin, second.origin) == (("first",), ("second", "third"))
    assert second.ops == ("Binary", "Unary") and second.flops == 2 * x.size


def test_calls_one_by_one_are_a_run() -> None:
    x, z = handmade.example()
    bound = module(threads=2).bind({"x": x})
    for index in range(2):
        bound.call(index)
    assert np.array_equal(bound.outputs["z"], z)
    with pytest.raises(UsageError, match="call 2 of 2"):
        bound.call(2)


def aligned(x: Array) -> Array:
    copy = aligned_empty(TensorType(x.shape, x.dtype.name))
    copy[...] = x
    return copy


def test_good_arrays_are_read_in_place_and_others_copied() -> None:
    loaded = module()
    x, z = handmade.example()
    good = aligned(x)
    bound = loaded.bind({"x": good})
    good *= 0
    bound.run()
    assert np.array_equal(bound.outputs["z"], loaded(np.zeros_like(x)))
    off = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    off[...] = x
    strided = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for array in (off, strided, x.astype(">f4"), x.tolist()):
        value = np.asarray(array, np.float32) if isinstance(array, list) else array
        assert np.array_equal(loaded(value), z)


class Exporter:
    """What other libraries' tensors look like from here."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def test_dlpack_in_and_out() -> None:
    loaded = module()
    x, z = handmade.example()
    good = aligned(x)
    bound = loaded.bind({"x": Exporter(good)})
    good += 1
    bound.run()
    assert np.array_equal(np.from_dlpack(bound.outputs["z"]), loaded(x + 1))

    class Elsewhere(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("this tensor lies on another device")

    with pytest.raises(BadInputError, match="'x' of type Elsewhere .* another device"):
        loaded(Elsewhere(x))


def test_results_go_where_the_caller_wants() -> None:
    loaded = module()
    x, z = handmade.example()
    good = aligned(np.zeros_like(z))
    assert loaded.run({"x": x}, {"z": good})["z"] is good and np.array_equal(good, z)
    wide = np.zeros((*z.shape[:3], 10), np.float32)
    assert loaded.run({"x": x}, {"z": wide[..., ::2]})["z"].base is wide
    assert np.array_equal(wide[..., ::2], z) and not wide[..., 1::2].any()
    same = aligned(x)
    assert np.array_equal(loaded.run({"x": same}, {"z": same})["z"], z)


def test_results_are_new_aligned_arrays() -> None:
    loaded = module()
    x, z = handmade.example()
    one, two = (loaded.run({"x": each})["z"] for each in (x, x + 1))
    assert address(one) % 64 == 0 and np.array_equal(one, z) and not np.shares_memory(one, two)


X = np.zeros(handmade.SHAPE, np.float32)
MISTAKES: list[tuple[Callable[[Module], Any], type[ConvcError], str]] = [
    (lambda m: m.run({}), UsageError, r"wrong input names, missing \['x'\]; the inputs are 'x' float32\[2x6x5x5\]"),
    (lambda m: m.run({"x": X, "y": X}), UsageError, r"unknown \['y'\]"),
    (lambda m: m(), UsageError, "the model has 1 inputs .* got 0"),
    (lambda m: m(X[0]), BadInputError, r"'x' must be float32\[2x6x5x5\], got float32\[6x5x5\]"),
    (lambda m: m(X.astype(np.float64)), BadInputError, r"got float64\[2x6x5x5\]"),
    (lambda m: m([[1], [1, 2]]), BadInputError, "'x' of type list cannot be read"),
    (lambda m: m.run({"x": X}, {"y": X}), UsageError, r"wrong output names, unknown \['y'\]"),
    (lambda m: m.run({"x": X}, {"z": X[0]}), BadInputError, "'z' must be"),
    (lambda m: m.run({"x": X}, {"z": np.broadcast_to(X[:1], X.shape)}), UsageError, "output 'z' is read-only"),
    (lambda m: m.set_threads(0), UsageError, "setting 0 threads"),
]


@pytest.mark.parametrize(("mistake", "error", "text"), MISTAKES)
def test_mistakes_are_named(mistake: Callable[[Module], Any], error: type[ConvcError], text: str) -> None:
    with pytest.raises(error, match=text):
        mistake(module())


def test_thread_count_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVC_NUM_THREADS", "5")
    assert load(handmade.artifact()).threads == 5
