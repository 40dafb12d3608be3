"""Does a plain C program with nothing but the artifact's library reproduce its self-test?"""

from __future__ import annotations

import subprocess
from pathlib import Path

import handmade
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import convc
from convc.runtime.artifact import Artifact

PROGRAM = Path(__file__).with_name("program.c")


def network() -> bytes:
    """Two convolutions (one 3x3 with relu, one strided), a residual and a pool, on 1x8x20x20."""
    random = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 6, name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c1", "x"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["z"]),
    ]
    weights = [weight("w1", 8, 8, 3, 3), weight("b1", 8), weight("w2", 24, 8, 3, 3)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 20, 20])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 24, 1, 1])
    graph = helper.make_graph(nodes, "network", [x], [z], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def run_program(artifact: Artifact, folder: Path, *, threads: int) -> bytes:
    """Compile program.c against the extracted artifact, run it with an empty environment, return its output."""
    artifact.extract(folder)
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        golden["input_0"].tofile(folder / "in.bin")
    library = folder / "lib" / "model.so"
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{folder / 'include'}"]
    command = ["cc", *flags, str(PROGRAM), str(library), "-lm", "-lpthread", "-o", str(folder / "program")]
    subprocess.run(command, check=True, cwd=folder)
    line = ["env", "-i", "./program", "weights.safetensors", "in.bin", "out.bin", str(threads)]
    subprocess.run(line, check=True, cwd=folder, timeout=60)
    return (folder / "out.bin").read_bytes()


def golden_output(folder: Path) -> bytes:
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        return bytes(golden["output_0"].tobytes())


@pytest.mark.parametrize("threads", [1, 3])
def test_handmade_plan(tmp_path: Path, threads: int) -> None:
    found = run_program(handmade.artifact(name="model"), tmp_path, threads=threads)
    assert found == golden_output(tmp_path)


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_network(tmp_path: Path, threads: int) -> None:
    artifact = convc.compile(network(), target="native")
    found = run_program(artifact, tmp_path, threads=threads)
    assert found == golden_output(tmp_path)
    assert np.unique(np.frombuffer(found, np.float32)).size > 12


def test_header_is_c99_and_cpp(tmp_path: Path) -> None:
    handmade.artifact(name="model").extract(tmp_path)
    header = str(tmp_path / "include" / "model.h")
    for language in (["cc", "-x", "c", "-std=c99"], ["c++", "-x", "c++", "-std=c++11"]):
        subprocess.run([*language, "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", header], check=True)
