"""Do the tools that measure on a GPU find what is wrong, and say what they measured? On the shim, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_cuda
import cuda_kernels
import numpy as np
import pytest
from cuda_build import choices, golden, layer_weight
from cuda_check import LIMITS, images, judge, sample
from cuda_networks import NETWORKS, Weight, onnx_of
from cuda_points import computed_at, sets
from cuda_shim import needs_shim, on_shim
from cuda_slim import Draws, open_slim, save_slim
from cuda_subjects import Layer, layer, subjects
from test_cuda_tensor_core import machine
from test_cuda_tensor_core import run as run_kernels

from convc.algorithm import algorithms
from convc.errors import BadArtifactError
from convc.problem import Problem
from convc.runtime import driver
from convc.runtime.artifact import WEIGHTS, Artifact
from convc.runtime.cache import cache_folder
from convc.tune.workload import Workload

pytestmark = needs_shim
WHAT = ("twelve/tiny/f32", "networks/tiny/b1/f32", "networks/tiny/b2/f32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer with several algorithms, and a network of one image and of two."""
    found = tmp_path_factory.mktemp("plan")
    with on_shim():
        for name in WHAT:
            flags = ["--archs", "sm_80", "--quick", "--jobs", "1", "--only", name]
            assert bench_cuda.main(["build", str(found), *flags]) == 0
    return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with on_shim():
        yield


def run(folder: Path, output: Path, *flags: str, code: int = 0) -> dict[str, Any]:
    few = ["--footprint", "0.01", "--seconds", "0.01", "--no-peers", "--here"]
    assert bench_cuda.main(["run", str(folder), "-o", str(output), *few, *flags]) == code
    return dict(json.loads(output.read_text()))


def test_what_is_right_is_timed(folder: Path, gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(folder, tmp_path / "r.json")
    assert found["gpu"] == "shim" and found["target"] == "cuda/sm_80" and not found["dropped"]
    assert [s["id"] for s in found["subjects"]] == list(WHAT)
    first, second, third = found["subjects"]
    assert set(first["contenders"]) >= {"direct", "im2win"} and first["sets"] > 1
    for one in (*first["contenders"].values(), second["contenders"]["convc"], third["contenders"]["convc"]):
        assert one["wrong"] is None and 0 < one["error"] < 1e-5
        assert one["us"] >= one["least"] > 0 and one["gflops"] > 0 and one["rounds"] >= 3
    assert first["best"] in first["contenders"] and first["ratio"] is None
    assert first["contenders"]["direct"]["config"]["xb"] in (1, 4)
    told = capsys.readouterr().out
    assert "## The twelve layers of the im2win papers, f32" in told and "| tiny |" in told
    assert "Wrong" not in told
    assert bench_cuda.main(["show", str(tmp_path / "r.json")]) == 0
    assert capsys.readouterr().out.strip() == told.strip()


def planted(folder: Path, to: Path) -> Path:
    """The same artifacts, but that the first of the layer has one weight that it should not have."""
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    plan = json.loads((folder / "plan.json").read_text())
    path = to / plan["subjects"][0]["artifacts"][0]["file"]
    artifact = open_slim(path, Draws())
    data = np.frombuffer(bytes(artifact.weights), np.float32).copy()
    data[5] += 1.0
    start = artifact.manifest["weights"]["offset"]
    changed = {name: entry for name, entry in artifact.entries.items() if name != "manifest.json"}
    changed[WEIGHTS] = bytes(artifact.entries[WEIGHTS][:start]) + data.tobytes()
    kept = {key: value for key, value in artifact.manifest.items() if key not in ("schema", "entries")}
    save_slim(Artifact.of(kept, changed), [(0, data)], {}, Draws(), path)
    return to


def test_what_is_wrong_is_told_and_not_timed(
    folder: Path, gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "planted").mkdir()
    wrong = planted(folder, tmp_path / "planted")
    (first,) = run(wrong, tmp_path / "r.json", "--only", WHAT[0], code=7)["subjects"]
    (name,) = first["wrong"]
    assert "us" not in first["contenders"][name] and first["contenders"][name]["error"] > 1e-2
    assert all("us" in one for other, one in first["contenders"].items() if other != name)
    assert f"{WHAT[0]}: {name}: off by" in capsys.readouterr().out


def test_check_times_nothing_and_no_time_measures_nothing(folder: Path, gpu: None, tmp_path: Path) -> None:
    (first,) = run(folder, tmp_path / "c.json", "--check", "--only", WHAT[0])["subjects"]
    assert all(one["error"] < 1e-5 and "us" not in one for one in first["contenders"].values())
    found = run(folder, tmp_path / "d.json", "--minutes", "-1")
    assert found["dropped"] == list(WHAT) and not found["subjects"]


def test_without_a_gpu_it_ends_with_6(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libcuda.so.absent")
    output = tmp_path / "r.json"
    assert bench_cuda.main(["run", str(folder), "-o", str(output), "--here"]) == 6
    assert not output.exists()
    assert capsys.readouterr().err.startswith(
        "convc: the artifact was built for cuda/sm_80 and needs a GPU of compute capability 8.0 to 8.9; this machine "
        "has no NVIDIA driver (libcuda.so.absent cannot be loaded). Run it on a machine with such a GPU"
    )


def test_a_subject_that_hangs_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, output = tmp_path / "child.py", tmp_path / "r.json"
    script.write_text(
        "import json, pathlib, sys, time\n"
        "path = pathlib.Path(sys.argv[sys.argv.index('-o') + 1])\n"
        "had = json.loads(path.read_text())['subjects'] if path.exists() else []\n"
        "state = {'subjects': had} if had else {'subjects': [], 'running': 'twelve/01/f32'}\n"
        "path.write_text(json.dumps(state))\n"
        "sys.exit(7) if had else time.sleep(60)\n"
    )
    monkeypatch.setattr(bench_cuda, "__file__", str(script))
    assert bench_cuda.main(["run", str(tmp_path), "-o", str(output), "--patience", "1"]) == 7
    (only,) = json.loads(output.read_text())["subjects"]
    assert only["id"] == "twelve/01/f32" and only["failed"] == "it took too long"


def test_weights_that_come_out_otherwise_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    path = folder / plan["subjects"][0]["artifacts"][0]["file"]
    assert open_slim(path, Draws()).kind == "cuda"
    draw = Weight.draw
    monkeypatch.setattr(Weight, "draw", lambda self: np.nextafter(draw(self), np.float32(9)))
    with pytest.raises(BadArtifactError, match="has not the hash"):
        open_slim(path, Draws())


PROBLEMS = [
    "mb9_ic3ih9_oc4_kh3", "g2mb2_ic4ih8_oc6oh4_kh3sh2ph1", "mb1_ic2ih7iw9_oc3oh3ow5_kh3dh1", "mb2_ic5ih4_oc3_kh1",
    "mb1_ic1ih12iw11_oc2_kh5kw2sh3sw2",
]  # fmt: skip


@pytest.mark.parametrize("text", PROBLEMS)
def test_a_sample_is_the_convolution(text: str) -> None:
    p = Problem.parse(text)
    x, w = images((p.mb, p.ic, *p.i), "float32"), layer_weight(p).draw()
    batch = x[np.arange(p.mb) % len(x)].astype(np.float64)
    whole = p.node().reference(batch, w.astype(np.float64))
    found = sample(p, x, w, count=300)
    assert np.allclose(found.expected, whole[tuple(found.places.T)], rtol=1e-12, atol=1e-12)
    magnitude = p.node().reference(np.abs(batch), np.abs(w.astype(np.float64)))
    assert np.allclose(found.magnitude, magnitude[tuple(found.places.T)], rtol=1e-12)
    assert len({tuple(place) for place in found.places}) == len(found.places)


@pytest.mark.parametrize("dtype", LIMITS)
def test_one_product_left_out_is_wrong(dtype: str) -> None:
    p = Problem.parse("mb2_ic512ih4_oc16_kh3")
    x, w = images((p.mb, p.ic, *p.i), "float32"), layer_weight(p).draw()
    wanted = sample(p, x, w)
    right = wanted.expected.astype(np.float16 if dtype == "f16" else np.float32)
    assert judge(right, wanted, dtype, "float32", mixes=False, bound=None).reason is None
    place = int(np.argmax(wanted.magnitude))
    right[place] -= wanted.magnitude[place] / p.reduction
    assert judge(right, wanted, dtype, "float32", mixes=False, bound=None).reason is not None
    right[place] = np.nan
    assert judge(right, wanted, dtype, "float32", mixes=False, bound=None).reason is not None


def test_the_plan_begins_with_what_matters() -> None:
    found = subjects()
    assert len({s.id for s in found}) == len(found)
    groups = list(dict.fromkeys(s.group for s in found))
    assert groups == ["twelve", "resnet50", "networks", "ablation", "four", "points"]
    twelve = [s for s in found if isinstance(s, Layer) and s.group == "twelve" and s.dtype == "f32"]
    assert len(twelve) == 12 and found[:12] == twelve and {s.problem.mb for s in twelve} == {64}
    assert {s.name for s in found if not isinstance(s, Layer)} == set(NETWORKS) - {"tiny"}


def test_types_and_steps_have_what_is_theirs() -> None:
    text = "mb1_ic64ih14_oc64oh14_kh3ph1"
    by_dtype = {}
    for dtype in ("f32", "tf32", "f16"):
        found, refused = choices(layer("twelve", "a", text, dtype), "cuda/sm_80", tries=1, best=2)
        by_dtype[dtype] = {choice.algorithm for _, choice in found}
        assert not by_dtype[dtype] & set(refused) and all(refused.values())
    assert by_dtype["f32"] >= {"direct", "im2win", "winograd"} and not by_dtype["f32"] & by_dtype["tf32"]
    assert "fallback" not in by_dtype["f32"] | by_dtype["tf32"] | by_dtype["f16"]
    text = "mb64_ic64ih56_oc64_kh3"
    steps, _ = choices(layer("ablation", "a", text, "f32", "ablation"), "cuda/sm_80", tries=1, best=2)
    assert len(steps) >= 5 and {choice.algorithm for _, choice in steps} == {"im2win"}


def test_the_table_of_points_has_the_products_and_the_points_of_others() -> None:
    subject = layer("points", "a", "mb1_ic64ih56_oc64oh56_kh3ph1", "f16", "points")
    found, refused = choices(subject, "cuda/sm_80", tries=1, best=2)
    labels = [label for label, _ in found]
    assert not refused and labels[:2] == ["tensor_core", "F(2,3) at the points of convc"]
    assert {f"F(6,3) at the points of {name}" for name in ("convc", "NOVA", "integers")} < {*labels}


def test_points_of_others_are_computed_at_and_only_where_asked() -> None:
    """On the shim, F(6, 3) in float16: NOVA's points are off by several times as much as convc's, as its bound says."""
    p, target = Problem.parse("mb1_ic16ih18_oc16_kh3ph1_float16"), machine("cuda/sm_80")
    winograd = algorithms("cuda")["winograd"]
    choice = winograd.choice(next(c for c in winograd.space(p, target) if c["m0"] == c["m1"] == 6))
    workload = Workload(p)
    data = workload.data(choice, exact=False)
    asked = data.tolerance >= 0

    def error() -> float:
        found = run_kernels(workload, choice, target, data).astype(np.float64)
        return float(np.sqrt(np.mean((found - data.expected)[asked] ** 2)))

    own, bound = error(), winograd.error(p, choice.config)
    folder = cache_folder()
    with computed_at(sets(6, 3)["NOVA"]):
        others, looser = error(), winograd.error(p, choice.config)
        assert cache_folder() != folder
    assert others > 3 * own and looser > 3 * bound
    assert winograd.error(p, choice.config) == bound and error() == own


def test_the_golden_image_is_the_first() -> None:
    from convc.frontend import import_onnx

    model, weights = onnx_of("tiny", 3)
    graph = import_onnx(model, shapes={})
    (y,) = graph.evaluate({"x": images((3, 3, 6, 6), "float32").astype(np.float64)}).values()
    assert np.allclose(y[0], golden("tiny"), rtol=1e-6) and not np.allclose(y[0], y[1], rtol=0.1)
    assert {"a.w", "b.b", "classes.w"} <= set(weights)


def test_the_table_of_kernels(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = folder.glob("networks-tiny-b1-*.slim")
    open_slim(name, Draws()).save(tmp_path / "tiny.convc")
    assert cuda_kernels.main([str(tmp_path / "tiny.convc"), "--json", str(tmp_path / "k.json")]) == 0
    (found,) = json.loads((tmp_path / "k.json").read_text())
    assert found["totals"]["calls"] == sum(row["calls"] for row in found["rows"]) == found["totals"]["functions"]
    assert all(row["usage"]["sm_80"]["registers"] == 32 and row["us"] > 0 for row in found["rows"])
    assert any(row["algorithm"] for row in found["rows"]) and found["totals"]["spilling"] == 0
    assert f"{found['totals']['launches']} launches" in capsys.readouterr().out
