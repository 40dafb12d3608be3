"""Every element of the result by a thread of its own, which sums in a register: what fits any definition."""

from __future__ import annotations

import math
from typing import Any

from convc.algorithm import Config
from convc.problem import Problem
from convc.schedules import _gpu
from convc.target import GpuTarget, Target

THREADS = 128  # of a block
MULTIPLY = 6.0  # instructions a multiply-add: two loads, their addresses, the test for padding
IN_FLIGHT = 4  # products whose operands a thread has asked for before it needs the first
APART = 0.7  # of the memory's bandwidth, for accesses of 4 bytes


def schedule(sch: Any, p: Problem, target: Target, c: Config) -> None:
    """Padded x and copies of y are computed where they are read."""
    y, z = sch.get_sblock("y"), sch.get_sblock("z")
    for sblock in sch.get_child_blocks(sch.get_sblock("root")):
        if sch.get(sblock).name_hint not in ("y", "z"):
            sch.compute_inline(sblock)
    flat = sch.fuse(*sch.get_loops(z))
    block, thread = sch.split(flat, [None, THREADS])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.compute_at(y, thread)
    sch.set_scope(y, 0, "local")


def cost(p: Problem, target: GpuTarget, c: Config) -> _gpu.Cost:
    gpu, size = target.gpu, 8 if p.dtype == "float64" else 4
    count = p.mb * p.oc * math.prod(p.o)
    instructions = MULTIPLY * p.reduction + 20
    rate = gpu.multiprocessors * gpu.fma * gpu.clock * (1 if size == 4 else 1 / 32)
    busy = min(1.0, count / (gpu.multiprocessors * 512))
    moved = size * (p.mb * p.ic * math.prod(p.i) + p.oc * p.reduction + count)
    waiting = _gpu.LATENCY * (1 + p.reduction / IN_FLIGHT) / gpu.clock
    computing, moving = count * instructions / (rate * max(busy, 1e-9)), moved / (APART * gpu.bandwidth)
    limits = {"instructions" if busy == 1 else "too few threads": computing, "memory": moving, "latency": waiting}
    limit = max(limits, key=lambda name: limits[name])
    return _gpu.Cost(_gpu.LAUNCH + limits[limit], limit)


seconds, limit = _gpu.modelled(cost)
