"""What a network's outputs ought to be: by ONNX Runtime, or by convc's own references in float64."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from convc.errors import BadInputError, MissingDependencyError
from convc.ir import Array
from convc.report.layers import widened

SOURCES = ("ort", "numpy")
TITLES = {"ort": "ONNX Runtime", "numpy": "convc's numpy reference in float64", "exact": "convc's numpy reference"}


def default_source() -> str:
    return "ort" if importlib.util.find_spec("onnxruntime") else "numpy"


def reference_outputs(source: str, model: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs by name. `source` is ort; numpy, where floats are computed as float64; or exact, where every value has
    the model's own type.

    Raises MissingDependencyError where ONNX Runtime is asked for and absent, BadInputError where it refuses the model.
    """
    if source == "ort":
        return _by_onnxruntime(model, inputs)
    from convc.frontend import import_onnx

    graph = import_onnx(model, shapes={name: value.shape for name, value in inputs.items()})
    return graph.evaluate(dict(inputs) if source == "exact" else {n: widened(v) for n, v in inputs.items()})


def _by_onnxruntime(model: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingDependencyError("ONNX Runtime cannot be imported; run `pip install 'convc[bench]'`") from error
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except Exception as error:  # its exceptions have no common type
        raise BadInputError(f"{model}: ONNX Runtime refuses it ({str(error)[:300]}); try --reference numpy") from error
