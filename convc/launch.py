"""What a function is on a GPU: kernels launched one after the other, and what each of them takes of the machine."""

from __future__ import annotations

from dataclasses import dataclass

Three = tuple[int, int, int]


@dataclass(frozen=True)
class Temporary:
    """Memory that lives as long as one call of a function: `offset` bytes into its scratch memory, a multiple of 256."""

    offset: int


@dataclass(frozen=True)
class Launch:
    """One CUDA kernel of a function.

    kernel  its name, extern "C", unique in an artifact.
    grid    thread blocks along x, y and z; `block` threads of each likewise.
    shared  bytes of dynamic shared memory a block.
    args    its parameters in order, each a pointer: a number is that parameter of the function (reads, then the result).
    """

    kernel: str
    grid: Three
    block: Three
    shared: int
    args: tuple[int | Temporary, ...]


@dataclass(frozen=True)
class Usage:
    """What ptxas reports of a kernel for one architecture: registers a thread, bytes of static shared memory a block,
    and bytes of stack and of spill stores and loads a thread."""

    arch: str
    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> bool:
        return self.spill_stores + self.spill_loads > 0
