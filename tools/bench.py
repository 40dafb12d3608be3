"""convc beside ONNX Runtime and OpenVINO over a list of networks or layers, with the geometric mean of the ratios.

    python tools/bench.py layers depthwise 3x3 wide       # the lists below
    python tools/bench.py zoo --threads 2                 # every network of $CONVC_MODELS/zoo, weights refilled
    python tools/bench.py model.onnx mb1_ic64ih56_oc64oh56_kh3ph1 --json out.json

Each subject is one call of `convc bench`: interleaved, one pinned CPU a thread, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LAYERS = [
    *(f"mb1_ic{c}ih{s}_oc{c}oh{s}_kh3ph1" for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *(f"mb1_ic{c}ih{s}_oc{c}oh{s // 2}_kh3sh2ph1" for c, s in ((128, 56), (256, 28), (512, 14))),
    "mb1_ic3ih224_oc64oh112_kh7sh2ph3",
    *(f"mb1_ic{i}ih{s}_oc{o}oh{s}_kh1" for i, o, s in (
        (64, 64, 56), (64, 256, 56), (256, 64, 56), (256, 128, 56), (128, 512, 28), (512, 128, 28),
        (256, 1024, 14), (1024, 256, 14), (512, 2048, 7), (2048, 512, 7),
    )),
    *(f"mb1_ic{i}ih{s}_oc{o}oh{s // 2}_kh1sh2" for i, o, s in ((256, 512, 56), (512, 1024, 28), (1024, 2048, 14))),
]  # fmt: skip
DEPTHWISE = [
    f"g{c}mb1_ic{c}ih{s}_oc{c}oh{s // t}_kh{k}sh{t}ph{k // 2}"
    for k, c, s, t in (
        (3, 32, 112, 1), (3, 96, 112, 2), (3, 144, 56, 1), (3, 192, 28, 1), (3, 384, 14, 1), (3, 576, 14, 1),
        (5, 240, 28, 1), (5, 480, 14, 1), (5, 672, 14, 2), (7, 96, 56, 1), (7, 192, 28, 1), (7, 384, 14, 1),
    )
]  # fmt: skip

THREES = [  # 3x3 at stride 1, of many networks
    f"mb1_ic{c}ih{s}_oc{c}oh{s}_kh3ph1"
    for c, s in (
        (64, 56), (128, 28), (256, 14), (512, 7), (64, 224), (128, 112), (256, 56), (512, 28), (32, 112), (96, 27),
        (192, 35),
    )
]  # fmt: skip
WIDE = [  # 5x5 of GoogLeNet and Inception v3; 1x7 and 7x1 of Inception v3
    *(f"mb1_ic{i}ih{s}_oc{o}oh{s}_kh5ph2" for i, o, s in (
        (16, 32, 28), (32, 96, 28), (16, 48, 14), (24, 64, 14), (32, 64, 14), (32, 128, 14), (48, 128, 7), (48, 64, 35),
    )),
    *(f"mb1_ic{i}ih17_oc{o}oh17_kh{k}kw{8 - k}ph{k // 2}pw{(8 - k) // 2}" for k in (1, 7) for i, o in (
        (128, 128), (128, 192), (160, 160), (160, 192), (192, 192),
    )),
]  # fmt: skip
LISTS = {"layers": LAYERS, "depthwise": DEPTHWISE, "3x3": THREES, "wide": WIDE}


def subjects(names: list[str], folder: Path) -> list[str]:
    found: list[str] = []
    for name in names:
        match name:
            case "zoo":
                found += _zoo(folder)
            case _ if name in LISTS:
                found += LISTS[name]
            case _:
                found.append(name)
    return found


def _zoo(folder: Path) -> list[str]:
    models = Path(os.environ["CONVC_MODELS"])
    sys.path.insert(0, str(models))
    from rehydrate import rehydrate

    paths = []
    for skeleton in sorted((models / "zoo").glob("*.skeleton.onnx")):
        path = folder / skeleton.name.replace(".skeleton", "")
        rehydrate(str(skeleton), str(path))
        paths.append(str(path))
    return paths


def measure(subject: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "convc.cli", "bench", subject, "--vs", options.vs, "--json"]
    command += ["--threads", str(options.threads)]
    command += ["--rounds", str(options.rounds)] if options.rounds else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{subject}: {done.stdout}{done.stderr}")
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+")
    parser.add_argument("--vs", default="ort,openvino")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(options.subjects, Path(folder)):
            row = measure(subject, options)
            rows.append(row)
            times = {r["runtime"]: r["us"] for r in row["results"]}
            ours = times.pop("convc")
            ratios.append(min(times.values()) / ours)
            peers = "  ".join(f"{name} {us:9.0f}" for name, us in times.items())
            print(f"{row['subject'][:64]:64} convc {ours:9.0f} us  {peers}  x{ratios[-1]:.2f}", flush=True)
    print(f"{'geometric mean':64} x{statistics.geometric_mean(ratios):.3f}, least x{min(ratios):.2f}, "
          f"{options.threads} thread(s), {rows[-1]['machine']['cpu']}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
