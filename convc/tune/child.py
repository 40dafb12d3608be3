"""A process of its own that answers requests one by one, within a deadline and a limit of memory. What it does to
itself costs the answer and nothing else: the next request makes a new one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

MEMORY = 12 << 30  # bytes of address space
FILE = 256 << 20  # bytes of a file that it writes: of what it prints, or a compiler's temporary ones
WORDS = 400  # bytes of what it printed last that are of interest
START_SECONDS = 120.0  # to load what the handlers need; the compiler takes two on an idle machine
MEANINGS = {
    "SIGSEGV": "it touched memory that is not its own, or wrote what it may only read", "SIGABRT": "it called abort",
    "SIGFPE": "it divided a whole number by zero", "SIGILL": "it holds an instruction that this processor lacks",
    "SIGBUS": "it touched memory that does not exist", "SIGKILL": "by another process, or because memory ran out",
}  # fmt: skip


class Ended(Exception):  # noqa: N818  not an error of ours: what became of a candidate
    """The child did not answer. `status` as in records: crash, timeout or memory; `reason` for people."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Failed(Exception):  # noqa: N818
    """The handler raised; the message is its own. The child lives on."""


class Child:
    """`prepare`, a function of a module, is called in the child and returns its handlers by name. `memory` bounds its
    address space in bytes, and so does half of what the machine has, for the machine must live on."""

    def __init__(
        self,
        prepare: Callable[[], Mapping[str, Callable[..., Any]]],
        *,
        memory: int = MEMORY,
        cpus: tuple[int, ...] = (),
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._prepare, self._cpus, self._start_seconds = prepare, cpus, start_seconds
        self._memory = min(memory, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
        self._process: Any = None
        self._pipe: Connection | None = None
        self._printed = -1  # a file in memory for what the child prints: its last words, and no disorder on a terminal

    def ask(self, handler: str, *args: Any, seconds: float) -> Any:
        """The handler's result. Raises Failed with what it raised, Ended where no answer came; then the child is gone.

        `seconds` do not count the start of a fresh child.
        """
        if self._pipe is None:
            self._start()
        return self._exchange((handler, args), seconds)

    @property
    def is_fresh(self) -> bool:
        """Whether the next request makes a new process, which knows nothing of what was asked before."""
        return self._pipe is None

    def close(self) -> None:
        """End it and everything that it started."""
        if self._pipe is None:
            return
        self._pipe.close()
        self._pipe = None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        os.close(self._printed)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        near, far = context.Pipe()
        self._printed = os.memfd_create("convc-child")
        arguments = (far, self._prepare, self._memory, self._cpus, f"/proc/{os.getpid()}/fd/{self._printed}")
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        self._pipe = near
        far.close()
        try:
            self._exchange(None, self._start_seconds)
        except Failed:
            self.close()
            raise

    def _exchange(self, request: tuple[str, tuple[Any, ...]] | None, seconds: float) -> Any:
        """The answer to a request; to none, that of a process that has started."""
        assert self._pipe is not None
        try:
            if request is not None:
                self._pipe.send(request)
            if not self._pipe.poll(seconds):
                raise Ended("timeout", f"no {'answer' if request else 'start'} within {seconds:.3g} s")
            outcome, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        except BaseException:  # too late, or interrupted: an answer to come would be taken for that of the next request
            self.close()
            raise
        if outcome == "memory":
            self.close()
            raise Ended("memory", f"it asked for more memory than the {self._memory / 2**30:.3g} GiB that it may take")
        if outcome == "failed":
            raise Failed(value)
        return value

    def _died(self) -> Ended:
        self._process.join(5)
        code, words = self._process.exitcode, self._last_words()
        self.close()
        if code is not None and code < 0:
            ended = ended_by(-code)
            return Ended(ended.status, f"{ended.reason}{words}")
        return Ended("crash", f"{'it hung up without an answer' if code is None else f'ended with code {code}'}{words}")

    def _last_words(self) -> str:
        """The last line that it printed, as the end of a sentence."""
        end = os.fstat(self._printed).st_size
        lines = os.pread(self._printed, WORDS, max(0, end - WORDS)).decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"; it said: {said}" if said else ""


def ended_by(number: int) -> Ended:
    """What became of a process that a signal ended. SIGKILL, which nobody here sends, is for lack of memory."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    meaning = f": {MEANINGS[name]}" if name in MEANINGS else ""
    return Ended("memory" if name == "SIGKILL" else "crash", f"ended by {name}{meaning}")


def _serve(pipe: Connection, prepare: Callable[[], Mapping[str, Callable[..., Any]]], memory: int,
           cpus: tuple[int, ...], printed: str) -> None:  # fmt: skip
    os.setpgid(0, 0)
    file = os.open(printed, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends this one
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if cpus:
        os.sched_setaffinity(0, cpus)
    handlers: dict[str, Callable[..., Any]] = {}
    pipe.send(_attempt(lambda: handlers.update(prepare())))
    while True:
        try:
            name, args = pipe.recv()
        except EOFError:
            return
        pipe.send(_attempt(handlers[name], *args))


def _attempt(function: Callable[..., Any], *args: Any) -> tuple[str, Any]:
    """What is sent back: fine, memory or failed, and the result or the reason."""
    try:
        return "fine", function(*args)
    except MemoryError:
        return "memory", None
    except Exception as error:  # the boundary of a process: a candidate may raise anything
        return "failed", f"{type(error).__name__}: {str(error)[:1000]}"


def _end_with(parent: int) -> None:
    """Nobody waits for this process once its parent was killed, and a candidate that never ends would run for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)
