"""GPUs: what each architecture is, as the models of schedules and the limits of kernels count it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WARP = 32  # threads
REGISTERS = 64 << 10  # of 32 bits, a multiprocessor; every architecture of the table has as many
MOST_REGISTERS = 255  # a thread
SCHEDULERS = 4  # of a multiprocessor, each with a quarter of its registers
STATIC_SHARED = 48 << 10  # bytes a block that a kernel may have without asking


@dataclass(frozen=True)
class Gpu:
    """An architecture, with the figures of one product that has it.

    multiprocessors  of the product.
    clock      cycles/s under load.
    threads    resident threads a multiprocessor, at most; `blocks` resident thread blocks.
    shared     bytes of shared memory a multiprocessor; `shared_block` those that one block may have.
    bandwidth  bytes/s of the memory.
    l2         bytes of the last level cache, whose bandwidth is `l2_rate` bytes a cycle for the whole chip.
    fma        float32 multiply-adds a cycle and multiprocessor.
    tensor     multiply-adds of float16 products a cycle and multiprocessor, by mma.sync; `wgmma` by warpgroups.
    """

    product: str
    multiprocessors: int
    clock: float
    threads: int
    blocks: int
    shared: int
    shared_block: int
    bandwidth: float
    l2: int
    l2_rate: float
    fma: int
    tensor: int
    wgmma: int = 0

    @property
    def peak(self) -> float:
        """float32 FLOP/s without tensor cores."""
        return 2.0 * self.multiprocessors * self.clock * self.fma


# NVIDIA's data sheets and the tables of compute capabilities in the CUDA C++ Programming Guide. mma.sync reaches
# about 62 % of what wgmma does on sm_90.
GPUS: Mapping[str, Gpu] = {
    "sm_75": Gpu("T4", 40, 1.35e9, 1024, 16, 64 << 10, 64 << 10, 320e9, 4 << 20, 1280, 64, 512),
    "sm_80": Gpu("A100", 108, 1.41e9, 2048, 32, 164 << 10, 163 << 10, 1555e9, 40 << 20, 5120, 64, 1024),
    "sm_86": Gpu("A10", 72, 1.69e9, 1536, 16, 100 << 10, 99 << 10, 600e9, 6 << 20, 1536, 128, 512),
    "sm_87": Gpu("Jetson AGX Orin", 16, 1.3e9, 1536, 16, 164 << 10, 163 << 10, 204e9, 4 << 20, 512, 128, 512),
    "sm_89": Gpu("L4", 58, 1.9e9, 1536, 24, 100 << 10, 99 << 10, 300e9, 48 << 20, 1536, 128, 512),
    "sm_90": Gpu("H100", 132, 1.75e9, 2048, 32, 228 << 10, 227 << 10, 3350e9, 50 << 20, 5632, 128, 1270, 2048),
}
FEATURES = {"sm_90a": "sm_90"}  # architectures with instructions that later ones lack, and what they are beside that
ARCHS = (*GPUS, *FEATURES)


def gpu_of(arch: str) -> Gpu:
    return GPUS[FEATURES.get(arch, arch)]


def most_registers(threads: int) -> int:
    """Registers of each of the threads of a block, at most: its warps lie on the schedulers in turn, and the one that
    has the most of them must hold them all. 288 threads, three warps on a scheduler, may have 168 each and not 227."""
    warps = -(-threads // (SCHEDULERS * WARP))
    return min(MOST_REGISTERS, REGISTERS // (SCHEDULERS * WARP * warps) // 8 * 8)


def capability(arch: str) -> tuple[int, int]:
    """(major, minor): sm_90a is 9.0."""
    digits = arch.removeprefix("sm_").rstrip("a")
    return int(digits[:-1]), int(digits[-1])


def portable(archs: Sequence[str]) -> str | None:
    """The newest of them whose PTX later GPUs can translate; None where all have instructions that later ones lack."""
    return max((arch for arch in archs if arch not in FEATURES), key=capability, default=None)
