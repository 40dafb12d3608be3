"""Do whole networks compute what ONNX Runtime computes? The onnx wheel's topologies with weights from a seed, and,
where CONVC_MODELS names the folder, the zoo and the real models."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import light
import numpy as np
import onnx
import pytest

import convc
from convc.frontend import import_onnx

onnxruntime = pytest.importorskip("onnxruntime")
MODELS = Path(os.environ["CONVC_MODELS"]) if "CONVC_MODELS" in os.environ else None
TOLERANCE = 1e-4  # relative L2


def zoo() -> list[str]:
    return sorted(p.name.removesuffix(".skeleton.onnx") for p in (MODELS / "zoo").glob("*.onnx")) if MODELS else []


def real() -> list[str]:
    """The float models: those of integers have no oracle in ONNX Runtime, whose products saturate on some CPUs."""
    if not MODELS:
        return []
    found = sorted(p.parent.name for p in (MODELS / "real").glob("*/model.onnx"))
    return [name for name in found if not name.endswith(("_int8", "_qdq"))]


def zoo_model(name: str) -> onnx.ModelProto:
    assert MODELS
    sys.path.insert(0, str(MODELS))
    from rehydrate import rehydrate

    return rehydrate(str(MODELS / "zoo" / f"{name}.skeleton.onnx"))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def agree(model: onnx.ModelProto, *, classes: bool, target: str = "native") -> None:
    data = model.SerializeToString()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = convc.load(convc.compile(data, target=target), threads=1)
        graph = import_onnx(data)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {p.name: rng.standard_normal(p.type.shape).astype(p.type.dtype) for p in module.inputs}
    ours = module.run(inputs)
    names = [o.name for o in session.get_outputs()]
    theirs: dict[str, Any] = dict(zip(names, session.run(names, inputs), strict=True))
    far = [n for n in names if distance(ours[n], theirs[n]) > TOLERANCE]
    if far:  # ONNX Runtime rounds the tails of sigmoid and variances coarsely: then float64 decides
        exact = graph.evaluate({n: x.astype(np.float64) if x.dtype.kind == "f" else x for n, x in inputs.items()})
        assert all(distance(ours[n], exact[n]) <= TOLERANCE for n in far), {n: distance(ours[n], exact[n]) for n in far}
    for name in names:
        assert np.isfinite(ours[name]).all() and len(np.unique(ours[name])) > min(3, ours[name].size - 1)
        assert not classes or ours[name].argmax() == theirs[name].argmax()


@pytest.mark.slow
@pytest.mark.parametrize("name", light.topologies())
def test_light_topologies(name: str) -> None:
    agree(light.load(name), classes=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo())
def test_zoo(name: str) -> None:
    agree(zoo_model(name), classes=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", real())
def test_real_models(name: str) -> None:
    assert MODELS
    agree(onnx.load(MODELS / "real" / name / "model.onnx"), classes=False)
