"""Does the runtime execute GPU artifacts right: on any caller's arrays and stream, within its memory, and only where
the code runs?"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
from cli_calls import complaint, document, isolate, told
from fake_gpu import FakeDriver, Tensor, artifact

from convc.errors import (
    BadArtifactError,
    BadInputError,
    BudgetError,
    ConvcError,
    MissingDependencyError,
    TargetMismatchError,
    UsageError,
)
from convc.ir import Array, TensorType
from convc.report.profile import profile
from convc.runtime import container, driver
from convc.runtime.artifact import MANIFEST, Artifact
from convc.runtime.dlpack import borrow
from convc.runtime.driver import Driver
from convc.runtime.features import runs_on
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
    """The only GPU of this machine. At the end nothing of it may be held."""
    fake = FakeDriver()
    monkeypatch.setattr(Driver, "open", staticmethod(lambda ordinal=0: fake))
    yield fake
    gc.collect()
    assert fake.held == (0, 0, 0, 0, 0)


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


RULES = [
    (("sm_80",), False, (8, 0), True), (("sm_80",), False, (8, 6), True), (("sm_80",), False, (8, 9), True),
    (("sm_80",), False, (7, 5), False), (("sm_80",), False, (9, 0), False), (("sm_86",), False, (8, 0), False),
    (("sm_80",), True, (9, 0), True), (("sm_80",), True, (12, 0), True), (("sm_80",), True, (7, 5), False),
    (("sm_90",), False, (9, 0), True), (("sm_90a",), False, (9, 0), True), (("sm_90a",), False, (9, 1), False),
    (("sm_90",), False, (9, 1), True), (("sm_90a",), True, (10, 0), False), (("sm_90",), True, (10, 0), True),
    (("sm_75", "sm_86"), True, (8, 0), False), (("sm_75", "sm_86"), True, (8, 9), True),
    (("sm_80", "sm_90a"), False, (8, 9), True), (("sm_80", "sm_90a"), False, (9, 0), True),
    (("sm_80", "sm_90a"), False, (7, 0), False), (("sm_80", "sm_90a"), True, (10, 0), False),
]  # fmt: skip


@pytest.mark.parametrize(("archs", "ptx", "found", "runs"), RULES)
def test_which_gpus_run_which_code(archs: tuple[str, ...], ptx: bool, found: tuple[int, int], runs: bool) -> None:
    assert runs_on(archs, ptx, found) is runs


def test_another_gpu_is_refused_before_anything_is_loaded(gpu: FakeDriver) -> None:
    gpu.capability = (7, 5)
    with pytest.raises(TargetMismatchError) as caught:
        load(artifact())
    assert str(caught.value) == (
        "the artifact was built for cuda/sm_80,sm_90a and needs a GPU of compute capability 8.0 to 8.9 or 9.0; "
        "this one, Fake GPU, has 7.5. Compile it with `--target cuda/sm_75`, or with +ptx for GPUs later than all it "
        "names"
    )
    assert gpu.log == []


def test_code_that_the_driver_does_not_take(gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_nothing(self: FakeDriver, image: bytes) -> int:
        raise TargetMismatchError("the NVIDIA driver finds no code in it that runs: NO_BINARY")

    monkeypatch.setattr(FakeDriver, "load", load_nothing)
    with pytest.raises(TargetMismatchError, match=r"built for cuda/sm_80,sm_90a .* NO_BINARY.* update the NV"):
        load(artifact())


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libcuda.so.absent")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(tmp_path, monkeypatch)
    path = tmp_path / "net.convc"
    artifact().save(path)
    return path


@pytest.mark.parametrize(
    "argv", ["run {} --fill random", "bench {}", "bench {} --threads 2", "profile {}", "verify {} --model no.onnx"]
)
def test_without_a_gpu_verbs_end_with_6(
    argv: str, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(monkeypatch)
    assert complaint(capsys, *argv.format(file).split(), code=6) == (
        "convc: the artifact was built for cuda/sm_80,sm_90a and needs a GPU of compute capability 8.0 to 8.9 or 9.0; "
        "this machine has no NVIDIA driver (libcuda.so.absent cannot be loaded). Run it on a machine with such a GPU, "
        "or compile it with `--target native` for this machine's CPU"
    )


def test_without_the_bindings_verbs_end_with_5(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libc.so.6")  # a machine with an NVIDIA driver
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    message = complaint(capsys, "run", file, "--fill", "zeros", code=5)
    assert "needs cuda-bindings" in message and message.endswith("run `pip install 'convc[cuda]'`")
    with pytest.raises(MissingDependencyError):
        load(file)


def test_verbs_on_a_gpu(file: Path, gpu: FakeDriver, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "run", file, "--fill", "random")
    assert found["gpu"] == "Fake GPU" and found["outputs"][0]["type"] == "float32[2x6x5x5]"
    found = document(capsys, "bench", file, "--rounds", 3)
    assert found["gpu"] == "Fake GPU" and found["results"][0]["us"] == 38.0
    found = document(capsys, "profile", file, "--rounds", 3)
    assert [call["us"] for call in found["calls"]] == [26.0, 12.0] and found["peak"] is None
    assert "Fake GPU" in told(capsys, "profile", file, "--rounds", 1)


def test_inspect_needs_no_gpu(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(monkeypatch)
    text = told(capsys, "inspect", file, "--extract", tmp_path / "out")
    assert "needs       a GPU that runs sm_80 or sm_90a\n" in text
    assert "memory      weights 88 B, packed 88 B, arena 1.6 KiB, and 256 B\n" in text
    assert re.search(r"^k_scale_1 +1 +5x1x1 +64x2x1 +64\.0 KiB +40 42 +0 8$", text, re.MULTILINE)
    assert (tmp_path / "out/kernels/k_scale.fatbin").read_bytes() == b"k_scale"
    manifest = document(capsys, "inspect", file)["manifest"]
    assert manifest["target"]["archs"] == ["sm_80", "sm_90a"] and manifest["target"]["ptx"] is False
    assert manifest["golden"]["source"] == "reference"
    assert manifest["kernels"]["k_pack"]["launches"][0]["args"] == [{"param": 0}, {"scratch": 256}]
    assert manifest["kernels"]["k_clip"]["launches"][0]["usage"][1]["spill_stores"] == 4


def test_round_trip_through_a_file(file: Path, gpu: FakeDriver) -> None:
    opened = Artifact.open(file)
    assert opened.to_bytes() == file.read_bytes() == artifact.__wrapped__().to_bytes()
    assert opened.kind == "cuda" and np.array_equal(load(opened)(X), Z)


def test_loading_imports_no_compiler(file: Path) -> None:
    tests = Path(__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(tests)!r})\n"
        "import convc\n"
        "from convc.runtime import driver\n"
        "from convc.errors import TargetMismatchError\n"
        "import convc.runtime.gpu_run\n"
        "driver.LIBRARY = 'libcuda.so.absent'\n"
        "try:\n"
        f"    convc.load({str(file)!r})\n"
        "except TargetMismatchError:\n"
        "    pass\n"
        "heavy = {'tvm', 'tvm_ffi', 'onnx', 'networkx', 'scipy', 'torch', 'safetensors', 'click', 'rich', 'psutil'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def manifest_with(change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    made = {name: bytes(data) for name, data in artifact().entries.items()}
    manifest = json.loads(made[MANIFEST])
    change(manifest)
    return {**made, MANIFEST: json.dumps(manifest).encode()}


def launch(manifest: dict[str, Any], **changes: Any) -> None:
    manifest["kernels"]["k_scale"]["launches"][1].update(changes)


def place(manifest: dict[str, Any], index: int, **changes: Any) -> None:
    manifest["calls"][0]["args"][index].update(changes)


def without(name: str) -> dict[str, bytes]:
    made = manifest_with(lambda m: m["entries"].pop(name))
    return {key: data for key, data in made.items() if key != name}


DAMAGED: list[tuple[dict[str, bytes], str]] = [
    ({**manifest_with(lambda m: None), "kernels/k_clip.fatbin": b"k_clop"}, "'kernels/k_clip.fatbin' has not the hash"),
    (without("kernels/k_clip.fatbin"), "lacks kernels/k_clip.fatbin"),
    (manifest_with(lambda m: m["kernels"].pop("k_clip")), "'k_clip'"),
    (manifest_with(lambda m: m.pop("kernels")), "'kernels'"),
    (manifest_with(lambda m: launch(m, grid=[0, 1, 1])), "the extents (0, 1, 1) of k_scale_1"),
    (manifest_with(lambda m: launch(m, grid=[1, 65536, 1])), "the extents (1, 65536, 1)"),
    (manifest_with(lambda m: launch(m, grid=[1, 1])), "misstates"),
    (manifest_with(lambda m: launch(m, block=[-32, 1, 1])), "the extents (-32, 1, 1)"),
    (manifest_with(lambda m: launch(m, block=[1024, 2, 1])), "the threads of k_scale_1, 2048"),
    (manifest_with(lambda m: launch(m, shared=1 << 20)), "the shared memory of k_scale_1"),
    (manifest_with(lambda m: launch(m, shared=-1)), "the shared memory of k_scale_1"),
    (manifest_with(lambda m: launch(m, args=[{"param": 3}])), "the argument 3 of k_scale_1"),
    (manifest_with(lambda m: launch(m, args=[{"param": -1}])), "the argument -1 of k_scale_1"),
    (manifest_with(lambda m: launch(m, args=[{"scratch": 256}])), "the argument Temporary(offset=256)"),
    (manifest_with(lambda m: launch(m, args=[{"scratch": 8}])), "the argument Temporary(offset=8)"),
    (manifest_with(lambda m: launch(m, args=[{"arena": 0}])), "'param'"),
    (manifest_with(lambda m: launch(m, kernel="no name")), "a kernel, 'no name'"),
    (manifest_with(lambda m: launch(m, usage=[{"arch": "sm_80"}])), "'registers'"),
    (manifest_with(lambda m: m["kernels"]["k_scale"].update(scratch=-64)), "bytes of scratch, -64"),
    (manifest_with(lambda m: m["calls"][0].update(symbol="../k")), "a symbol, '../k'"),
    (manifest_with(lambda m: m["calls"][1].update(symbol="k_other")), "'k_other'"),
    (manifest_with(lambda m: m["calls"][0]["args"].pop()), "the argument 2 of k_scale_1"),
    (manifest_with(lambda m: m["calls"][1].update(symbol="k_scale", args=[])), "the number of arguments of k_scale"),
    (manifest_with(lambda m: place(m, 0, at=1)), "the place 1 in input, which has 1"),
    (manifest_with(lambda m: place(m, 1, at=128)), "the place 128 in packed, which has 88"),
    (manifest_with(lambda m: place(m, 1, at=8)), "the place 8 in packed"),
    (manifest_with(lambda m: place(m, 1, at=-64)), "a place in memory, -64"),
    (manifest_with(lambda m: place(m, 1, at=64.0)), "a place in memory, 64.0"),
    (manifest_with(lambda m: place(m, 2, space="stack")), "'stack'"),
    (manifest_with(lambda m: m["memory"].update(arena=1536)), "the place of the result of call 0"),
    (manifest_with(lambda m: m["memory"].update(weights=1 << 20)), "the bytes of the weights"),
    (manifest_with(lambda m: m["target"].update(archs=[])), "the architectures"),
    (manifest_with(lambda m: m["target"].update(archs=["znver3"])), "the architectures, 'znver3'"),
    (manifest_with(lambda m: m["target"].update(ptx=1)), "the architectures"),
]


@pytest.mark.parametrize(("made", "text"), DAMAGED)
def test_damage_is_named_before_the_gpu_is_asked(
    made: dict[str, bytes], text: str, tmp_path: Path, gpu: FakeDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.convc"
    path.write_bytes(container.pack(made))
    with pytest.raises(BadArtifactError, match=re.escape(text)):
        load(path)
    assert gpu.log == []
    assert "build it again" in complaint(capsys, "run", path, "--fill", "zeros", code=12)
