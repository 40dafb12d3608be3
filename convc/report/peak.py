"""What the machine can do at most, multiply-adds and bytes per second: measured by a small C program, kept on disk."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convc.errors import ConvcError
from convc.report.machine import this_machine
from convc.report.native import load_c
from convc.report.state import state_dir
from convc.runtime.artifact import write_atomically
from convc.target import host_features

# Twelve sums hide a latency of six cycles at two multiply-adds a cycle, and leave room in sixteen registers.
SOURCE = """
typedef float v __attribute__((vector_size(%(bytes)d), aligned(4)));
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
float madds(long rounds, float scale) {
  v m = (v){0} + scale, a = (v){0} + 1e-9f;
#define START(i) v s##i = m + i;
  EACH(START)
#define MADD(i) s##i = s##i * m + a; __asm__ volatile("" : "+%(register)s"(s##i));
  for (long r = 0; r < rounds; ++r) { EACH(MADD) }
  v sum = {0};
#define SUM(i) sum += s##i;
  EACH(SUM)
  float total = 0;
  for (int i = 0; i < (int)(sizeof(v) / 4); ++i) total += sum[i];
  return total;
}
void triad(float* restrict a, const float* restrict b, const float* restrict c, long n, float scale) {
  for (long i = 0; i < n; ++i) a[i] = b[i] + scale * c[i];
}
"""
SUMS = 12
FLAGS = ("-ffp-contract=fast", "-march=native")
WIDTHS = (("avx512f", 64), ("avx", 32))
LEAST_WIDTH = 16
TRIAD_BYTES = 192 << 20  # far more than any last-level cache share
TRIES = 5


@dataclass(frozen=True)
class Peak:
    """Of `threads` threads together: float32 GFLOP/s in registers, GB/s of memory (two streams read, one written)."""

    gflops: float
    gbytes: float
    threads: int


def peak(*, threads: int, fresh: bool = False) -> Peak:
    """As measured before on this machine; measured now (a second) where it was not, or where `fresh`.

    Raises ConvcError where the C compiler is absent or fails.
    """
    path, key = state_dir() / "peak.json", f"{this_machine().key} threads={threads}"
    known = _read(path)
    if key in known and not fresh:
        return known[key]
    found = measure(threads)
    _write(path, known | {key: found})
    return found


def measure(threads: int) -> Peak:
    library = _library()
    with ThreadPoolExecutor(threads) as pool:
        gflops = max(_madds(library, pool, threads) for _ in range(TRIES))
        gbytes = _triad(library, pool, threads)
    return Peak(round(gflops, 2), round(gbytes, 2), threads)


def lanes() -> int:
    """float32 elements in the widest vector register of this machine."""
    return _width() // 4


def _width() -> int:
    features = host_features()
    return next((width for feature, width in WIDTHS if feature in features), LEAST_WIDTH)


def _library() -> ctypes.CDLL:
    letter = {"x86_64": "x", "aarch64": "w"}.get(this_machine().machine, "x")
    library = load_c(SOURCE % {"bytes": _width(), "register": letter}, *FLAGS)
    library.madds.argtypes, library.madds.restype = (ctypes.c_long, ctypes.c_float), ctypes.c_float
    library.triad.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_float)
    library.triad.restype = None
    return library


def _madds(library: ctypes.CDLL, pool: ThreadPoolExecutor, threads: int) -> float:
    """GFLOP/s; ctypes lets go of the interpreter's lock, so that Python's threads run at once."""
    rounds = 4_000_000
    start = time.perf_counter()
    list(pool.map(lambda _: library.madds(rounds, 0.5), range(threads)))
    return 2 * SUMS * lanes() * rounds * threads / (time.perf_counter() - start) / 1e9


def _triad(library: ctypes.CDLL, pool: ThreadPoolExecutor, threads: int) -> float:
    n = TRIAD_BYTES // 12 // threads
    data = [[np.ones(n, np.float32) for _ in range(3)] for _ in range(threads)]

    def run(arrays: list[np.ndarray[tuple[int], np.dtype[np.float32]]]) -> None:
        library.triad(*(a.ctypes.data for a in arrays), n, 0.5)

    best = 0.0
    for _ in range(TRIES):
        start = time.perf_counter()
        list(pool.map(run, data))
        best = max(best, 12 * n * threads / (time.perf_counter() - start) / 1e9)
    return best


def _read(path: Path) -> dict[str, Peak]:
    """What was measured before; nothing where the file is absent or not what convc wrote."""
    try:
        found = json.loads(path.read_text())
        return {str(key): _peak(value) for key, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _peak(row: Mapping[str, Any]) -> Peak:
    return Peak(float(row["gflops"]), float(row["gbytes"]), int(row["threads"]))


def _write(path: Path, known: Mapping[str, Peak]) -> None:
    text = json.dumps({key: asdict(value) for key, value in known.items()}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError:  # a full or read-only disk costs a second at the next time, no more
        return


def peak_or_none(*, threads: int) -> Peak | None:
    """As `peak`, None on a machine where it cannot be measured."""
    try:
        return peak(threads=threads)
    except ConvcError:
        return None
