"""Candidates to object code, in parallel, each within a deadline: a compiler that hangs or dies costs one candidate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from convc.algorithm import Choice, algorithms
from convc.problem import Problem
from convc.target import Target
from convc.tune.child import Child, Ended, Failed
from convc.tune.workload import Workload

SECONDS = 20.0  # for one candidate; the slowest of the library takes two
MEMORY = 4 << 30  # bytes of address space of a compiler process; the largest kernels of the networks take 0.65


@dataclass(frozen=True)
class Candidate:
    """One way to compute a workload."""

    workload: Workload
    choice: Choice

    def __str__(self) -> str:
        return f"{self.workload} {self.choice}"


@dataclass(frozen=True)
class Compiled:
    """ELF objects of a candidate's two kernels, their symbols, how many reads the second has, and bytes: of the packed
    weights, and of the temporaries that one thread takes."""

    pack_object: bytes
    kernel_object: bytes
    pack: str
    kernel: str
    reads: int
    packed_bytes: int
    workspace_bytes: int


@dataclass(frozen=True)
class Refused:
    """Why there is no code, with the status for the record."""

    status: str
    reason: str


class Builders:
    """`count` compiler processes, of at most `memory` bytes each; a candidate gets `seconds`. `prepare` makes the
    handlers of such a process."""

    def __init__(
        self,
        target: Target,
        count: int | None = None,
        *,
        seconds: float = SECONDS,
        memory: int = MEMORY,
        prepare: Callable[[], Mapping[str, Callable[..., Any]]] | None = None,
    ) -> None:
        self.target, self.seconds = target, seconds
        self.count = count or len(os.sched_getaffinity(0))
        self._idle: SimpleQueue[Child] = SimpleQueue()
        self._children = [Child(prepare or handlers, memory=memory) for _ in range(self.count)]
        for child in self._children:
            self._idle.put(child)

    def __enter__(self) -> Builders:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.close()

    def build(self, candidates: Sequence[Candidate]) -> Iterator[Compiled | Refused]:
        """In the order of `candidates`."""
        with ThreadPoolExecutor(self.count) as pool:
            yield from pool.map(self._one, candidates)

    def _one(self, candidate: Candidate) -> Compiled | Refused:
        child = self._idle.get()
        workload, choice = candidate.workload, candidate.choice
        try:
            found: Compiled = child.ask(
                "build", str(workload.problem), workload.epilogue, choice.algorithm, dict(choice.config),
                self.target, seconds=self.seconds,
            )  # fmt: skip
            return found
        except Failed as error:
            return Refused("build", str(error))
        except Ended as error:
            return Refused(error.status, f"the compiler: {error.reason}")
        finally:
            self._idle.put(child)


def handlers() -> Mapping[str, Callable[..., Any]]:
    """Of a compiler process, which loads the compiler before it is asked for anything."""
    import convc.lower.kernel  # noqa: F401

    algorithms()
    return {"build": compile_candidate}


def compile_candidate(
    problem: str, epilogue: str, algorithm: str, config: Mapping[str, int], target: Target
) -> Compiled:
    """Runs in the compiler's process: it imports TVM."""
    import hashlib
    import math

    from convc.lower.build import build_object
    from convc.lower.kernel import lower
    from convc.lower.packed import packed_shape

    workload, choice = Workload(Problem.parse(problem), epilogue), Choice(algorithm, config)
    packing, kernel = workload.packing(choice), workload.kernel(choice)
    tail = hashlib.sha256(f"{workload} {choice}".encode()).hexdigest()[:16]
    pack_object, pack_scratch = build_object(lower(packing, target), f"p_{tail}", target)
    kernel_object, scratch = build_object(lower(kernel, target), f"k_{tail}", target)
    packed_bytes = 4 * math.prod(packed_shape(packing))
    names = f"p_{tail}", f"k_{tail}"
    reads = len(kernel.group.reads)
    return Compiled(pack_object, kernel_object, *names, reads, packed_bytes, max(scratch, pack_scratch))
