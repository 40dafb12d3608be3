"""Candidates written by hand in C, right or with one fault planted, and compilers of them that misbehave."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convc.algorithm import Choice
from convc.problem import Problem
from convc.target import Target
from convc.tune.build import Candidate, Compiled, Refused
from convc.tune.workload import Workload

# Sizes in bytes of x, packed weights and y: 1440, 160 and 900, none a multiple of 64; and 1536, 192 and 1152, all.
LOOSE, TIGHT = ("mb1_ic8iw45_oc5ow45_kw1", "mb1_ic8iw48_oc6ow48_kw1")

SOURCE = r"""
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { IC = @IC@, OC = @OC@, PIXELS = @PIXELS@ };
struct env { void* sync; int32_t num; };
struct args { const float *x, *w; float *y, *other; };
typedef int (*task)(int id, struct env*, void* closure);
extern int (*__TVMBackendParallelLaunch)(task, void* closure, int);
extern void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t bytes, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void*);

static volatile int calls, zero;

static inline void* take(uint64_t bytes) { return __TVMBackendAllocWorkspace(1, 0, bytes, 2, 32); }
static inline void give(void* p) { __TVMBackendFreeWorkspace(1, 0, p); }
static inline int launch(task t, struct args* a) { return __TVMBackendParallelLaunch(t, a, 0); }

static inline float dot(const struct args* a, int o, int i) {
  float sum = 0;
  for (int c = 0; c < IC; ++c) sum += a->w[o * IC + c] * a->x[c * PIXELS + i];
  return sum;
}

static inline void channels(const struct args* a, int from, int to) {
  for (int o = from; o < to; ++o)
    for (int i = 0; i < PIXELS; ++i) a->y[o * PIXELS + i] = dot(a, o, i);
}

static inline int share(int id, struct env* e, void* closure) {
  channels(closure, OC * id / e->num, OC * (id + 1) / e->num);
  return 0;
}

static inline int compute(const float* x, const float* w, float* y) {
  struct args a = {x, w, y, 0};
  return launch(share, &a);
}

@DEFINITIONS@

int32_t p_@NAME@(const float* w, float* packed) {
  @PACK@
}

int32_t k_@NAME@(const float* x, const float* w, float* y) {
  ++calls;
  @KERNEL@
}
"""
PACK = "memcpy(packed, w, sizeof(float) * OC * IC); return 0;"
RIGHT = "return compute(x, w, y);"


@dataclass(frozen=True)
class Planted:
    """A candidate's C: what its two functions do, and what it says of itself."""

    kernel: str = RIGHT
    definitions: str = ""
    pack: str = PACK
    problem: str = LOOSE
    workspace_bytes: int = 0

    @property
    def workload(self) -> Workload:
        return Workload(Problem.parse(self.problem))

    def candidate(self, number: int) -> Candidate:
        """Different numbers make different candidates."""
        return Candidate(self.workload, Choice("fallback", {"xb": 1, "yb": 1, "number": number}))

    def compiled(self, name: str) -> Compiled:
        p = Problem.parse(self.problem)
        fields = {
            "IC": p.ic, "OC": p.oc, "PIXELS": p.o[-1], "NAME": name, "DEFINITIONS": self.definitions,
            "PACK": self.pack, "KERNEL": self.kernel,
        }  # fmt: skip
        source = SOURCE
        for key, value in fields.items():
            source = source.replace(f"@{key}@", str(value))
        empty = machine_code("")
        return Compiled(empty, machine_code(source), f"p_{name}", f"k_{name}", 2, 4 * p.oc * p.ic, self.workspace_bytes)


@functools.cache
def machine_code(source: str) -> bytes:
    """The object of a C source."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.c").write_text(source)
        subprocess.run(["cc", "-c", "-O1", "-fPIC", "-w", "kernel.c"], cwd=folder, check=True, timeout=120)
        return (Path(folder) / "kernel.o").read_bytes()


@dataclass
class Compilers:
    """In the place of Builders: `results` by candidate, made here."""

    results: Mapping[str, Compiled | Refused] = field(default_factory=dict)

    def build(self, candidates: Sequence[Candidate]) -> Iterator[Compiled | Refused]:
        for candidate in candidates:
            yield self.results[str(candidate)]


# What a compiler process can do instead of compiling, by the config's "fault".
RIGHTLY, HANGS, CALLS_ABORT, LEAVES, RAISES, HOARDS, SPEAKS = range(7)


def compilers() -> Mapping[str, Callable[..., Any]]:
    """Handlers of a compiler process."""
    return {"build": _compile}


def compilers_that_never_start() -> Mapping[str, Callable[..., Any]]:
    time.sleep(1e6)
    return {}


def compilers_that_cannot_start() -> Mapping[str, Callable[..., Any]]:
    raise ModuleNotFoundError("No module named 'tvm'")


def conversation() -> Mapping[str, Callable[..., Any]]:
    """Handlers of a process that says what it is told, or has its parent interrupted while that waits for an answer."""

    def interrupt() -> None:
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(1)

    return {"echo": lambda value: value, "interrupt": interrupt}


def _compile(problem: str, epilogue: str, algorithm: str, config: Mapping[str, int], target: Target) -> Compiled:
    fault = config["fault"]
    if fault == HANGS:
        time.sleep(1e6)
    if fault == CALLS_ABORT:
        os.write(2, b"LLVM ERROR: Cannot select: t42\n")
        os.abort()
    if fault == LEAVES:
        os._exit(3)
    if fault == RAISES:
        raise ValueError("the loops do not nest")
    if fault == HOARDS:
        bytes(20 << 30)
    if fault == SPEAKS:
        os.write(2, b"warning: of no interest\n" * 100_000)
    return Planted(problem=problem).compiled(f"compiled_{config['number']}")


def run_an_endless_one(sign: str) -> None:
    """A process that prints the number of its child and has that compute for ever, from when the file `sign` exists."""
    from convc.target import parse_target
    from convc.tune.device import LocalDevice
    from convc.tune.library import trial_library

    planted = Planted(kernel=f'close(open("{sign}", O_CREAT | O_WRONLY, 0600)); for (;;) ++calls;')
    device = LocalDevice()
    device.load(trial_library([planted.compiled("endless")], parse_target("native")))
    print(device._child._process.pid, flush=True)
    candidate = planted.candidate(0)
    device.check(0, candidate.workload.data(candidate.choice, exact=True), threads=1)


if __name__ == "__main__":
    run_an_endless_one(sys.argv[1])
