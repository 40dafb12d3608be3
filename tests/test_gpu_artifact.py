"""Does an artifact for GPUs run only where its code does, and is it refused when damaged?"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
from cli_calls import complaint, document, isolate, told
from fake_gpu import FakeDriver, artifact, only_gpu

from convc.errors import BadArtifactError, MissingDependencyError, TargetMismatchError
from convc.runtime import container, driver
from convc.runtime.artifact import MANIFEST, Artifact
from convc.runtime.features import runs_on
from convc.runtime.loader import load

X, Z = handmade.example()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    with only_gpu(monkeypatch) as fake:
        yield fake


RULES = [
    (("sm_80",), False, (8, 0), True), (("sm_80",), False, (8, 6), True), (("sm_80",), False, (8, 9), True),
    (("sm_80",), False, (7, 5), False), (("sm_80",), False, (9, 0), False), (("sm_86",), False, (8, 0), False),
    (("sm_80",), True, (9, 0), True), (("sm_80",), True, (12, 0), True), (("sm_80",), True, (7, 5), False),
    (("sm_90",), False, (9, 0), True), (("sm_90a",), False, (9, 0), True), (("sm_90a",), False, (9, 1), False),
    (("sm_90",), False, (9, 1), True), (("sm_90a",), True, (10, 0), False), (("sm_90",), True, (10, 0), True),
    (("sm_75", "sm_86"), True, (8, 0), False), (("sm_75", "sm_86"), True, (8, 9), True),
    (("sm_80", "sm_90a"), False, (8, 9), True), (("sm_80", "sm_90a"), False, (9, 0), True),
    (("sm_80", "sm_90a"), False, (7, 0), False), (("sm_80", "sm_90a"), True, (10, 0), True),
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
