"""The twelve layers of the im2win papers on one core: convc's im2win and direct convolution against im2col + GEMM.

Time includes every transform of x; weights are packed before, as they are when an artifact is loaded.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convc.algorithm import Choice, Config, algorithms
from convc.ir import Const, Conv, Input, TensorType
from convc.layout import Layout
from convc.problem import Problem
from convc.report.table import bytes_text, draw, table, us_text
from convc.report.timing import Timing, race, timed
from convc.target import Target, parse_target

# Without padding. Layer 4 has 64 input channels in the CPU code of the papers and 32 in their GPU code.
LAYERS = (
    "ic3ih227_oc96_kh11sh4", "ic3ih231_oc96_kh11sh4", "ic3ih227_oc64_kh7sh2", "ic64ih224_oc64_kh7sh2",
    "ic96ih24_oc256_kh5", "ic256ih12_oc512_kh3", "ic3ih224_oc64_kh3", "ic64ih112_oc128_kh3", "ic64ih56_oc64_kh3",
    "ic128ih28_oc128_kh3", "ic256ih14_oc256_kh3", "ic512ih7_oc512_kh3",
)  # fmt: skip
OURS = ("im2win", "direct")
IM2COL = "im2col"
TOLERANCE = 1e-4  # of the largest output, for sums of up to 4608 products
SEED = 0
# What a kernel asks of its surroundings: memory for its temporaries.
WORKSPACE = """
#include <stdint.h>
#include <stdlib.h>
extern __attribute__((weak)) void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern __attribute__((weak)) int (*__TVMBackendFreeWorkspace)(int, int, void*);
static char* memory;
static uint64_t used;
static void* take(int type, int id, uint64_t bytes, int code, int bits) {
  void* found = memory + used;
  (void)type, (void)id, (void)code, (void)bits;
  used += (bytes + 63) / 64 * 64;
  return found;
}
static int give(int type, int id, void* found) {
  (void)type, (void)id;
  used = (uint64_t)((char*)found - memory);
  return 0;
}
void set_workspace(uint64_t bytes) {
  if (!&__TVMBackendAllocWorkspace) return;
  memory = aligned_alloc(4096, (bytes + 8191) / 4096 * 4096);
  __TVMBackendAllocWorkspace = take;
  __TVMBackendFreeWorkspace = give;
}
"""


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer: `run` it, bytes of `extra` memory, y in the model's layout after a run."""

    name: str
    run: Callable[[], object]
    extra: int
    y: Callable[[], np.ndarray[Any, Any]]


def build(p: Problem, name: str, config: Config, target: Target) -> tuple[ctypes.CDLL, ctypes.CDLL, tuple[int, ...]]:
    """Libraries with `kernel`: the convolution and the packing of its weights; extents of the packed weights."""
    from convc.lower.build import build_object
    from convc.lower.kernel import lower
    from convc.lower.packed import packed_shape
    from convc.plan.plan import Group, Kernel, Packing

    x = Input("x", TensorType((p.mb, p.ic, *p.i), p.dtype))
    w = Const(np.zeros(p.weights, p.dtype))
    node = Conv(x, w, None, p.s, tuple((0, 0) for _ in p.i), p.d, p.g)
    group, choice = Group((node,), (x, w)), Choice(name, config)
    kernel = Kernel(group, (choice.x_layout, Layout()), choice.y_layout, choice)
    packing = Packing(w, p, choice)
    libraries = [load(*build_object(lower(part, target), "kernel", target)) for part in (kernel, packing)]
    return libraries[0], libraries[1], packed_shape(packing)


def load(code: bytes, workspace: int) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "kernel.o").write_bytes(code)
        (root / "workspace.c").write_text(WORKSPACE)
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", "kernel.so", "workspace.c", "kernel.o", "-lm"]
        subprocess.run(command, cwd=root, check=True)
        library = ctypes.CDLL(str(root / "kernel.so"))
    library.set_workspace(ctypes.c_uint64(workspace))
    return library


def aligned(shape: Sequence[int], dtype: str) -> np.ndarray[Any, Any]:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def laid_out(x: np.ndarray[Any, Any], layout: Layout) -> np.ndarray[Any, Any]:
    out = aligned(layout.physical(x.shape), x.dtype.name)
    if layout.block == 1:
        out[...] = x
        return out
    for channel in range(x.shape[1]):
        out[:, channel // layout.block, ..., channel % layout.block] = x[:, channel]
    return out


def compiled(p: Problem, name: str, config: Config, target: Target, data: Mapping[str, Any]) -> Contender:
    kernel, packing, packed_shape = build(p, name, config, target)
    x_layout, y_layout = Layout(config["xb"]), Layout(config["yb"])
    x, w = laid_out(data["x"], x_layout), laid_out(data["w"], Layout())
    packed, y = aligned(packed_shape, p.dtype), aligned(y_layout.physical((p.mb, p.oc, *p.o)), p.dtype)

    def pointers(*arrays: np.ndarray[Any, Any]) -> list[ctypes.c_void_p]:
        return [ctypes.c_void_p(array.ctypes.data) for array in arrays]

    if packing.kernel(*pointers(w, packed)):
        raise RuntimeError(f"{name} cannot pack the weights of {p}")
    given = pointers(x, packed, y)

    def logical() -> np.ndarray[Any, Any]:
        return np.stack([y[:, c // y_layout.block, ..., c % y_layout.block] for c in range(p.oc)], 1)

    arrays = (x, packed, y)  # alive as long as `run`
    return Contender(name, lambda: kernel.kernel(*given) or arrays, algorithms()[name].memory(p, config), logical)


def im2col(p: Problem, data: Mapping[str, Any]) -> Contender | None:
    """torch's unfold and matmul, or None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    x, w = torch.from_numpy(data["x"]), torch.from_numpy(data["w"]).reshape(p.oc, -1)
    found: dict[str, Any] = {}

    def run() -> None:
        found["y"] = torch.matmul(w, torch.nn.functional.unfold(x, p.k, stride=p.s))

    columns = p.mb * p.reduction * math.prod(p.o) * np.dtype(p.dtype).itemsize
    return Contender(IM2COL, run, columns, lambda: found["y"].numpy().reshape(p.mb, p.oc, *p.o))


def config_of(p: Problem, name: str, target: Target, data: Mapping[str, Any], *, tries: int, block: int) -> Config:
    """The fastest of the first `tries` configs that read x in blocks of `block`."""
    algorithm = algorithms()[name]
    if reason := algorithm.refuses(p, target):
        raise SystemExit(f"{name} refuses {p} on {target.label}: {reason}")
    configs = [c for c in algorithm.space(p, target) if c["xb"] == block][:tries]
    if len(configs) == 1:
        return configs[0]
    measures = {str(i): _measure(compiled(p, name, c, target, data)) for i, c in enumerate(configs)}
    times = race(measures, rounds=3)
    return configs[int(min(times, key=lambda name: times[name].median))]


def _measure(contender: Contender) -> Callable[[], float]:
    return lambda: timed(contender.run)


def check(contenders: Sequence[Contender], layer: str) -> None:
    """Every contender gives the same y."""
    for contender in contenders:
        contender.run()
    expected = contenders[-1].y()
    for contender in contenders[:-1]:
        error = float(np.abs(contender.y() - expected).max() / np.abs(expected).max())
        if not error < TOLERANCE:
            raise SystemExit(f"{contender.name} is wrong on {layer}: {error:.1e} of the largest output")


def bench(number: int, target: Target, options: argparse.Namespace) -> dict[str, Any]:
    """Times, GFLOP/s and memory of one layer by contender."""
    p = Problem.parse(f"mb{options.batch}_{LAYERS[number - 1]}")
    rng = np.random.default_rng(SEED)
    data = {"x": rng.standard_normal((p.mb, p.ic, *p.i)), "w": rng.standard_normal(p.weights)}
    data = {key: value.astype(p.dtype) for key, value in data.items()}
    block = 1 if options.plain or p.ic < target.lanes else target.lanes
    configs = {n: config_of(p, n, target, data, tries=options.tries, block=block) for n in OURS}
    contenders = [compiled(p, n, c, target, data) for n, c in configs.items()]
    contenders += [peer] if (peer := im2col(p, data)) else []
    check(contenders, LAYERS[number - 1])
    times = race({c.name: _measure(c) for c in contenders}, rounds=options.rounds)
    return {
        "layer": number, "problem": str(p), "x": str(Layout(block)),
        "configs": {name: dict(config) for name, config in configs.items()},
        "us": {name: t.median for name, t in times.items()},
        "spread": {name: t.spread for name, t in times.items()},
        "least": {name: t.least for name, t in times.items()},
        "gflops": {name: _gflops(p, t) for name, t in times.items()},
        "extra_bytes": {c.name: c.extra for c in contenders},
    }  # fmt: skip


def _gflops(p: Problem, timing: Timing) -> float:
    return p.flops / timing.median * 1e-3


def shown(found: Sequence[Mapping[str, Any]]) -> str:
    names = [n for n in (*OURS, IM2COL) if n in found[0]["us"]]
    columns = ["layer", "problem", "x", *(f">{n} us" for n in names), *(f">{n} GFLOP/s" for n in names)]
    columns += [f">{n} / im2win" for n in names[1:]] + [f">{n} memory" for n in names]
    rows = []
    for row in found:
        us = row["us"]
        cells = [row["layer"], LAYERS[row["layer"] - 1], row["x"], *(us_text(us[n]) for n in names)]
        cells += [f"{row['gflops'][n]:.0f}" for n in names] + [f"x{us[n] / us['im2win']:.2f}" for n in names[1:]]
        rows.append([*cells, *(bytes_text(row["extra_bytes"][n]) for n in names)])
    means = {n: statistics.geometric_mean(row["us"][n] / row["us"]["im2win"] for row in found) for n in names[1:]}
    rates = {n: statistics.geometric_mean(row["gflops"][n] for row in found) for n in names}
    last = ["", "geometric mean", "", *("" for _ in names), *(f"{rates[n]:.0f}" for n in names)]
    rows.append([*last, *(f"x{means[n]:.2f}" for n in names[1:]), *("" for _ in names)])
    return draw(table(columns, rows, marked=[len(rows) - 1]))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layers", nargs="*", type=int, help="numbers of layers (all)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--target", default="native")
    parser.add_argument("--core", type=int, help="the core to stay on (the last one allowed)")
    parser.add_argument("--tries", type=int, default=1, help="configs to measure before the race, best guess first")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--plain", action="store_true", help="row-major x for every layer, not only for few channels")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if wrong := [n for n in options.layers if not 1 <= n <= len(LAYERS)]:
        parser.error(f"there is no layer {wrong[0]}: they are 1 to {len(LAYERS)}")
    return options


def main(arguments: Sequence[str]) -> None:
    options = parsed(arguments)
    core = max(os.sched_getaffinity(0)) if options.core is None else options.core
    os.sched_setaffinity(0, {core})
    target = parse_target(options.target)
    found = []
    for number in options.layers or range(1, len(LAYERS) + 1):
        print(f"layer {number} of {len(LAYERS)}", file=sys.stderr)
        found.append(bench(number, target, options))
    print(json.dumps(found, indent=1) if options.json else shown(found))


if __name__ == "__main__":
    main(sys.argv[1:])
