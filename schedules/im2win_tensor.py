"""Convolution of stride 1 by windows on warpgroups (wgmma): float16, bfloat16, and int8 and uint8 summed in int32, on
GPUs of sm_90a alone. Where a product of matrices copies x once for every tap, this copies it once: the fastest where
images are small and channels many, as 512 channels of 7 x 7 (20 us for 32 of them on an H200, by `warpgroup` 26).

Source: Lu, Chu and Liu, Im2win: Memory Efficient Convolution On SIMD Architectures (HPEC 2022, arXiv:2306.14320); for
the instructions PTX ISA, "Asynchronous warpgroup-level matrix instructions".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from convc.algorithm import Algorithm, Config
from convc.gpu import SCHEDULERS, WARP, most_registers
from convc.problem import Problem
from convc.schedules import _gpu, _im2win_tensor, _matrix, _mma, _wgmma, tensor_core, warpgroup
from convc.schedules._matrix import columns
from convc.target import GpuTarget, Target

MOST_WASTE = 1.6  # times what a tile multiplies for nothing
# Fitted to an H200: 88 runs of 3 x 3 layers, root mean square of the error 16 %.
REACHED = 0.75  # of the rate of wgmma: eight rows of a tap begin anywhere in the 128 bytes of an access
BARRIER = 55.0  # cycles that a block alone waits in a step
GATHERED = 0.63  # cycles of a multiprocessor that 16 bytes of a window take


def refuses(p: Problem, target: Target) -> str | None:
    assert isinstance(target, GpuTarget)
    if reason := warpgroup.refuses_target(p, target):
        return reason
    if p.kind != "conv" or p.g > 1:
        return "the problem is no convolution of one group"
    if p.taps == 1:
        return "the weights have one tap"
    if any(s > 1 for s in p.s):
        return "the stride is not 1"
    if any(after > min(before, (k - 1) * d) for before, after, k, d in zip(p.p, p.after, p.k, p.d, strict=True)):
        return "there is more padding behind an axis than before it, or than its taps reach"
    if p.icg % _mma.chunk(p) or p.oc < _mma.PIECE[1]:
        return "the channels do not fill accesses"
    return None if space(p, target) else "no window fits shared memory"


@lru_cache(maxsize=4096)
def space(p: Problem, target: Target) -> Sequence[Config]:
    assert isinstance(target, GpuTarget)
    return _matrix.ranked(p, target, configs, seconds)


def configs(p: Problem, target: GpuTarget, blocks: tuple[int, int]) -> Iterator[Config]:
    """Every config between two layouts that compiles without spills and fits the machine."""
    xb, yb = blocks
    if xb != _mma.chunk(p):
        return
    for wm in warpgroup.WARPS:
        for tm, tn in warpgroup.TILES:
            for bk in (2, 1):
                tile = {"xb": xb, "yb": yb, "wm": wm, "wn": 1, "tm": tm, "tn": tn, "bk": bk, "sk": 1}
                if p.icg % _mma.depth(p, tile) == 0 and _fits(p, tile):
                    for st in warpgroup.STAGES:
                        if shared_bytes(p, staged := {**tile, "st": st}) <= target.l1 and steps(p, staged) >= st:
                            yield staged


def _fits(p: Problem, c: Config) -> bool:
    tall = _im2win_tensor.down(p, c) * _mma.block_rows(c)
    wide = _gpu.rounded(columns(p, c), _mma.block_columns(c))
    least = p.mb * math.prod(p.o) * _gpu.rounded(columns(p, c), 32)
    return tall * wide <= MOST_WASTE * least and registers(c) <= most_registers(WARP * c["wm"])


def steps(p: Problem, c: Config) -> int:
    return _im2win_tensor.parts(p, c) * p.taps


def registers(c: Config) -> int:
    """An estimate: accumulators, addresses, and those of each copy."""
    return 4 * c["tm"] * c["tn"] + 48 + 4 * c["bk"] * _mma.block_columns(c) // (WARP * c["wm"])


def shared_bytes(p: Problem, c: Config) -> int:
    """The window, and weights of `st` steps."""
    window = _gpu.size(p) * p.icg * _im2win_tensor.span(p, c)
    return window + c["st"] * c["bk"] * 64 * _mma.block_columns(c)


def cost(p: Problem, target: GpuTarget, c: Config) -> _gpu.Cost:
    count = _im2win_tensor.down(p, c) * -(-columns(p, c) // _mma.block_columns(c))
    return _gpu.cost(block(p, target, c), count, _matrix.compulsory(p), target.gpu)


def block(p: Problem, target: GpuTarget, c: Config) -> _gpu.Block:
    """A window, and a block's products with it, which read weights step by step."""
    tall, wide, warps, many = _mma.block_rows(c), _mma.block_columns(c), c["wm"], steps(p, c)
    window, chunks = _im2win_tensor.span(p, c) * p.icg // _mma.chunk(p), 4 * c["bk"] * wide
    step = warpgroup.step(p, target, c, chunks, REACHED)
    copied = GATHERED * window
    epilogue = 12.0 * tall * wide / WARP / SCHEDULERS
    waits = 2 * _gpu.LATENCY + many * (BARRIER + max(0.0, _gpu.LATENCY - (c["st"] - 1) * step))
    moved = 16.0 * (window + many * chunks)
    cycles = copied + many * step + epilogue
    return _gpu.Block(warps * WARP, registers(c), shared_bytes(p, c), cycles, waits, moved, 1.0)


seconds, limit = _gpu.modelled(cost)


ON_CUDA = Algorithm(
    name="im2win_tensor",
    source="arXiv:2306.14320",
    refuses=refuses,
    space=space,
    seconds=seconds,
    pack=_wgmma.pack,
    define=_im2win_tensor.define,
    schedule=_im2win_tensor.schedule,
    error=tensor_core.error,
    memory=lambda p, c: 0,
    kind="cuda",
    limit=limit,
)
