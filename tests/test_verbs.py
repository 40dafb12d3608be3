"""Is it a product? Every verb on a small network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_calls import X, complaint, document, isolate, network, told
from onnx_models import conv_model, model, node, ramp

from convc.algorithm import algorithms
from convc.cli import main
from convc.cli.failure import KINDS
from convc.runtime.artifact import WEIGHTS, Artifact


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "net.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture(scope="session")
def artifact(onnx_file: Path) -> Path:
    path = onnx_file.with_suffix(".convc")
    assert main(["compile", str(onnx_file), "-o", str(path)]) == 0
    return path


def test_ops(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"^Conv +7-\d+ +1 to 3 spatial axes", told(capsys, "ops"), re.MULTILINE)
    found = {row["name"] for row in document(capsys, "ops")["operators"]}
    assert {"Conv", "Relu", "MaxPool"} <= found


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["target"]: row for row in document(capsys, "targets")["targets"]}
    assert rows["native"]["runs_here"] is True
    assert rows["cpu/x86-64-v3"]["lanes"] == 8 and rows["cpu/cortex-a72"]["lanes"] == 4
    assert told(capsys, "targets").splitlines()[1].startswith("native ")


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "doctor")
    assert found["passed"] and {"Python", "apache-tvm", "C compiler"} <= {check["name"] for check in found["checks"]}
    assert told(capsys, "doctor").startswith("everything convc needs is here\n")


def test_doctor_without_a_compiler(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVC_CC", "no-such-compiler")
    assert complaint(capsys, "doctor", code=5) == "convc: 1 checks failed: C compiler"
    monkeypatch.setenv("CONVC_CC", "true")  # ends well and makes nothing
    assert document(capsys, "doctor", code=5)["error"]["kind"] == "missing-dependency"


def test_doctor_with_another_tvm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convc.report.doctor.pinned_packages", lambda: [("apache-tvm", "9.9"), ("nowhere-to-be", "1")])
    text = told(capsys, "doctor", code=5)
    assert re.search(r"^bad +apache-tvm .* run `pip install apache-tvm==9\.9`", text, re.MULTILINE)
    assert re.search(r"^bad +nowhere-to-be +missing", text, re.MULTILINE)


def test_inspect_model(onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "inspect", onnx_file)["model"]
    assert (found["nodes"], found["operators"]["Conv"]) == (7, 2)
    assert "net.onnx: ONNX opset 13, 7 nodes" in told(capsys, "inspect", onnx_file)


def test_check(onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "check", onnx_file, "--target", "cpu/x86-64-v3")
    assert found["compiles"] and found["convolutions"] == 3
    assert found["flops"] >= 2 * 100 * 9 * (8 * 16 + 16 * 16)
    assert "net.onnx: compiles for native" in told(capsys, "check", onnx_file)


def test_check_lists_everything_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.onnx"
    nodes = [node("Sine", "x", "a", name="first"), node("Relu", "x", "r"), node("Cosine", "r", "y", name="last")]
    onnx.save(model(nodes, {"x": X}), path)
    found = document(capsys, "check", path, code=4)
    assert [failure["operator"] for failure in found["failures"]] == ["Sine", "Cosine"]
    assert found["error"]["kind"] == "unsupported" and found["compiles"] is False
    text = told(capsys, "check", path, code=4)
    assert "'first'" in text and "'last'" in text and "does not compile; 2 parts of it fail" in text


def test_explain_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    problem = "ic64ih14oc64kh3ph1"
    (found,) = document(capsys, "explain", problem, "--target", "cpu/x86-64-v3")["problems"]
    rows = {row["algorithm"]: row for row in found["algorithms"]}
    assert rows["direct"]["us"] > 0 and "taps" in rows["pointwise"]["refusal"]
    first = found["algorithms"][0]
    assert found["choice"] == f"{first['algorithm']}({first['config']})" and found["source"] == "modelled"
    text = told(capsys, "explain", problem, "-t", "cpu/x86-64-v3")
    assert re.search(rf"^\* +{first['algorithm']} ", text, re.MULTILINE) and f"modelled: {found['choice']}" in text


def test_explain_keeps_the_bound_that_is_asked_for(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("explain", "ic64ih14oc64kh3ph1", "--target", "cpu/x86-64-v3", "--max-rel-err")
    for limit in (1e-4, 1e-6, 1e-9):
        (found,) = document(capsys, *argv, limit)["problems"]
        mixing = [row for row in found["algorithms"] if algorithms()[row["algorithm"]].mixes]
        assert all(row["error"] <= limit for row in mixing if row["refusal"] is None)
        assert all(row["refusal"] for row in mixing) == (limit == 1e-9)
        assert found["bound"] <= limit or not algorithms()[found["choice"].partition("(")[0]].mixes
    assert "with an error of at most 1e-09" in told(capsys, *argv, 1e-9)
    message = complaint(capsys, "explain", artifact, "--max-rel-err", 1e-3, code=2)
    assert "--max-rel-err is settled in" in message


def test_explain_a_model_and_a_layer_of_it(onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "explain", onnx_file)["problems"]
    assert len(found) == 3
    for each in found:
        assert each["choice"].partition("(")[0] in [row["algorithm"] for row in each["algorithms"]]
        assert each["source"] == "modelled"
    (second,) = document(capsys, "explain", onnx_file, "second")["problems"]
    assert "second" in second["layers"][0][1] and second in found
    message = complaint(capsys, "explain", onnx_file, "nowhere", code=2)
    assert "no convolution" in message and "'nowhere'" in message


@pytest.mark.parametrize("stage", ["graph", "simple", "plan", "chosen", "placed"])
def test_stop_after(stage: str, onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "compile", onnx_file, "--stop-after", stage)
    assert "first" in text and "conv" in text.lower()


def test_compile(onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a.convc", tmp_path / "b.convc"]
    text = told(capsys, "compile", onnx_file, "-o", paths[0], "--dump-code", tmp_path / "code")
    assert text.startswith(f"{paths[0]}: ") and "tuned 0, transferred 0, modelled 3" in text
    assert list((tmp_path / "code").iterdir())
    found = document(capsys, "compile", onnx_file, "-o", paths[1])
    assert sum(found["algorithms"].values()) == 3 and found["memory"]["arena"] > 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.convc", "b.convc", "code"]


def test_compile_to_nowhere(onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file or directory" in complaint(
        capsys, "compile", onnx_file, "-o", tmp_path / "no" / "x.convc", code=3
    )


def test_memory_budget(onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = complaint(capsys, "compile", onnx_file, "-o", tmp_path / "x", "--memory-budget", "1KiB", code=11)
    assert "memory budget of 1024 bytes cannot be met" in message


def test_inspect_artifact(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "inspect", artifact)
    assert found["kind"] == "artifact" and found["manifest"]["schema"] == 2
    text = told(capsys, "inspect", artifact, "--extract", tmp_path / "out")
    assert "net.convc: artifact 'model' for cpu/" in text
    assert (tmp_path / "out/lib/model.so").exists() and (tmp_path / "out/include/model.h").exists()


def test_a_damaged_artifact(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.convc"
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    assert "damaged" in complaint(capsys, "inspect", bad, code=12)
    bad.write_bytes(b"")
    assert "empty" in complaint(capsys, "inspect", bad, code=12)


def test_run(artifact: Path, onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).integers(-4, 5, X).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    told(capsys, "run", artifact, "--inputs", tmp_path / "in.npz", "--outputs", tmp_path / "out.npz", "--threads", 1)
    from convc.frontend import import_onnx

    expected = import_onnx(onnx_file).evaluate({"x": x.astype(np.float64)})["y"]
    found = np.load(tmp_path / "out.npz")["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_run_made_up_inputs(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [document(capsys, "run", artifact, "--fill", "random", "--seed", seed)["outputs"] for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]
    (zeros,) = document(capsys, "run", artifact, "--fill", "zeros")["outputs"]
    assert zeros["type"] == "float32[1x10]"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((1, 8, 10, 9), np.float32)}, "'x' is float32[1x8x10x9], the network takes float32[1x8x10x10]"),
        ({"x": np.zeros(X)}, "'x' is float64[1x8x10x10], the network takes float32[1x8x10x10]"),
        ({"x": np.zeros(X, np.float32), "z": np.zeros(1)}, "holds 'x', 'z'; the inputs are 'x' float32[1x8x10x10]"),
        ({"x": np.array(["a"], object)}, "not an archive of arrays"),
        ({"x": np.zeros(1 << 21, np.int8)}, "the inputs of the network are at most"),
        (None, "not an .npz archive"),
    ],
)
def test_run_wrong_inputs(
    arrays: dict[str, Any] | None, words: str, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.npz"
    if arrays is None:
        path.write_text("no archive")
    else:
        np.savez(path, **arrays)
    assert words in complaint(capsys, "run", artifact, "--inputs", path, code=3)


@pytest.mark.parametrize("reference", ["ort", "numpy"])
def test_verify(reference: str, artifact: Path, onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if reference == "ort":
        pytest.importorskip("onnxruntime")
    text = told(capsys, "verify", artifact, "--model", onnx_file, "--reference", reference, "--per-layer")
    assert text.startswith(f"PASS: {artifact} against ") and "of its bound" in text
    found = document(capsys, "verify", artifact, "--model", onnx_file, "--reference", reference, "--per-layer")
    bounded = [layer for layer in found["layers"] if layer["of_bound"] is not None]
    assert found["passed"] and len(bounded) == 3 and all(0 <= layer["of_bound"] <= 1 for layer in bounded)
    assert all(0 <= layer["measured"] <= layer["bound"] < 1e-3 for layer in bounded)
    assert {layer["bound"] for layer in found["layers"] if layer["problem"] is None} == {None}
    assert re.search(r"max error +bound on it +of its bound", text)


def test_verify_bit_exact(artifact: Path, onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole numbers have exact sums in every order, so in every algorithm that select may take."""
    whole, built, given = tmp_path / "whole.onnx", tmp_path / "whole.convc", tmp_path / "in.npz"
    onnx.save(conv_model(), whole)
    np.savez(given, x=ramp(1, 3, 8, 8))
    told(capsys, "compile", whole, "-o", built)
    assert told(capsys, "verify", built, "--model", whole, "--inputs", given, "--bit-exact").startswith("PASS")
    message = complaint(capsys, "verify", artifact, "--model", onnx_file, "--tolerance", "0", code=7)
    assert "outside (tolerance 0): output 'y'" in message


def test_verify_finds_wrong_weights(
    artifact: Path, onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Artifact.open(artifact)
    entries = {name: bytes(data) for name, data in good.entries.items() if name != "manifest.json"}
    offset = good.manifest["weights"]["offset"]
    weights = np.frombuffer(entries[WEIGHTS][offset:], np.float32).copy()
    weights[: 8 * 9] += 0.01
    entries[WEIGHTS] = entries[WEIGHTS][:offset] + weights.tobytes()
    bad = tmp_path / "bad.convc"
    Artifact.of({k: v for k, v in good.manifest.items() if k not in ("schema", "entries")}, entries).save(bad)
    found = document(capsys, "verify", bad, "--model", onnx_file, "--per-layer", code=7)
    assert found["error"]["kind"] == "verify-failed"
    assert [layer["origin"][0] for layer in found["layers"] if not layer["passed"]] == ["first"]


def test_verify_wants_the_same_model(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(model(node("Relu", "x", "y"), {"x": X}), other)
    assert "not the model that the artifact was made of" in complaint(
        capsys, "verify", artifact, "--model", other, code=3
    )


def test_profile(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "profile", artifact, "--rounds", 3)
    assert sum(call["share"] for call in found["calls"]) == pytest.approx(1)
    assert found["total_us"] == pytest.approx(sum(call["us"] for call in found["calls"]))
    assert found["generic_share"] > 0 and found["whole_us"] > 0
    text = told(capsys, "profile", artifact, "--rounds", 3, "--sort", "time")
    assert re.search(r"layout changes [\d.]+ %, generic kernels [\d.]+ % of the sum", text)


def test_bench_a_model(onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    found = document(capsys, "bench", onnx_file, "--vs", "ort", "--rounds", 3)
    ours, ort = found["results"]
    assert (ours["runtime"], ours["ratio"], ort["runtime"]) == ("convc", 1.0, "ort")
    assert ort["ratio"] == pytest.approx(ort["us"] / ours["us"]) and ort["difference"] < 1e-4


def test_bench_says_what_a_peer_does_not_run(onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    text = told(capsys, "bench", onnx_file, "--vs", "torch", "--rounds", 3)
    assert re.search(r"^PyTorch .* n/a .*runs single convolutions only", text, re.MULTILINE)


def test_bench_on_two_threads_has_processes(
    artifact: Path, onnx_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    argv = ("bench", artifact, "--model", onnx_file, "--vs", "ort", "--threads", 2, "--rounds", 2)
    assert [row["us"] > 0 for row in document(capsys, *argv)["results"]] == [True, True]


def test_bench_a_problem_with_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("bench", "ic8ih6oc16kh3ph1", "--rounds", 3)
    found = document(capsys, *argv)
    baseline = tmp_path / "baseline.json"
    for factor, code in ((100.0, 0), (0.001, 8)):
        row = dict(found["results"][0], us=found["results"][0]["us"] * factor)
        baseline.write_text(json.dumps(found | {"results": [row]}))
        now = document(capsys, *argv, "--assert", baseline, "--tol", "5%", code=code)
        assert (now.get("error") or {"kind": "ok"})["kind"] == KINDS[code]
    assert "slower than" in complaint(capsys, *argv, "--assert", baseline, code=8)


def test_bench_without_the_peer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = complaint(capsys, "bench", "ic8ih6oc16kh3ph1", "--vs", "openvino", code=5)
    assert message == "convc: OpenVINO cannot be found; run `pip install 'convc[bench]'`"
