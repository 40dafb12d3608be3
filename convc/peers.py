"""The runtimes that `convc bench` puts side by side: convc and its baselines, each the way its own API runs fastest.

Inputs and outputs are in place before the first run, so that a run is the network and nothing else.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convc.errors import MissingDependencyError
from convc.ir import Array, TensorType
from convc.report.machine import package_version

if TYPE_CHECKING:
    from convc.problem import Problem


@dataclass(frozen=True)
class Task:
    """What all run: files of the same network, its inputs, the types of its outputs, and on how many threads.

    `model` is None where only the artifact is known; `problem` where the network is a single convolution.
    """

    artifact: Path
    model: Path | None
    inputs: Mapping[str, Array]
    outputs: Mapping[str, TensorType]
    threads: int
    problem: Problem | None = None


@dataclass(frozen=True)
class Runner:
    """`run` computes everything once; `outputs` gives the latest results by name. `us` runs and tells what that took,
    where the clock of this process would not tell it."""

    run: Callable[[], object]
    outputs: Callable[[], dict[str, Array]]
    us: Callable[[], float] | None = None


@dataclass(frozen=True)
class Runtime:
    """`module` is what Python imports, `package` what pip installs and `install` the line that does."""

    title: str
    module: str
    package: str
    install: str
    open: Callable[[Task], Runner] = field(repr=False)
    needs_problem: bool = False

    @property
    def version(self) -> str:
        return package_version(self.package) or "unknown"

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    def refuses(self, task: Task) -> str | None:
        """Why it cannot run the task, or None."""
        if self.needs_problem and task.problem is None:
            return "runs single convolutions only, no models"
        if task.model is None and self.module != "convc":
            return "needs the model (--model)"
        return None


def open_convc(task: Task) -> Runner:
    from convc.runtime.loader import load

    module = load(task.artifact, threads=task.threads)
    bound = module.bind(task.inputs)
    return Runner(bound.run, lambda: bound.outputs, bound.run_us if module.gpu else None)


def open_ort(task: Task) -> Runner:
    import onnxruntime as ort

    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(task.model), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in task.inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, "cpu"))
    results = {name: _ort_value(ort, type_) for name, type_ in task.outputs.items()}
    for name, value in results.items():
        binding.bind_ortvalue_output(name, value)
    return Runner(
        lambda: session.run_with_iobinding(binding),
        lambda: {name: value.numpy() for name, value in results.items()},
    )


def _ort_value(ort: Any, type_: TensorType) -> Any:
    import numpy as np

    return ort.OrtValue.ortvalue_from_numpy(np.zeros(type_.shape, type_.dtype), "cpu")


def open_openvino(task: Task) -> Runner:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(task.model))
    if model.is_dynamic():
        model.reshape({name: list(value.shape) for name, value in task.inputs.items()})
    settings = {
        "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": task.threads, "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    for name, value in task.inputs.items():
        request.set_tensor(compiled.input(name), ov.Tensor(value, shared_memory=True))
    return Runner(
        lambda: request.infer(share_outputs=True),
        lambda: {name: request.get_tensor(compiled.output(name)).data.copy() for name in task.outputs},
    )


def open_torch(task: Task) -> Runner:
    import torch

    from convc.report.single import weights

    assert task.problem is not None
    torch.set_num_threads(task.threads)
    (x,), (y_name,) = task.inputs.values(), task.outputs
    w = torch.from_numpy(weights(task.problem, seed=0))
    apply = _torch_operation(torch, task.problem, torch.from_numpy(x), w)
    latest: dict[str, Any] = {}

    def run() -> None:
        with torch.inference_mode():
            latest[y_name] = apply()

    return Runner(run, lambda: {name: value.numpy() for name, value in latest.items()})


def _torch_operation(torch: Any, p: Problem, x: Any, w: Any) -> Callable[[], Any]:
    from convc.report.single import pads, y_shape

    f = torch.nn.functional
    if p.kind == "matmul":
        return lambda: torch.matmul(x, w)
    if p.kind == "transposed":
        function = (f.conv_transpose1d, f.conv_transpose2d, f.conv_transpose3d)[p.rank - 1]
        plain = function(x, w, None, p.s, p.p, 0, p.g, p.d).shape
        extra = tuple(a - b for a, b in zip(y_shape(p)[2:], plain[2:], strict=True))
        return lambda: function(x, w, None, p.s, p.p, extra, p.g, p.d)
    function = (f.conv1d, f.conv2d, f.conv3d)[p.rank - 1]
    before, behind = pads(p)
    if before == behind:
        return lambda: function(x, w, None, p.s, before, p.d, p.g)
    amounts = [n for a, b in reversed(list(zip(before, behind, strict=True))) for n in (a, b)]
    return lambda: function(f.pad(x, amounts), w, None, p.s, 0, p.d, p.g)


BENCH = "pip install 'convc[bench]'"
RUNTIMES: Mapping[str, Runtime] = {
    "convc": Runtime("convc", "convc", "convc", "pip install convc", open_convc),
    "ort": Runtime("ONNX Runtime", "onnxruntime", "onnxruntime", BENCH, open_ort),
    "openvino": Runtime("OpenVINO", "openvino", "openvino", BENCH, open_openvino),
    "torch": Runtime("PyTorch", "torch", "torch", "pip install torch", open_torch, needs_problem=True),
}
PEERS = tuple(name for name in RUNTIMES if name != "convc")


def check_installed(names: tuple[str, ...]) -> None:
    """Raise MissingDependencyError that names everything absent and the lines that install it."""
    absent = [RUNTIMES[name] for name in names if not RUNTIMES[name].is_installed]
    if absent:
        lines = " and ".join(f"`{line}`" for line in dict.fromkeys(runtime.install for runtime in absent))
        raise MissingDependencyError(f"{', '.join(r.title for r in absent)} cannot be found; run {lines}")
