"""What the tests of records share: records, lines with a crc of their own, and calls of tests/record_writers.py."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

from convc.algorithm import algorithms
from convc.target import Target
from convc.tune.record import Record, schedule_hash

PROBLEM = "g1mb1_ic64ih56iw56_oc64oh56ow56_kh3kw3_sh1sw1_ph1pw1_dh0dw0"
ZNVER3 = Target("znver3", "x86_64-unknown-linux-gnu", lanes=8, registers=16, features=("avx2", "fma"), threads=2)
DIRECT = schedule_hash(algorithms()["direct"])
WRITERS = Path(__file__).with_name("record_writers.py")
VALUES: dict[str, Any] = {
    "problem": PROBLEM,
    "epilogue": "short",
    "target": "cpu/znver3",
    "threads": 2,
    "algorithm": "direct",
    "config": {"xb": 8, "yb": 8, "rw": 6, "v": 2},
    "schedule": DIRECT,
    "status": "ok",
    "us": 812.25,
    "us_warm": None,
    "spread": 0.01,
    "peak": 0.9,
    "error": 2.5e-07,
    "workspace": 4096,
    "reason": "",
    "tvm": "0.27.0.post1",
    "device": "AMD EPYC 7B13",
    "date": "2026-11-24T10:30:00+00:00",
}
REFUSED = {"us": None, "error": None, "spread": None, "peak": None}


def record(**changes: Any) -> Record:
    return Record(**{**VALUES, **changes})


def refused(status: str = "wrong", **changes: Any) -> Record:
    return record(**{**REFUSED, "status": status, "reason": f"it is {status}", **changes})


def sealed(body: str) -> str:
    """The line that a JSON object without crc makes with its own: what whoever forges a record would write."""
    return f'{body[:-1]},"crc":"{zlib.crc32(body.encode()):08x}"}}'


def forged(line: str, **changes: Any) -> str:
    """`line` with other values and a crc that fits them."""
    values = json.loads(line)
    del values["crc"]
    return sealed(json.dumps({**values, **changes}, separators=(",", ":")))


def writers(mode: str, folder: Path, *numbers: int) -> Any:
    """What tests/record_writers.py prints."""
    argv = [sys.executable, str(WRITERS), mode, str(folder), *map(str, numbers)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
