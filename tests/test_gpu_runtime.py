"""Does the runtime execute GPU artifacts right: on any caller's arrays and stream, and within its memory?"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import handmade
import numpy as np
import pytest
from fake_gpu import FakeDriver, Tensor, artifact, only_gpu

from convc.errors import BadInputError, BudgetError, ConvcError, UsageError
from convc.ir import Array, TensorType
from convc.report.profile import profile
from convc.runtime.dlpack import borrow
from convc.runtime.gpu import MOST_GRAPHS
from convc.runtime.loader import Module, load
from convc.runtime.stream import handle_of

X, Z = handmade.example()
W, B = handmade.weights(1)


def exact(x: Array) -> Array:
    found: Array = np.maximum(x * W + B, 0)
    return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    with only_gpu(monkeypatch) as fake:
        yield fake


def test_exact_from_and_to_numpy(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    assert loaded.gpu == "Fake GPU"
    for k in range(3):
        assert np.array_equal(loaded(X + k), exact(X + k))
    inputs, outputs = loaded.golden()
    assert np.array_equal(loaded.run(inputs)["z"], outputs["z"])


def test_init_runs_once_and_only_what_runs_read_stays(gpu: FakeDriver) -> None:
    """Allocations at rest: packed, and the weights where a run reads them."""
    loaded = load(artifact())
    assert gpu.launched == ["k_pack_0", "k_pack_1"] and gpu.held[0] == 2
    assert gpu.log[-1] == f"synchronize {loaded.side.stream.value}"  # type: ignore[attr-defined]
    other = load(artifact(reads_weights=False))
    assert gpu.held[0] == 3
    assert np.array_equal(other(X), np.maximum(X * W + W, 0))
    loaded(X)
    assert gpu.launched[4:] == ["k_scale_0", "k_scale_1", "k_clip_0"] * 2


def test_a_workspace_is_arena_then_temporaries(gpu: FakeDriver) -> None:
    program = artifact().program
    assert (program.arena, program.scratch(program.run), program.scratch(program.init)) == (1664, 256, 512)
    assert program.workspace == 1792 + 256
    bound = load(artifact()).bind({"x": X})
    assert bound.workspace.scratch - bound.workspace.arena == 1792  # type: ignore[attr-defined]
    assert bound.workspace.arena % 256 == 0  # type: ignore[attr-defined]


def test_runs_one_after_the_other_share_memory_and_a_graph(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    loaded(X)
    held, captures = gpu.held, gpu.log.count("capture")
    for k in range(5):
        loaded(X + k)
    assert gpu.held == held and gpu.log.count("capture") == captures == 1
    one, two = (loaded.bind({"x": X + k}) for k in (1, 2))
    for bound in (one, two, one):
        bound.run()
    assert np.array_equal(one.outputs["z"], exact(X + 1)) and np.array_equal(two.outputs["z"], exact(X + 2))


def test_several_callers_of_one_module(gpu: FakeDriver) -> None:
    loaded = load(artifact())

    def repeat(k: int) -> bool:
        return all(np.array_equal(loaded(X + k), exact(X + k)) for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(repeat, range(4)))


def test_few_graphs_are_kept(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    for k in range(MOST_GRAPHS + 3):
        found = loaded.run({"x": Tensor(gpu, X + k)})["z"]
        assert np.array_equal(found.numpy(), exact(X + k))
    assert gpu.held[2] == MOST_GRAPHS


def test_calls_one_by_one_and_their_values(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    (first, scaled), (second, clipped) = loaded.values({"x": X})
    assert np.array_equal(scaled, X * W) and np.array_equal(clipped, Z)
    assert (first.origin, second.origin) == (("first",), ("second", "third"))
    bound = loaded.bind({"x": X})
    for index in range(2):
        bound.call(index)
    assert np.array_equal(bound.outputs["z"], Z)
    for index in (-1, 2):
        with pytest.raises(UsageError, match=f"call {index} of 2: out of range"):
            bound.call(index)


def test_arrays_of_the_host_are_read_at_each_run(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    x = X.copy()
    bound = loaded.bind({"x": x})
    x += 1
    bound.run()
    assert np.array_equal(bound.outputs["z"], exact(X + 1))
    strided = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for array in (strided, X.astype(">f4")):
        assert np.array_equal(loaded(array), Z)
    wide = np.zeros((*Z.shape[:3], 10), np.float32)
    assert loaded.run({"x": X}, {"z": wide[..., ::2]})["z"].base is wide
    assert np.array_equal(wide[..., ::2], Z) and not wide[..., 1::2].any()
    same = X.copy()
    assert loaded.run({"x": same}, {"z": same})["z"] is same and np.array_equal(same, Z)


def test_tensors_on_the_gpu_are_used_where_they_lie(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    gpu.log.clear()
    x = Tensor(gpu, X)
    found = loaded.run({"x": x})["z"]
    assert x.streams == [loaded.side.stream.value]  # type: ignore[attr-defined]
    assert not {"copy", "copy_in", "copy_out"} & set(gpu.log)
    assert np.array_equal(found.numpy(), Z)
    assert (found.shape, found.dtype, found.__dlpack_device__()) == (Z.shape, np.float32, (2, 0))
    assert found.__cuda_array_interface__ == {
        "shape": Z.shape, "typestr": "<f4", "data": (found.address, False), "version": 3, "stream": None,
    }  # fmt: skip
    taken = borrow(found, "z", 7)
    assert (taken.address, taken.type, taken.is_row_major) == (found.address, TensorType(Z.shape), True)
    again = loaded.run({"x": found})["z"]
    assert np.array_equal(again.numpy(), exact(Z))


def test_a_lent_result_outlives_us(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    taken = borrow(loaded(Tensor(gpu, X)), "z", 0)
    del loaded
    gc.collect()
    assert gpu.held[0] == 1
    assert np.array_equal(gpu.floats(taken.address, *Z.shape), Z)
    del taken


def test_results_go_into_tensors_on_the_gpu(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    z = Tensor(gpu, np.zeros_like(Z))
    for x in (X, Tensor(gpu, X)):
        z.array[...] = 0
        assert loaded.run({"x": x}, {"z": z})["z"] is z
        assert np.array_equal(z.array, Z)
    assert len(z.streams) == 2
    host = np.zeros_like(Z)
    assert loaded.run({"x": Tensor(gpu, X)}, {"z": host})["z"] is host and np.array_equal(host, Z)


@pytest.mark.parametrize("shift", [4, 16, 32])
def test_tensors_that_lie_badly_are_copied_on_the_device(shift: int, gpu: FakeDriver) -> None:
    loaded = load(artifact())
    gpu.log.clear()
    x, z = Tensor(gpu, X, shift=shift), Tensor(gpu, np.zeros_like(Z), shift=shift)
    loaded.run({"x": x}, {"z": z})
    assert np.array_equal(z.array, Z) and np.array_equal(x.array, X)
    assert gpu.log.count("copy") == 2 and not {"copy_in", "copy_out"} & set(gpu.log)


def test_an_input_that_is_the_output_is_copied(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    same = Tensor(gpu, X)
    gpu.log.clear()
    loaded.run({"x": same}, {"z": same})
    assert np.array_equal(same.array, Z) and gpu.log.count("copy") == 1


class Stream:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


class TorchStream:
    cuda_stream = 7


class CupyStream:
    ptr = 8


def test_streams_of_all_kinds() -> None:
    assert [handle_of(s) for s in (None, 0, 5, Stream(6), TorchStream(), CupyStream())] == [None, 0, 5, 6, 7, 8]
    for wrong in (-1, True, "5", 1.0):
        with pytest.raises(UsageError, match=f"a stream is a number or .* got {type(wrong).__name__}"):
            handle_of(wrong)


def test_the_callers_stream_is_not_waited_for(gpu: FakeDriver) -> None:
    loaded = load(artifact())
    stream, x, z = gpu.stream(), Tensor(gpu, X), Tensor(gpu, np.zeros_like(Z))
    gpu.log.clear()
    loaded.run({"x": x}, {"z": z}, stream=Stream(stream))
    assert not z.array.any() and not any(line.startswith("synchronize") for line in gpu.log)
    assert x.streams == z.streams == [stream]
    gpu.synchronize(stream)
    assert np.array_equal(z.array, Z)
    gpu.close(stream)


def test_the_legacy_stream_has_a_number_in_dlpack(gpu: FakeDriver) -> None:
    loaded, x = load(artifact()), Tensor(gpu, X)
    found = loaded.run({"x": x}, stream=0)["z"]
    assert x.streams == [1] and found.__cuda_array_interface__["stream"] == 1
    assert np.array_equal(found.numpy(), Z)


def test_with_arrays_of_the_host_the_callers_stream_is_waited_for(gpu: FakeDriver) -> None:
    loaded, stream = load(artifact()), gpu.stream()
    assert np.array_equal(loaded.run({"x": X}, stream=stream)["z"], Z)
    host = np.zeros_like(Z)
    loaded.run({"x": Tensor(gpu, X)}, {"z": host}, stream=stream)
    assert np.array_equal(host, Z)
    gpu.close(stream)


def test_a_workspace_in_use_is_waited_for_on_other_streams_only(gpu: FakeDriver) -> None:
    """Both runs take the same workspace; the second is asked for first."""
    loaded, one, two = load(artifact()), gpu.stream(), gpu.stream()
    early = loaded.run({"x": Tensor(gpu, X)}, stream=one)["z"]
    gpu.log.clear()
    same = loaded.run({"x": Tensor(gpu, X + 1)}, stream=one)["z"]
    assert not any(line.startswith("wait") for line in gpu.log)
    late = loaded.run({"x": Tensor(gpu, X + 2)}, stream=two)["z"]
    assert [line for line in gpu.log if line.startswith("wait")] == [f"wait {two} for {one}"]
    gpu.synchronize(two)
    found = [each.numpy() for each in (late, same, early)]
    assert all(np.array_equal(value, exact(X + k)) for value, k in zip(found, (2, 1, 0), strict=True))
    for stream in (one, two):
        gpu.close(stream)


def test_whoever_takes_a_result_waits_for_it(gpu: FakeDriver) -> None:
    loaded, ours, theirs = load(artifact()), gpu.stream(), gpu.stream()
    found = loaded.run({"x": Tensor(gpu, X)}, stream=ours)["z"]
    assert found.__cuda_array_interface__["stream"] == ours
    gpu.log.clear()
    waiting = [f"wait {stream} for {ours}" for stream in (theirs, 1)]
    for stream, waits in ((-1, []), (ours, []), (theirs, waiting[:1]), (None, waiting[1:])):
        found.__dlpack__(stream=stream)
        assert gpu.log == waits
        gpu.log.clear()
    gpu.synchronize(theirs)
    assert np.array_equal(gpu.floats(found.address, *Z.shape), Z)
    for wrong in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match="copies none"):
            found.__dlpack__(**wrong)
    for stream in (ours, theirs):
        gpu.close(stream)


def strided(gpu: FakeDriver) -> Tensor:
    tensor = Tensor(gpu, X)
    tensor.array = tensor.array.transpose(0, 1, 3, 2)
    return tensor


class Refuses(Tensor):
    def __dlpack__(self, *, stream: int | None = None) -> Any:
        raise BufferError("it requires a gradient")


MISTAKES: list[tuple[Callable[[Module, FakeDriver], Any], type[ConvcError], str]] = [
    (lambda m, g: m(strided(g)), BadInputError, "'x' is a strided tensor on the GPU; make it contiguous"),
    (lambda m, g: m(Tensor(g, X, ordinal=1)), BadInputError, "'x' lies on GPU 1, the module is loaded on GPU 0"),
    (lambda m, g: m(Tensor(g, X[0])), BadInputError, r"'x' must be float32\[2x6x5x5\], got float32\[6x5x5\]"),
    (lambda m, g: m(Tensor(g, X.astype(np.int32))), BadInputError, r"got int32\[2x6x5x5\]"),
    (lambda m, g: m(Tensor(g, X.astype(np.complex64))), BadInputError, "'x' has elements of DLPack's type 5"),
    (lambda m, g: m(Refuses(g, X)), BadInputError, "'x' of type Refuses cannot be read .* requires a gradient"),
    (lambda m, g: m(X[0]), BadInputError, r"'x' must be float32\[2x6x5x5\], got float32\[6x5x5\]"),
    (lambda m, g: m.run({"x": X}, {"z": Tensor(g, Z[0])}), BadInputError, "'z' must be"),
    (lambda m, g: m.run({"x": X}, {"z": np.broadcast_to(Z[:1], Z.shape)}), UsageError, "output 'z' is read-only"),
    (lambda m, g: m.run({"x": X, "y": X}), UsageError, r"wrong input names, unknown \['y'\]"),
    (lambda m, g: m.run({"x": X}, stream="main"), UsageError, "a stream is a number"),
]


@pytest.mark.parametrize(("mistake", "error", "text"), MISTAKES)
def test_mistakes_are_named(
    mistake: Callable[[Module, FakeDriver], Any], error: type[ConvcError], text: str, gpu: FakeDriver
) -> None:
    loaded = load(artifact())
    with pytest.raises(error, match=text):
        mistake(loaded, gpu)
    assert np.array_equal(loaded(X), Z)


def test_a_cpu_has_no_streams() -> None:
    with pytest.raises(UsageError, match="a stream is where artifacts for GPUs run"):
        load(handmade.artifact(), threads=1).run({"x": X}, stream=0)


def test_threads_mean_nothing(gpu: FakeDriver) -> None:
    loaded = load(artifact(), threads=3)
    loaded.set_threads(500)
    assert np.array_equal(loaded(X), Z)


def test_without_memory(gpu: FakeDriver) -> None:
    gpu.left = 2000
    loaded = load(artifact())
    with pytest.raises(BudgetError):
        loaded(X)
    gpu.left = 1 << 20
    assert np.array_equal(loaded(X), Z)


def test_times_are_the_devices(gpu: FakeDriver) -> None:
    """A launch takes 10 us on the fake, and 1 us more for each thread block along x."""
    bound = load(artifact()).bind({"x": X})
    assert bound.steps_us() == [26.0, 12.0] and bound.run_us() == 38.0
    found = profile(bound, gflops_peak=None, rounds=3)
    assert [row.us for row in found.rows] == [26.0, 12.0] and found.whole.median == 38.0
    assert (found.stepping, found.overhead) == (0, 0)
