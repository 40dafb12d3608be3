"""Convolution as a product of matrices on tensor cores: float16 and bfloat16, float32 rounded to tf32, and int8 and
uint8 summed in int32.

Source: Markidis et al., NVIDIA Tensor Core Programmability, Performance & Precision (arXiv:1803.04014); for the
rounding Fasi et al., Numerical Behavior of NVIDIA Tensor Cores (PeerJ Computer Science 7:e330).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from convc.algorithm import Algorithm, Config
from convc.dtypes import HALVES, ROUNDING
from convc.gpu import MOST_REGISTERS, SCHEDULERS, WARP
from convc.ir.check import SUMS
from convc.problem import Problem
from convc.schedules import _gpu, _matrix, _mma
from convc.schedules._matrix import SPLITS, columns, needs_padding, rows
from convc.target import GpuTarget, Target

CAPABILITY = (8, 0)
RATES = {"float16": 1.0, "bfloat16": 1.0, "float32": 0.5, "int8": 2.0, "uint8": 2.0}  # of products, against float16
# (rows, columns) of warps, and pieces of 16 x 8 of each.
WARPS = ((2, 2), (4, 2), (2, 4), (4, 1), (2, 1), (1, 2), (1, 4), (8, 1))
TILES = (
    (4, 8), (4, 6), (3, 8), (4, 4), (2, 8), (3, 4), (2, 6), (2, 4), (4, 2), (2, 2), (1, 4), (1, 2), (4, 1), (2, 1)
)  # fmt: skip
STAGES = (4, 3, 2)
DEEPEST = 6  # where weights come from memory
MARGIN = 19  # registers that the estimate may be off by
# Fitted to an H200: 140 runs of ResNet-50's layers, root mean square of the error 10 %.
REACHED = 0.9  # of the rate of mma.sync
BARRIER = 100.0  # cycles that a block alone waits in a step
READ = 3.0  # cycles of 16 bytes a lane from shared memory
LINE = 128  # bytes of L1 that an access reads at once
COPY = 14.0  # instructions of a copy of 16 bytes: addresses, tests for padding
ALONE = 25.0  # and of a copy of one element
GATHERED = 0.45  # cycles of a multiprocessor that 16 bytes of x take; weights, read by many blocks at once, take none
WINDOW = 0.6  # of that, where taps are read again from L1
FAR = 1.7  # times the latency of L2, that memory's is, where L2 does not hold the weights


def refuses(p: Problem, target: Target) -> str | None:
    assert isinstance(target, GpuTarget)
    if p.kind == "transposed":
        return "the problem is transposed"
    if target.capability < CAPABILITY:
        return f"{target.label} is older than sm_80"
    if p.dtype not in RATES:
        return f"tensor cores do not multiply {p.dtype}"
    if p.dtype == "float32" and not target.tf32:
        return "float32 products may not be rounded to tf32 (--dtype tf32 allows it)"
    if p.ocg < _mma.PIECE[1]:
        return f"{p.ocg} output channels a group fill less than a tile"
    if p.reduction < 16:
        return f"{p.reduction} products an element are less than an instruction takes"
    return None if space(p, target) else f"no tile divides the {p.ocg} output channels of a group"


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    assert isinstance(target, GpuTarget)
    return _matrix.ranked(p, target, configs, seconds)


def configs(p: Problem, target: GpuTarget, blocks: tuple[int, int]) -> Iterator[Config]:
    """Every config between two layouts that compiles without spills and fits the machine."""
    xb, yb = blocks
    stages = (DEEPEST, *STAGES) if _is_far(p, target) else STAGES
    for wm, wn in WARPS:
        for tm, tn in TILES:
            for bk in (1, 2):
                tile = {"xb": xb, "yb": yb, "wm": wm, "wn": wn, "tm": tm, "tn": tn, "bk": bk}
                if not _fits(p, tile):
                    continue
                for st in stages if _mma.is_vector(p, tile) else (2,):
                    staged = {**tile, "st": st}
                    if shared_bytes(staged) <= target.l1 and (st == 2 or _mma.steps(p, staged) >= st):
                        yield from ({**staged, "sk": sk} for sk in SPLITS if splits(p, staged, sk))


def _fits(p: Problem, c: Config) -> bool:
    return is_full(p, c) and registers(p, c) <= MOST_REGISTERS - MARGIN


def is_full(p: Problem, c: Config) -> bool:
    """Whether most of what blocks multiply is of the problem, and each of one group."""
    if p.g > 1 and p.ocg % _mma.block_columns(c):
        return False
    if c["bk"] > 1 and _mma.depth(p, c) > _gpu.rounded(p.reduction, 32):
        return False
    tall, wide = rows(p), columns(p, c)
    waste = _gpu.rounded(tall, _mma.block_rows(c)) * _gpu.rounded(wide, _mma.block_columns(c))
    least = _gpu.rounded(tall, 32) * _gpu.rounded(wide, 32 if p.g == 1 else _mma.PIECE[1])
    return waste <= 1.6 * least


def splits(p: Problem, c: Config, sk: int) -> bool:
    return sk == 1 or _mma.steps(p, c) >= 4 * sk


def registers(p: Problem, c: Config) -> int:
    """An estimate: accumulators, most of the operands of a group of products, addresses, and those of each copy; of
    8-bit operands some more, as their epilogues begin in int32 and end in bytes."""
    copies = 4 * c["bk"] * (_mma.block_rows(c) + _mma.block_columns(c)) // (WARP * c["wm"] * c["wn"])
    return 4 * c["tm"] * c["tn"] + 6 * c["tm"] + 3 * c["tn"] + (46 if p.dtype in SUMS else 26) + 2 * copies


def shared_bytes(c: Config) -> int:
    """Both operands of `st` steps: 64 bytes of a row or column in a group, and what keeps chunks on their banks."""
    return c["st"] * c["bk"] * (64 * (_mma.block_rows(c) + _mma.block_columns(c)) + 128)


def cost(p: Problem, target: GpuTarget, c: Config) -> _gpu.Cost:
    lines = max(1, WARP * p.s[-1] * c["xb"] * _gpu.size(p) // LINE)  # in which a warp finds an element of each pixel
    copied = COPY if _mma.is_vector(p, c) else (ALONE + SCHEDULERS * lines) * _mma.chunk(p)
    work = block(p, target, c, copied, sectors(p))
    return _matrix.with_sums(_gpu.cost(work, blocks(p, c) * c["sk"], _matrix.compulsory(p), target.gpu), p, target, c)


def sectors(p: Problem) -> float:
    """Of 32 bytes, that a chunk of x takes: less where taps are read again from L1."""
    return min(2, p.s[-1]) * (WINDOW if p.taps > 1 and needs_padding(p) else 1.0)


def blocks(p: Problem, c: Config) -> int:
    """Of a part."""
    return -(-rows(p) // _mma.block_rows(c)) * -(-columns(p, c) // _mma.block_columns(c))


def block(p: Problem, target: GpuTarget, c: Config, copied: float = COPY, gathered: float = 1.0) -> _gpu.Block:
    """A block's part of the sum, where a chunk takes `copied` instructions, and one of x the time of `gathered`."""
    tall, wide, warps = _mma.block_rows(c), _mma.block_columns(c), c["wm"] * c["wn"]
    many, chunks = _mma.part_steps(p, c), 4 * c["bk"] * (tall + wide)
    products = tall * wide * _mma.depth(p, c) / (REACHED * target.gpu.tensor * RATES[p.dtype])
    shared = READ * (warps * c["bk"] * (2 * c["tm"] + c["tn"]) + chunks / WARP)
    issued = warps * c["bk"] * (2 * c["tm"] * c["tn"] + 6 * c["tm"] + c["tn"]) + chunks / WARP * copied
    step = max(products, shared, issued / SCHEDULERS) + GATHERED * gathered * 4 * c["bk"] * tall
    epilogue = 12.0 * tall * wide / WARP / SCHEDULERS
    latency = _gpu.LATENCY * (FAR if _is_far(p, target) else 1.0)
    waits = latency + many * (BARRIER + max(0.0, latency - (c["st"] - 1) * step))
    moved = float(many * chunks * 16)
    return _gpu.Block(warps * WARP, registers(p, c), shared_bytes(c), many * step + epilogue, waits, moved)


def _is_far(p: Problem, target: GpuTarget) -> bool:
    """Whether L2 does not hold the weights."""
    return p.oc * p.reduction * _gpu.size(p) > target.gpu.l2 / 2


seconds, limit = _gpu.modelled(cost)


def error(p: Problem, c: Config) -> float:
    """Products are exact but for tf32, whose factors are rounded to 11 bits. Sums are of float32, four products at a
    time or more, and truncated where the terms are aligned: each of five by 2^-23, and their sum, which is 3 units of
    2^-24 a term. A result of 2 bytes is rounded once. Integers are exact."""
    if p.dtype in SUMS:
        return 0.0
    summed = 3.0 * p.reduction
    if p.dtype in HALVES:
        return 1.0 + summed * ROUNDING["float32"] / ROUNDING[p.dtype]
    return ((1 + 2.0**-11) ** 2 - 1) / ROUNDING["float32"] + summed


def memory(p: Problem, c: Config) -> int:
    return _matrix.parts_bytes(p, c, (_mma.block_rows(c), _mma.block_columns(c)))


ON_CUDA = Algorithm(
    name="tensor_core",
    source="arXiv:1803.04014",
    refuses=refuses,
    space=space,
    seconds=seconds,
    pack=_mma.pack,
    define=_mma.define,
    schedule=_mma.schedule,
    error=error,
    memory=memory,
    kind="cuda",
    limit=limit,
)
