"""What a function is on a GPU: kernels launched one after the other, and what each of them takes of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Three = tuple[int, int, int]

ALIGNMENT = 256  # bytes: what the driver gives for every allocation, and the parts of one begin at a multiple of
MOST_GRID: Three = (2**31 - 1, 65535, 65535)
MOST_BLOCK: Three = (1024, 1024, 64)
MOST_THREADS = 1024  # a block


@dataclass(frozen=True)
class Temporary:
    """Memory that lives as long as a call of a function: `offset` bytes into its scratch memory, a multiple of
    ALIGNMENT."""

    offset: int


@dataclass(frozen=True)
class Launch:
    """One CUDA kernel of a function.

    kernel  its name, extern "C", unique in an artifact.
    grid    thread blocks along x, y and z; `block` threads of each likewise.
    shared  bytes of dynamic shared memory a block.
    args    its parameters in order, each a pointer: a number is that parameter of the function, reads then result.
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


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def row_of(launch: Launch) -> dict[str, Any]:
    """As manifests have it."""
    args = [{"scratch": a.offset} if isinstance(a, Temporary) else {"param": a} for a in launch.args]
    extents = {"grid": list(launch.grid), "block": list(launch.block)}
    return {"kernel": launch.kernel, **extents, "shared": launch.shared, "args": args}


def launch_of(row: Mapping[str, Any]) -> Launch:
    """Raises KeyError, TypeError or ValueError where the row is not one that `row_of` writes."""
    args = (Temporary(int(a["scratch"])) if "scratch" in a else int(a["param"]) for a in row["args"])
    return Launch(str(row["kernel"]), _three(row["grid"]), _three(row["block"]), int(row["shared"]), tuple(args))


def _three(values: Any) -> Three:
    x, y, z = (int(value) for value in values)
    return x, y, z
