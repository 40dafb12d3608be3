"""ResNet-50 through convc, beside ONNX Runtime: the same weights, the same input, one thread."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import light
import numpy as np
import onnx

import convc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="resnet50", choices=light.topologies())
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each")
    options = parser.parse_args()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{options.topology}.onnx"
        onnx.save(light.load(options.topology), path)
        start = time.perf_counter()
        convc.compile(path).save(Path(folder) / "model.convc")
        print(f"compiled {options.topology} in {time.perf_counter() - start:.1f} s")
        ours = convc.load(Path(folder) / "model.convc", threads=1)
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        theirs = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    weights = {w.name for w in light.load(options.topology).graph.initializer}
    given = next(i for i in theirs.get_inputs() if i.name not in weights)
    x = np.random.default_rng(0).standard_normal(given.shape, dtype=np.float32)
    expected = theirs.run(None, {given.name: x})[0]
    got = next(iter(ours.run({given.name: x}).values()))
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    contenders = {"convc": lambda: ours.run({given.name: x}), "ONNX Runtime": lambda: theirs.run(None, {given.name: x})}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, call in contenders.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        print(f"{name:14} {np.median(seconds) * 1e3:8.2f} ms")
    print(f"{'speed-up':14} {np.median(times['ONNX Runtime']) / np.median(times['convc']):8.2f} x, one thread, medians")
    print(f"relative L2 difference {error:.1e}, same class: {bool(got.argmax() == expected.argmax())}")


if __name__ == "__main__":
    main()
