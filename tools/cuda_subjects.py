"""What tools/bench_cuda.py measures: layers and networks, the most important first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench import LAYERS as RESNET50
from bench_im2win import LAYERS as TWELVE
from cuda_networks import NETWORKS

from convc.problem import Problem

STORED = {"f32": "float32", "tf32": "float32", "f16": "float16"}
FOUR = "ic32ih224_oc64_kh7sh2"  # the fourth layer as the papers' code for GPUs has it, with half of the input channels
SLICE = "ic64ih56_oc64oh56_kh3ph1"  # the layer of the table of points


@dataclass(frozen=True)
class Layer:
    """`steps`: "best" are the first configs of the algorithms, "ablation" im2win's steps, "points" F(m, 3) at several
    points."""

    id: str
    group: str
    problem: Problem
    dtype: str
    steps: str = "best"


@dataclass(frozen=True)
class Network:
    id: str
    group: str
    name: str
    batch: int
    dtype: str


def layer(group: str, name: str, text: str, dtype: str, steps: str = "best") -> Layer:
    stored = STORED[dtype]
    problem = Problem.parse(text if stored == "float32" else f"{text}_{stored}")
    return Layer(f"{group}/{name}/{dtype}", group, problem, dtype, steps)


def subjects(*, batch: int = 64, quick: bool = False) -> list[Layer | Network]:
    """All, or with `quick` as few as show that the tools work."""
    return list(_quick() if quick else _all(batch))


def _quick() -> Iterator[Layer | Network]:
    yield layer("twelve", "tiny", "mb2_ic8ih8_oc8_kh3", "f32")
    for batch in (1, 2):
        yield Network(f"networks/tiny/b{batch}/f32", "networks", "tiny", batch, "f32")
    yield layer("ablation", "tiny", "mb1_ic8ih8_oc8_kh3", "f32", "ablation")


def _all(batch: int) -> Iterator[Layer | Network]:
    twelve = [(f"{i + 1:02}", f"mb{batch}_{text}") for i, text in enumerate(TWELVE)]
    yield from (layer("twelve", name, text, "f32") for name, text in twelve)
    for dtype in ("f32", "f16"):
        yield from _resnet50(dtype)
    for each in (1, 32):
        for dtype in ("f32", "f16"):
            for name in NETWORKS:
                if name != "tiny":
                    yield Network(f"networks/{name}/b{each}/{dtype}", "networks", name, each, dtype)
    yield from (layer("ablation", name, text, "f32", "ablation") for name, text in twelve)
    yield from _resnet50("tf32")
    for dtype in ("tf32", "f16"):
        yield from (layer("twelve", name, text, dtype) for name, text in twelve)
    yield layer("four", "04", f"mb{batch}_{FOUR}", "f32")
    for each in (1, 32):
        yield layer("points", f"b{each}", f"mb{each}_{SLICE}", "f16", "points")


def _resnet50(dtype: str) -> Iterator[Layer]:
    for each in (1, 32):
        for text in RESNET50:
            yield layer("resnet50", f"b{each}/{text.removeprefix('mb1_')}", text.replace("mb1_", f"mb{each}_"), dtype)
