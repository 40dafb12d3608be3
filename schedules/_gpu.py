"""What schedules for GPUs share: what a kernel costs there, by occupancy, waves and the tightest of the machine's
limits, and small steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convc.algorithm import Config
from convc.dtypes import HALVES, definition_error
from convc.gpu import REGISTERS, WARP, Gpu
from convc.ir.check import SUMS
from convc.problem import Problem
from convc.target import GpuTarget, Target

LAUNCH = 1.5e-6  # seconds from one kernel of a graph to the next, on an H200
REACHED = 0.82  # of the multiply-adds a cycle, at best: convolutions with 64 to 512 channels on an H200
FULL = 8  # resident warps from which multiply-adds of independent accumulators hide their latency
LATENCY = 700.0  # cycles from asking global memory to having stored it in shared memory


@dataclass(frozen=True)
class Block:
    """A thread block of a kernel: what it takes of a multiprocessor, and what it does there.

    cycles   multiply-adds and accesses to shared memory, of a block alone on its multiprocessor.
    waits    cycles that it waits for memory where no other block fills them.
    moved    bytes that it asks of L2.
    reached  of the rate that `cycles` reckon with, at best.
    """

    threads: int
    registers: int
    shared: int
    cycles: float
    waits: float
    moved: float
    reached: float = REACHED

    def resident(self, gpu: Gpu) -> int:
        """Blocks on a multiprocessor at once; 0 where not one fits."""
        limits = [
            gpu.blocks, gpu.threads // self.threads, REGISTERS // (rounded(self.registers, 8) * self.threads),
            gpu.shared // max(self.shared + 1024, 1),
        ]  # fmt: skip
        return min(limits) if self.shared <= gpu.shared_block else 0


@dataclass(frozen=True)
class Cost:
    """Seconds of a kernel, and which limit they come from."""

    seconds: float
    limit: str


def cost(block: Block, count: int, compulsory: float, gpu: Gpu) -> Cost:
    """`count` equal blocks, of a kernel that must move `compulsory` bytes to and from memory."""
    resident = block.resident(gpu)
    if resident == 0:
        return Cost(float("inf"), "resources")
    shared_by = min(resident, -(-count // gpu.multiprocessors))  # blocks that one multiprocessor works on at once
    waves = -(-count // (gpu.multiprocessors * shared_by))
    warps = shared_by * block.threads / WARP
    busy = block.cycles * shared_by / (block.reached * min(1.0, warps / FULL))
    computing = waves * busy / gpu.clock
    waiting = waves * (block.cycles + block.waits) / gpu.clock
    limits = {
        "multiply-adds" if waves > 1 or count >= gpu.multiprocessors else "too few blocks": computing,
        "latency": waiting,
        "L2": count * block.moved / (gpu.l2_rate * gpu.clock),
        "memory": compulsory / (0.85 * gpu.bandwidth),
    }
    limit = max(limits, key=lambda name: limits[name])
    return Cost(LAUNCH + limits[limit], limit)


def modelled(
    cost: Callable[[Problem, GpuTarget, Config], Cost],
) -> tuple[Callable[[Problem, Target, Config], float], Callable[[Problem, Target, Config], str]]:
    """`seconds` and `limit` of an Algorithm whose model is `cost`."""

    def seconds(p: Problem, target: Target, c: Config) -> float:
        assert isinstance(target, GpuTarget)
        return cost(p, target, c).seconds

    def limit(p: Problem, target: Target, c: Config) -> str:
        assert isinstance(target, GpuTarget)
        return cost(p, target, c).limit

    return seconds, limit


def size(p: Problem) -> int:
    """Bytes of a number of x."""
    return np.dtype(p.dtype).itemsize


def lanes(p: Problem, target: Target) -> int:
    """Channels of the problem's type in one access of 16 bytes."""
    return target.lanes * max(1, 4 // size(p))


def error(p: Problem, c: Config) -> float:
    """One rounding a term (Higham 2002, section 3.1); 2-byte types are summed in float32 and rounded at the end."""
    return definition_error(p.dtype, p.reduction)


def wide(x: Any) -> Any:
    """A 2-byte float as float32 and an 8-bit integer as int32, in which their products are exact."""
    dtype = str(x.ty)
    return x.astype("float32") if dtype in HALVES else x.astype(SUMS[dtype]) if dtype in SUMS else x


def streamed(moved: float, gpu: Gpu, *, far: bool = False) -> float:
    """Seconds of a kernel that does little but move so many bytes once, `far` at the memory's rate in any case."""
    rate = gpu.l2_rate * gpu.clock if moved < gpu.l2 / 2 and not far else 0.85 * gpu.bandwidth
    return LAUNCH + moved / rate


def inline(sch: Any, names: set[str]) -> None:
    """Sblocks of these names, where there are any, are computed where they are read."""
    for sblock in sch.get_child_blocks(sch.get_sblock("root")):
        if sch.get(sblock).name_hint in names:
            sch.compute_inline(sblock)


def rounded(value: int, step: int) -> int:
    return -(-value // step) * step
