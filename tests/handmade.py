"""A plan of two kernels written in C, for tests of all that comes after the kernels.

z = relu(x * w + b) on x [2, 6, 5, 5]: kernel 0 writes x * w with channels in blocks of 4 (the two spare lanes are NaN),
kernel 1 adds b, clips and writes row-major. Kernel 0 takes temporaries from the workspace, in and out of a parallel
loop; w is packed by init (with a temporary too), b is read where the file has it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from convc.ir import Array, Binary, Const, Input, TensorType, Unary
from convc.launch import Launch, Usage
from convc.layout import PLAIN, Layout
from convc.plan.plan import Call, Group, Kernel, Packing, Plan, Slot
from convc.runtime.artifact import Artifact
from convc.runtime.package import package
from convc.target import Target, host_features, host_machine

N, C, H, W, BLOCK = 2, 6, 5, 5, 4
SHAPE = (N, C, H, W)
BLOCKED = 4 * N * 2 * H * W * BLOCK  # bytes of kernel 0's result

HEAD = r"""
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
enum { N = 2, C = 6, HW = 25, BLOCK = 4, BLOCKS = 2 };
struct env { void* sync; int32_t num_task; };
__attribute__((weak)) int (*__TVMBackendParallelLaunch)(int (*)(int, struct env*, void*), void*, int);
__attribute__((weak)) void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
__attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void*);
__attribute__((weak)) int __tvm_ffi_main(void) { return -1; }
"""
SCALE = r"""
struct scale { const float *x, *w; float* y; float* outer; };
static int task(int id, struct env* env, void* closure) {
  struct scale* s = closure;
  float* row = __TVMBackendAllocWorkspace(1, 0, HW * 4, 2, 32);
  if (!row || (uintptr_t)row % 64) return -1;
  for (int p = id; p < N * BLOCKS; p += env->num_task)
    for (int lane = 0; lane < BLOCK; ++lane) {
      const int n = p / BLOCKS, c = p % BLOCKS * BLOCK + lane;
      for (int i = 0; i < HW; ++i) row[i] = c < C ? s->x[(n * C + c) * HW + i] * s->outer[c] : NAN;
      for (int i = 0; i < HW; ++i) s->y[(p * HW + i) * BLOCK + lane] = row[i];
    }
  __TVMBackendFreeWorkspace(1, 0, row);
  return 0;
}
int32_t k_scale(void* x, void* w, void* y) {
  struct scale s = {x, w, y, __TVMBackendAllocWorkspace(1, 0, C * 4, 2, 32)};
  if (!s.outer || s.x[0] > 1e30f) return -1;
  memcpy(s.outer, w, C * 4);
  const int code = __TVMBackendParallelLaunch(task, &s, 0);
  __TVMBackendFreeWorkspace(1, 0, s.outer);
  return code;
}
"""
CLIP = r"""
int32_t k_clip(void* y, void* b, void* z) {
  for (int n = 0; n < N; ++n)
    for (int c = 0; c < C; ++c)
      for (int i = 0; i < HW; ++i) {
        const float v = ((float*)y)[((n * BLOCKS + c / BLOCK) * HW + i) * BLOCK + c % BLOCK] + ((float*)b)[c];
        ((float*)z)[(n * C + c) * HW + i] = fmaxf(v, 0);
      }
  return 0;
}
"""
PACK = r"""
int32_t k_pack(void* w, void* packed) {
  void* copy = __TVMBackendAllocWorkspace(1, 0, C * 4, 2, 32);
  if (!copy) return -1;
  memcpy(copy, w, C * 4);
  memcpy(packed, copy, C * 4);
  return __TVMBackendFreeWorkspace(1, 0, copy);
}
"""


@dataclass(frozen=True)
class Objects:
    objects: tuple[bytes, ...]
    symbols: Mapping[Kernel | Packing, str]
    scratch: Mapping[str, int]
    launches: Mapping[str, tuple[Launch, ...]] = field(default_factory=dict)
    usage: Mapping[str, Mapping[str, tuple[Usage, ...]]] = field(default_factory=dict)


@cache
def compiled(source: str) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.c"
        path.write_text(HEAD + source)
        command = ["cc", "-O1", "-fPIC", "-ffp-contract=off", "-c", path.name, "-o", "kernel.o"]
        subprocess.run(command, cwd=folder, check=True)
        return (Path(folder) / "kernel.o").read_bytes()


def target() -> Target:
    """This machine, with no feature that it could lack."""
    machine = host_machine()
    return Target("generic", f"{machine}-unknown-linux-gnu", 4, 16, ("sse2",))


def weights(seed: int) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    w, b = random.integers(-8, 9, (2, 1, C, 1, 1)).astype(np.float32)
    return w, b


def plan(*, seed: int = 1, label: str = "x") -> Plan:
    x = Input(label, TensorType(SHAPE))
    w, b = (Const(value) for value in weights(seed))
    scaled = Binary("mul", x, w, origin=("first",))
    shifted = Binary("add", scaled, b, origin=("second",))
    z = Unary("relu", shifted, origin=("third",))
    first, second = Group((scaled,), (x, w)), Group((shifted, z), (scaled, b))
    pack = Packing(w)
    scale, clip = Kernel(first, (PLAIN, PLAIN), Layout(BLOCK)), Kernel(second, (Layout(BLOCK), PLAIN), PLAIN)
    value = Slot("arena", 64)
    return Plan(
        (x,), (("z", z),), (first, second),
        init=(Call(pack, (Slot("weights", 0), Slot("packed", 64))),),
        run=(
            Call(scale, (Slot("input", index=0), Slot("packed", 64), value), scale.group.origin),
            Call(clip, (value, Slot("weights", 64), Slot("output", index=0)), clip.group.origin),
        ),
        weights=(("w", 0, w), ("b", 64, b)), weight_bytes=64 + 4 * C, packed_bytes=64 + 4 * C, arena_bytes=64 + BLOCKED,
    )


def objects(of: Plan) -> Objects:
    names = dict(zip([c.kernel for c in (*of.init, *of.run)], ["k_pack", "k_scale", "k_clip"], strict=True))
    scratch = {"k_pack": 64, "k_scale": 64 + 128, "k_clip": 0}
    return Objects((compiled(PACK), compiled(SCALE), compiled(CLIP)), names, scratch)


@cache
def artifact(*, seed: int = 1, name: str = "tiny", label: str = "x", features: tuple[str, ...] = ("sse2",)) -> Artifact:
    made = plan(seed=seed, label=label)
    return package(objects(made), made, replace(target(), features=features), b"model", name=name)


def example(*, seed: int = 1) -> tuple[Array, Array]:
    """Integer-valued x and its exact z."""
    x = np.random.default_rng(seed + 100).integers(-16, 17, SHAPE).astype(np.float32)
    w, b = weights(seed)
    return x, np.maximum(x * w + b, 0)


def has_features() -> bool:
    return bool(host_features())
