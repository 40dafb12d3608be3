"""What a GPU artifact executes, as its manifest has it: functions, which are kernel launches, and calls of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convc.launch import MOST_BLOCK, MOST_GRID, MOST_THREADS, Launch, Temporary, Usage, aligned, launch_of, row_of

MOST_SHARED = 227 << 10  # bytes a block on any GPU so far
SLOT = 64  # bytes that every place in memory is a multiple of
NUMBERED = ("input", "output")
_NAME = re.compile(r"[a-z_][A-Za-z0-9_]{0,200}")
_ARCH = re.compile(r"sm_[1-9][0-9]{1,2}a?")


@dataclass(frozen=True)
class Function:
    """`scratch` bytes of temporaries, and the launches in order with what ptxas reports of their kernels."""

    scratch: int
    launches: tuple[Launch, ...]
    usage: Mapping[str, tuple[Usage, ...]]


@dataclass(frozen=True)
class Place:
    """`at` bytes in weights, packed or arena, or the caller's input or output number `at`."""

    space: str
    at: int


@dataclass(frozen=True)
class Step:
    """One call of a function: the places of its reads in order, then that of its result."""

    symbol: str
    args: tuple[Place, ...]


@dataclass(frozen=True)
class Program:
    """Sizes in bytes. `archs` are those that the fat binaries hold code for, `ptx` whether of the newest also what the
    driver can translate for later ones."""

    functions: Mapping[str, Function]
    init: tuple[Step, ...]
    run: tuple[Step, ...]
    weights: int
    packed: int
    arena: int
    archs: tuple[str, ...]
    ptx: bool

    def scratch(self, steps: Iterable[Step]) -> int:
        """Of the greediest of these calls."""
        return max((self.functions[step.symbol].scratch for step in steps), default=0)

    @property
    def workspace(self) -> int:
        """What a run takes: the arena, and behind it the temporaries."""
        return aligned(self.arena) + self.scratch(self.run)

    @property
    def entries(self) -> tuple[str, ...]:
        """The names of the entries that hold the fat binaries."""
        return tuple(entry_of(symbol) for symbol in self.functions)


def entry_of(symbol: str) -> str:
    return f"kernels/{symbol}.fatbin"


def rows_of(
    scratch: Mapping[str, int], launches: Mapping[str, Sequence[Launch]],
    usage: Mapping[str, Mapping[str, Sequence[Usage]]],
) -> dict[str, Any]:
    """The functions as the manifest has them, by symbol."""
    return {
        symbol: {
            "scratch": scratch.get(symbol, 0),
            "launches": [_row(launch, usage.get(symbol, {}).get(launch.kernel, ())) for launch in each],
        }
        for symbol, each in launches.items()
    }


def _row(launch: Launch, usage: Sequence[Usage]) -> dict[str, Any]:
    return {**row_of(launch), "usage": [asdict(each) for each in usage]}


def program_of(manifest: Mapping[str, Any]) -> Program:
    """Read and check. Raises ValueError, KeyError or TypeError with what is wrong."""
    target, memory = manifest["target"], manifest["memory"]
    archs = tuple(_word(arch, _ARCH, "the architectures") for arch in target["archs"])
    if not archs or not isinstance(target["ptx"], bool):
        raise ValueError("the architectures")
    ports = {"input": len(manifest["inputs"]), "output": len(manifest["outputs"])}
    sizes = {space: _count(memory[space], f"memory.{space}") for space in ("weights", "packed", "arena")}
    init, run = ([_step(row, ports | sizes) for row in manifest[key]] for key in ("init", "calls"))
    arity: dict[str, int] = {}
    for step in (*init, *run):
        if arity.setdefault(step.symbol, len(step.args)) != len(step.args) or not step.args:
            raise ValueError(f"the number of arguments of {step.symbol}")
    functions = {symbol: _function(manifest["kernels"][symbol], count) for symbol, count in arity.items()}
    return Program(functions, tuple(init), tuple(run), **sizes, archs=archs, ptx=target["ptx"])


def _step(row: Mapping[str, Any], limits: Mapping[str, int]) -> Step:
    symbol = _word(row["symbol"], _NAME, "a symbol")
    return Step(symbol, tuple(_place(arg, limits) for arg in row["args"]))


def _place(row: Mapping[str, Any], limits: Mapping[str, int]) -> Place:
    space, at = row["space"], _count(row["at"], "a place in memory")
    is_inside = at < limits[space] or (at == 0 and space not in NUMBERED)  # an empty value lies in an empty space
    if not is_inside or (space not in NUMBERED and at % SLOT):
        raise ValueError(f"the place {at} in {space}, which has {limits[space]}")
    return Place(space, at)


def _function(row: Mapping[str, Any], arity: int) -> Function:
    scratch = _count(row["scratch"], "bytes of scratch")
    launches = tuple(_launch(each, arity, scratch) for each in row["launches"])
    usage = {each["kernel"]: tuple(_usage(one) for one in each["usage"]) for each in row["launches"]}
    return Function(scratch, launches, usage)


def _launch(row: Mapping[str, Any], arity: int, scratch: int) -> Launch:
    found = launch_of(row)
    kernel = _word(found.kernel, _NAME, "a kernel")
    for extents, most in ((found.grid, MOST_GRID), (found.block, MOST_BLOCK)):
        if not all(1 <= extent <= limit for extent, limit in zip(extents, most, strict=True)):
            raise ValueError(f"the extents {extents} of {kernel}")
    if math.prod(found.block) > MOST_THREADS:
        raise ValueError(f"the threads of {kernel}, {math.prod(found.block)}")
    if not 0 <= found.shared <= MOST_SHARED:
        raise ValueError(f"the shared memory of {kernel}, {found.shared}")
    for arg in found.args:
        at, limit = (arg.offset, scratch) if isinstance(arg, Temporary) else (arg, arity)
        if not 0 <= at < limit or (isinstance(arg, Temporary) and at % SLOT):
            raise ValueError(f"the argument {arg} of {kernel}")
    return found


def _usage(row: Mapping[str, Any]) -> Usage:
    figures = ("registers", "shared", "stack", "spill_stores", "spill_loads")
    return Usage(_word(row["arch"], _ARCH, "an architecture"), *(_count(row[key], key) for key in figures))


def _count(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{what}, {value!r:.40}")
    return value


def _word(value: Any, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{what}, {value!r:.40}")
    return value
