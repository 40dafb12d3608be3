"""What do people meet of GPUs where there is none: targets, and each verb that takes one?"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pytest
from cli_calls import complaint, document, isolate, network, told
from cuda_shim import needs_shim, on_shim

from convc.algorithm import algorithms
from convc.errors import ConvcError, MissingDependencyError, UsageError
from convc.gpu import ARCHS
from convc.lower import gpu_compiler
from convc.plan.offers import explain_problem
from convc.problem import Problem
from convc.runtime import driver
from convc.target import GpuTarget, parse_target

PROBLEM = "mb1_ic64ih28_oc64oh28_kh3ph1"
T = ("--target", "cuda/sm_80")


@pytest.fixture(autouse=True)
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr(driver, "LIBRARY", "libcuda.so.absent")


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    return path


TEXTS = {
    "cuda/sm_80": (("sm_80",), False, False, "cuda/sm_80"),
    "cuda/sm_90a": (("sm_90a",), False, False, "cuda/sm_90a"),
    "cuda/sm_80,sm_75,sm_80": (("sm_75", "sm_80"), False, False, "cuda/sm_75,sm_80"),
    "cuda/sm_90a,sm_90,sm_86": (("sm_86", "sm_90", "sm_90a"), False, False, "cuda/sm_86,sm_90,sm_90a"),
    "cuda/sm_80+ptx": (("sm_80",), True, False, "cuda/sm_80+ptx"),
    "cuda/sm_80+ptx,sm_90a": (("sm_80", "sm_90a"), True, False, "cuda/sm_80,sm_90a+ptx"),
    "cuda/sm_89,tf32=1": (("sm_89",), False, True, "cuda/sm_89,tf32=1"),
    "cuda/sm_89,tf32=0": (("sm_89",), False, False, "cuda/sm_89"),
    "cuda/sm_90+ptx,tf32=1,sm_80": (("sm_80", "sm_90"), True, True, "cuda/sm_80,sm_90+ptx,tf32=1"),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_architectures_in_any_order(text: str) -> None:
    archs, ptx, tf32, written = TEXTS[text]
    found = parse_target(text)
    assert isinstance(found, GpuTarget)
    assert (found.archs, found.ptx, found.tf32, str(found), found.threads) == (archs, ptx, tf32, written, 1)
    assert parse_target(str(found)) == found == parse_target(text, threads=1)


def test_what_all_named_architectures_have_is_counted_on() -> None:
    fat, old = parse_target("cuda/sm_90a,sm_75"), parse_target("cuda/sm_75")
    assert isinstance(fat, GpuTarget) and isinstance(old, GpuTarget)
    assert (fat.l1, fat.capability, fat.gpu) == (64 << 10, (7, 5), old.gpu)
    assert dataclasses.replace(fat, arch=old.arch, archs=old.archs) == old


KNOWN = f"{', '.join(ARCHS[:-1])} and {ARCHS[-1]}"
WRONG = {
    "cuda/sm80": "convc knows no GPU architecture 'sm80'; did you mean sm_80, ",
    "cuda/sm_80,sm90a": "convc knows no GPU architecture 'sm90a'; did you mean sm_90a, ",
    "cuda/sm_80,sm_70": f"convc knows no GPU architecture 'sm_70'; it knows {KNOWN}, and GPUs later than these run",
    "cuda/sm_120a": f"it knows {KNOWN}, and GPUs later than these run what is compiled for cuda/sm_90+ptx",
    "cuda/hopper": f"convc knows no GPU architecture 'hopper'; it knows {KNOWN}",
    "cuda/sm_80,": "convc knows no GPU architecture ''",
    "cuda/sm_80+ptx+ptx": "convc knows no GPU architecture 'sm_80+ptx'",
    "cuda/sm_80,threads=4": "'threads=4' is no setting of a GPU; tf32=1 is the only one",
    "cuda/sm_80,tf32=2": "'tf32=2' is no setting of a GPU; tf32=1 is the only one",
    "cuda,sm_80": "architectures are written cuda/sm_80",
    "cuda/sm_90a+ptx": "no later GPU takes the PTX of sm_90a; write cuda/sm_90,sm_90a+ptx",
    "cuda": "means the GPU of this machine, and there is none to be seen (this machine has no NVIDIA driver "
            "(libcuda.so.absent cannot be loaded)); name the architecture, as cuda/sm_80 or cuda/sm_90a",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_target_is_told_with_what_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = complaint(capsys, "explain", PROBLEM, "--target", text, code=2)
    assert message.startswith(f"convc: target '{text}'") and WRONG[text] in message


def test_a_bare_cuda_is_the_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {(7, 5): "sm_75", (8, 0): "sm_80", (8, 7): "sm_87", (8, 8): "sm_87", (9, 0): "sm_90a"}
    for capability, arch in seen.items():
        with mock.patch.object(driver.Driver, "open", lambda c=capability: mock.Mock(capability=c)):
            assert str(parse_target("cuda")) == f"cuda/{arch}" and str(parse_target("cuda,tf32=1")).endswith("tf32=1")
    later = mock.Mock(capability=(12, 0))
    with (
        mock.patch.object(driver.Driver, "open", lambda: later),
        pytest.raises(UsageError, match=r"GPU is sm_120, and convc knows sm_75.*compiled for cuda/sm_90\+ptx"),
    ):
        parse_target("cuda")


@pytest.mark.parametrize("verb", ["compile {} -o x.convc", "check {}", "explain {}", "tune {}"])
def test_threads_are_not_for_gpus(verb: str, onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = complaint(capsys, *verb.format(onnx_file).split(), *T, "--threads", 4, code=2)
    assert message == (
        "convc: target 'cuda/sm_80': a GPU runs on all of its threads; leave --threads out"
    )


def test_targets_lists_gpus_with_their_compiler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {row["target"]: row for row in document(capsys, "targets")["targets"]}
    assert [name for name in rows if name.startswith("cuda")] == [f"cuda/{arch}" for arch in ARCHS]
    for row in rows.values():
        assert row["note"] and row["kind"] == row["target"].partition("/")[0].replace("native", "cpu")
        assert row["c_compiler"] == (row["compiler"] if row["kind"] == "cpu" else None)
    assert rows["cuda/sm_80"] | {"compiler": 0} == {
        "target": "cuda/sm_80", "arch": "sm_80", "lanes": 4, "runs_here": False, "kind": "cuda", "compiler": 0,
        "c_compiler": None, "note": "A100",
    }  # fmt: skip
    monkeypatch.setattr(gpu_compiler, "COMPILERS", ())
    text = told(capsys, "targets")
    assert re.search(r"^target +lanes +runs here +compiler +machine$", text, re.MULTILINE)
    assert re.search(r"^cuda/sm_90a +missing +H100, ", text, re.MULTILINE)
    with mock.patch.object(driver.Driver, "open", lambda: mock.Mock(capability=(8, 9))):
        runs = {row["target"] for row in document(capsys, "targets")["targets"] if row["runs_here"]}
    assert {name for name in runs if name.startswith("cuda")} == {f"cuda/sm_{n}" for n in (80, 86, 87, 89)}


def test_listing_targets_does_not_load_the_compiler_of_cpus() -> None:
    code = "import sys; from convc.cli import main; main(['targets']); assert 'tvm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def doctor(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found = document(capsys, "doctor")
    assert found["passed"]
    return {check["name"]: (check["state"], check["found"], check["advice"]) for check in found["checks"]}


def rows_of(**reasons: str | None) -> tuple[gpu_compiler.GpuCompiler, ...]:
    """The compilers, as doctor would find them: absent for a reason, or making a kernel."""
    return tuple(
        dataclasses.replace(
            compiler, missing=lambda why=reasons[compiler.name]: why, version=lambda: "1.2",
            compile_source=lambda text, target: (text.encode(), {}),
        )
        for compiler in gpu_compiler.COMPILERS
    )  # fmt: skip


def test_a_machine_without_anything_for_gpus_is_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_compiler, "COMPILERS", rows_of(nvcc="nvcc is not on PATH", NVRTC="no library"))
    monkeypatch.setattr("convc.report.doctor.package_version", lambda name: None)
    monkeypatch.setattr("convc.report.doctor.pinned_packages", lambda: [])
    found = doctor(capsys)
    only = "needed for cuda/... targets only"
    assert found["nvcc"] == ("note", "absent: nvcc is not on PATH", f"{only}: `pip install nvidia-cuda-nvcc`")
    assert found["NVRTC"] == ("note", "absent: no library", f"{only}: `pip install nvidia-cuda-nvrtc cuda-bindings`")
    assert found["cuda-bindings"] == ("note", "absent", "needed to run on GPUs only: `pip install 'convc[cuda]'`")
    state, text, advice = found["GPU"]
    assert (state, text) == ("note", "absent: this machine has no NVIDIA driver (libcuda.so.absent cannot be loaded)")
    assert advice == "needed to run on GPUs only; compiling for them needs none"


def test_doctor_tells_what_is_here_for_gpus(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc, nvrtc = rows_of(nvcc=None, NVRTC="no library")
    monkeypatch.setattr(gpu_compiler, "COMPILERS", (nvcc, nvrtc))
    here = mock.Mock(capability=(9, 0))
    here.name = "NVIDIA H100"
    with mock.patch.object(driver.Driver, "open", lambda: here):
        found = doctor(capsys)
    assert found["nvcc"] == ("ok", "1.2, compiles", "")
    assert found["NVRTC"] == ("note", "absent: no library", "not needed beside nvcc")
    assert found["GPU"] == ("ok", "NVIDIA H100, compute capability 9.0", "")

    def refuses(text: str, target: GpuTarget) -> Any:
        raise ConvcError("nvcc refuses a kernel for cuda/sm_80: nvcc fatal: too old\nUnsupported gpu architecture")

    def no_bindings() -> Any:
        raise MissingDependencyError("running on a GPU needs cuda-bindings")

    monkeypatch.setattr(gpu_compiler, "COMPILERS", (dataclasses.replace(nvcc, compile_source=refuses), nvrtc))
    with mock.patch.object(driver.Driver, "open", no_bindings):
        found = doctor(capsys)
    assert found["nvcc"] == ("note", "Unsupported gpu architecture", "needed for cuda/... targets only")
    assert found["GPU"][0] == "note" and found["GPU"][2] == "`pip install 'convc[cuda]'`"


REFUSAL = (
    "convc: cuda/sm_80: this version of convc tunes CPUs only; for GPUs `convc compile` takes what its model of the "
    "GPU ranks first, and `convc explain` shows that ranking"
)


@pytest.mark.parametrize("more", ["", "--export jobs.zip", "--rpc-tracker host:9190 --rpc-key k"])
def test_tune_refuses_gpus_at_once(more: str, onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "tune", onnx_file, *T, *more.split(), code=4) == REFUSAL
    assert complaint(capsys, "tune", PROBLEM, *T, *more.split(), code=4) == REFUSAL
    assert not Path("jobs.zip").exists()


def test_bench_refuses_a_gpu_that_is_not_here_before_it_compiles(
    onnx_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convc.pipeline.compile", mock.Mock(side_effect=AssertionError))
    for subject in (PROBLEM, onnx_file):
        for threads in (1, 2):  # of the runtimes beside it
            message = complaint(capsys, "bench", subject, *T, "--threads", threads, code=6)
            assert "needs a GPU of compute capability 8.0 to 8.9; this machine has no NVIDIA driver" in message


def test_require_tuned_sends_nobody_to_tune_a_gpu(onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = complaint(capsys, "compile", onnx_file, "-o", "x.convc", *T, "--require-tuned", code=9)
    assert re.match(
        r"convc: 3 problems have no record for cuda/sm_80; this version tunes no GPUs: leave --require-tuned out:\n",
        message,
    )


def test_check_and_explain_need_neither_gpu_nor_compiler(
    onnx_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_compiler, "COMPILERS", ())
    assert f"{onnx_file}: compiles for cuda/sm_80\n" in told(capsys, "check", onnx_file, *T)
    problems = document(capsys, "explain", onnx_file, *T)
    assert problems["target"] == "cuda/sm_80" and len(problems["problems"]) == 3
    text = told(capsys, "explain", PROBLEM, *T)
    assert re.search(r"^ +algorithm +us +limit +error bound ", text, re.MULTILINE)
    assert "limit" not in told(capsys, "explain", PROBLEM, "--target", "cpu/znver3").splitlines()[2]


@pytest.mark.parametrize(
    ("text", "full"), [("mb8_ic256ih56_oc256oh56_kh3ph1", True), ("mb1_ic64ih7_oc64oh7_kh3ph1", False)]
)
def test_the_limit_is_the_one_of_the_model(text: str, full: bool) -> None:
    problem = Problem.parse(text).canonical
    target = parse_target("cuda/sm_80")
    rows = {row.algorithm: row for row in explain_problem(problem, target)}
    for name in ("direct", "winograd", "fallback"):
        algorithm, row = algorithms("cuda")[name], rows[name]
        config = {key: int(value) for key, value in (pair.split("=") for pair in row.config.split(","))}
        assert algorithm.limit and row.limit == algorithm.limit(problem, target, config)
        assert row.us == pytest.approx(1e6 * algorithm.seconds(problem, target, config))
    assert (rows["direct"].limit == "multiply-adds") is full
    assert rows["fallback"].limit == ("instructions" if full else "latency")
    assert all(row.limit is None for row in explain_problem(problem, parse_target("cpu/znver3")))


@needs_shim
def test_explain_tells_what_an_artifacts_kernels_take(
    onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.convc"
    with on_shim():
        told(capsys, "compile", onnx_file, "-o", path, *T)
        found = document(capsys, "explain", path)
        assert [p["taken"] for p in found["problems"]] == [{"registers": 32, "shared": mock.ANY, "spilled": 0}] * 3
        text = told(capsys, "explain", path)
        assert text.count("takes up to 32 registers a thread, ") == 3 and text.endswith("for cuda/sm_80\n")
        assert told(capsys, "run", path, "--fill", "zeros").startswith("output")
    assert document(capsys, "explain", onnx_file, *T)["problems"][0]["taken"] is None
    assert "this machine has no NVIDIA driver" in complaint(capsys, "run", path, "--fill", "zeros", code=6)
