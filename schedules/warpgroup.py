"""Convolution as a product of matrices by warpgroups (wgmma): float16 and bfloat16, and int8 and uint8 summed in int32,
on GPUs of sm_90a alone.

Source: NVIDIA, PTX ISA, "Asynchronous warpgroup-level matrix instructions"; for the rounding Khattak and Mikaitis,
Accurate Models of NVIDIA Tensor Cores (arXiv:2512.07004).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from convc.algorithm import Algorithm, Config
from convc.dtypes import HALVES
from convc.gpu import SCHEDULERS, WARP, most_registers
from convc.ir.check import SUMS
from convc.problem import Problem
from convc.schedules import _gpu, _matrix, _mma, _wgmma, tensor_core
from convc.schedules._matrix import SPLITS
from convc.target import GpuTarget, Target

ARCHS = ("sm_90a",)
WARPS = (_wgmma.GROUP, 2 * _wgmma.GROUP)  # of a block
# Pieces of 16 x 8 of each warp: the columns of an instruction are those that integers may have.
TILES = tuple((tm, tn) for tm in (1, 2) for tn in (32, 24, 16, 12, 8, 6, 4) if tm * tn <= 32)
STAGES = (4, 3, 2)
BANKS = 128  # bytes of shared memory a cycle
# Fitted to an H200: 174 runs of ResNet-50's and VGG-16's layers, root mean square of the error 11 %.
REACHED = 0.9  # of the rate of wgmma
BARRIER = 100.0  # cycles that a block alone waits in a step
GATHERED = 0.25  # cycles of a multiprocessor that 16 bytes of x take


def refuses(p: Problem, target: Target) -> str | None:
    assert isinstance(target, GpuTarget)
    if reason := refuses_target(p, target) or tensor_core.refuses(p, target):
        return reason
    return None if space(p, target) else "no tile fits the problem, or the channels do not fill accesses"


def refuses_target(p: Problem, target: GpuTarget) -> str | None:
    """Why there are no instructions for the type of the problem on a target."""
    if target.archs != ARCHS:
        return f"{target.label} is not sm_90a alone"
    if p.dtype not in HALVES and p.dtype not in SUMS:
        return f"warpgroups do not multiply {p.dtype}"
    return None


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    assert isinstance(target, GpuTarget)
    return _matrix.ranked(p, target, configs, seconds)


def configs(p: Problem, target: GpuTarget, blocks: tuple[int, int]) -> Iterator[Config]:
    """Every config between two layouts that compiles without spills and fits the machine."""
    xb, yb = blocks
    for wm in WARPS:
        for tm, tn in TILES:
            for bk in (2, 1):
                tile = {"xb": xb, "yb": yb, "wm": wm, "wn": 1, "tm": tm, "tn": tn, "bk": bk}
                if not _mma.is_vector(p, tile) or not _fits(p, tile):
                    continue
                for st in STAGES:
                    staged = {**tile, "st": st}
                    if tensor_core.shared_bytes(staged) <= target.l1 and (st == 2 or _mma.steps(p, staged) >= st):
                        yield from ({**staged, "sk": sk} for sk in SPLITS if tensor_core.splits(p, staged, sk))


def _fits(p: Problem, c: Config) -> bool:
    return tensor_core.is_full(p, c) and registers(p, c) <= most_registers(WARP * c["wm"])


def registers(p: Problem, c: Config) -> int:
    """An estimate: accumulators, addresses, and those of each copy."""
    copies = 4 * c["bk"] * (_mma.block_rows(c) + _mma.block_columns(c)) // (WARP * c["wm"])
    return 4 * c["tm"] * c["tn"] + 40 + copies


def cost(p: Problem, target: GpuTarget, c: Config) -> _gpu.Cost:
    count = tensor_core.blocks(p, c) * c["sk"]
    whole = _gpu.cost(block(p, target, c), count, _matrix.compulsory(p), target.gpu)
    return _matrix.with_sums(whole, p, target, c, far=True)


def block(p: Problem, target: GpuTarget, c: Config) -> _gpu.Block:
    """A block's part of the sum."""
    tall, wide, warps = _mma.block_rows(c), _mma.block_columns(c), c["wm"]
    many, chunks = _mma.part_steps(p, c), 4 * c["bk"] * (tall + wide)
    each = step(p, target, c, chunks, REACHED) + GATHERED * tensor_core.sectors(p) * 4 * c["bk"] * tall
    epilogue = 12.0 * tall * wide / WARP / SCHEDULERS
    waits = _gpu.LATENCY + many * (BARRIER + max(0.0, _gpu.LATENCY - (c["st"] - 1) * each))
    moved, shared = float(many * chunks * 16), tensor_core.shared_bytes(c)
    return _gpu.Block(warps * WARP, registers(p, c), shared, many * each + epilogue, waits, moved, 1.0)


def step(p: Problem, target: GpuTarget, c: Config, chunks: int, reached: float) -> float:
    """Cycles of a step that copies so many chunks of 16 bytes to shared memory, where products reach that share of the
    rate; instructions read both operands."""
    tall, wide = _mma.block_rows(c), _mma.block_columns(c)
    products = tall * wide * _mma.depth(p, c) / (reached * target.gpu.wgmma * tensor_core.RATES[p.dtype])
    shared = 16 / BANKS * (chunks + 4 * c["bk"] * (tall + wide * c["tm"] * c["wm"] // _wgmma.GROUP))
    return max(products, shared, chunks / WARP * tensor_core.COPY / SCHEDULERS)


seconds, limit = _gpu.modelled(cost)

ON_CUDA = Algorithm(
    name="warpgroup",
    source="PTX ISA, wgmma",
    refuses=refuses,
    space=space,
    seconds=seconds,
    pack=_wgmma.pack,
    define=_wgmma.define,
    schedule=_wgmma.schedule,
    error=tensor_core.error,
    memory=tensor_core.memory,
    kind="cuda",
    limit=limit,
)
