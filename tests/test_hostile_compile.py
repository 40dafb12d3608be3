"""Can a model file crash, hang or exhaust the compiler? Each hostile model through the command line, in a process of
its own with 60 s and 4 GB."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(os.environ["CONVC_MODELS"]) / "hostile" if "CONVC_MODELS" in os.environ else None
VERDICTS = json.loads((MODELS / "MANIFEST.json").read_text()) if MODELS else {}
GIGABYTES = 4 << 30


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES, GIGABYTES))


@pytest.mark.slow
@pytest.mark.skipif(not VERDICTS, reason="CONVC_MODELS names no folder of hostile models")
@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_verdict(name: str, tmp_path: Path) -> None:
    assert MODELS
    command = [sys.executable, "-m", "convc.cli", "compile", str(MODELS / name / "model.onnx")]
    command += ["-o", str(tmp_path / "x.convc")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limited, check=False)
    assert "Traceback" not in done.stderr
    expected = VERDICTS[name]["expect"]
    allowed = {"reject": {3, 4}, "accept": {0}, "accept_nonfinite": {0}}.get(expected, {0, 3, 4})
    assert done.returncode in allowed, f"{expected}: exit {done.returncode}\n{done.stderr}"
    assert (tmp_path / "x.convc").exists() == (done.returncode == 0)
    assert done.returncode == 0 or len(done.stderr.strip()) > 20
