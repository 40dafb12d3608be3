"""What the tests of the command line share: a small network, and calls that return what was printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import model, node, ramp

from convc.cli import main

X = (1, 8, 10, 10)


def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of known width and no colour, and a state folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


def network() -> onnx.ModelProto:
    """Two convolutions with a residual between them, a pool and a classifier; all values are small integers."""
    nodes = [
        node("Conv", "x w0 b0", "a", name="first", pads=[1, 1, 1, 1]),
        node("Relu", "a", "r", name="relu"),
        node("Conv", "r w1", "c", name="second", pads=[1, 1, 1, 1]),
        node("Add", "c r", "s", name="residual"),
        node("GlobalAveragePool", "s", "g", name="pool"),
        node("Flatten", "g", "f", name="flat"),
        node("Gemm", "f w2", "y", name="classifier"),
    ]
    constants = {"w0": ramp(16, 8, 3, 3), "b0": ramp(16), "w1": ramp(16, 16, 3, 3) / 16, "w2": ramp(16, 10) / 8}
    return model(nodes, {"x": X}, {name: value.astype(np.float32) for name, value in constants.items()})


def told(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> str:
    """What the command line prints to stdout; it must end with `code`."""
    capsys.readouterr()
    found = main([str(a) for a in argv])
    captured = capsys.readouterr()
    assert found == code, captured.err
    return captured.out


def document(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(capsys, *argv, "--json", code=code))
    assert found["schema"] == 1
    return found


def complaint(capsys: pytest.CaptureFixture[str], *argv: object, code: int) -> str:
    """The message on stderr."""
    capsys.readouterr()
    found = main([str(a) for a in argv])
    captured = capsys.readouterr()
    assert found == code, captured.err
    assert "Traceback" not in captured.err
    return captured.err.strip()
