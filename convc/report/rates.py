"""The rates of this machine's cores, measured by a small C program; `doctor --measure` keeps them for the models."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from convc.rates import FILE, MEASURED, Rates, parse_rates, rates_text
from convc.report.native import load_c
from convc.report.peak import FLAGS, lanes
from convc.runtime.artifact import write_atomically
from convc.target import Target

# Chains that the compiler can neither shorten nor reorder; all loops are long against their own overhead.
SOURCE = """
#include <stdint.h>
typedef float v __attribute__((vector_size(%(bytes)d), aligned(4)));
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define KEEP(x) __asm__ volatile("" : "+%(register)s"(x))
uint64_t turns(long rounds, uint64_t b) { /* dependent exclusive ors, one cycle each: no processor folds them */
  uint64_t a = 1;
#define TURN { a ^= b; __asm__ volatile("" : "+r"(a)); }
  for (long r = 0; r < rounds; ++r) { TURN TURN TURN TURN TURN TURN TURN TURN }
  return a;
}
float chain(long rounds, float scale) { /* dependent multiply-adds */
  v m = (v){0} + scale, a = (v){0} + 1e-9f, s = m;
  for (long r = 0; r < rounds; ++r) {
    s = s * m + a; KEEP(s); s = s * m + a; KEEP(s); s = s * m + a; KEEP(s); s = s * m + a; KEEP(s);
  }
  return s[0];
}
float madds(long rounds, float scale) { /* independent ones */
  v m = (v){0} + scale, a = (v){0} + 1e-9f;
#define START(i) v s##i = m + i;
  EACH(START)
#define MADD(i) s##i = s##i * m + a; KEEP(s##i);
  for (long r = 0; r < rounds; ++r) { EACH(MADD) EACH(MADD) }
  v sum = {0};
#define SUM(i) sum += s##i;
  EACH(SUM)
  return sum[0];
}
float loads(const float* p, long n, long rounds) { /* vectors of an array, once each round */
  v s = {0};
  for (long r = 0; r < rounds; ++r)
    for (long i = 0; i < n; i += 4 * (long)(sizeof(v) / 4)) {
#define LOAD(k) { v x = *(const v*)(p + i + k * (long)(sizeof(v) / 4)); __asm__ volatile("" : : "%(register)s"(x)); }
      LOAD(0) LOAD(1) LOAD(2) LOAD(3)
    }
  return s[0];
}
"""
TRIES = 5
L1_BYTES, FAR_BYTES = 16 << 10, 24 << 20
L2_SHARE = 0.75  # of what plain loads reach, beside multiply-adds that use the same ports: fitted on Zen 5


def measure(target: Target) -> Rates:
    """Of one core of this machine, for code as `target`'s. Raises ConvcError where the C compiler does not work."""
    width = 4 * lanes()
    library = load_c(SOURCE % {"bytes": width, "register": "x"}, *FLAGS, "-fno-tree-vectorize")
    library.chain.argtypes = library.madds.argtypes = (ctypes.c_long, ctypes.c_float)
    library.loads.argtypes = (ctypes.c_void_p, ctypes.c_long, ctypes.c_long)
    memory = (ctypes.c_char * (FAR_BYTES + 64))()
    base = -(-ctypes.addressof(memory) // 64) * 64
    ctypes.memset(base, 1, FAR_BYTES)
    n = 2_000_000
    clock = 8 * n / _seconds(lambda: library.turns(n, 3))

    def bytes_a_cycle(size: int, total: int) -> float:
        rounds = max(1, total // size)
        return size * rounds / _seconds(lambda: library.loads(base, size // 4, rounds)) / clock

    return replace(
        target.rates,
        clock=_rounded(clock),
        fma=_rounded(24 * n / 8 / _seconds(lambda: library.madds(n // 8, 0.5)) / clock),
        load=_rounded(bytes_a_cycle(L1_BYTES, 256 << 20) / width),
        latency=_rounded(_seconds(lambda: library.chain(n, 0.5)) * clock / (4 * n)),
        l2=_rounded(L2_SHARE * bytes_a_cycle(target.l2 // 2, 256 << 20)),
        far=_rounded(bytes_a_cycle(FAR_BYTES, 4 * FAR_BYTES)),
    )


def keep(rates: Rates, label: str, folder: Path) -> Path:
    """Write what was measured to the folder's file of rates; what is known of other targets stays."""
    path = folder / FILE
    known = dict(parse_rates(path.read_text(), str(path))) if path.exists() else {}
    row = {name: value for name, value in asdict(rates).items() if name in MEASURED}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, rates_text({**known, label: {**known.get(label, {}), **row}}).encode())
    return path


def _seconds(run: Callable[[], object]) -> float:
    """The least of several times: whatever disturbs makes it longer."""
    found = []
    for _ in range(TRIES):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _rounded(value: float) -> float:
    """Three digits: more is noise, and would change choices from one measurement to the next."""
    return float(f"{value:.3g}")
