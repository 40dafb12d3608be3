"""A runtime that computes on request: in this process, or in one of its own that otherwise waits without a processor.

Thread pools that spin in one process disturb each other; in processes that take turns they do not.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from convc.errors import ConvcError
from convc.ir import Array
from convc.peers import RUNTIMES, Runner, Task
from convc.report.timing import timed

SECONDS = 600.0  # the longest that opening a model or one run may take
SETTLING = 1.0  # seconds that a runtime's threads are waited for
STEP = 0.01  # seconds between two looks at them: Linux counts what other threads run by ticks of up to 4 ms


def measured(runner: Runner) -> float:
    """us of one run, after one that is not measured."""
    return runner.us() if runner.us else timed(runner.run)


class Together:
    """A runtime in this process."""

    def __init__(self, name: str, task: Task) -> None:
        try:
            self._runner = RUNTIMES[name].open(task)
            self._runner.run()
        except ConvcError:
            raise
        except Exception as error:  # a foreign library may raise anything
            raise ConvcError(_told(error)) from error

    def measure(self) -> float:
        """us of one run, after one that is not measured."""
        return measured(self._runner)

    def outputs(self) -> dict[str, Array]:
        return self._runner.outputs()


@contextmanager
def together(name: str, task: Task) -> Iterator[Together]:
    yield Together(name, task)


class Apart:
    """The parent's side of one child."""

    def __init__(self, name: str, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=serve, args=(far, name, task), daemon=True)
        self._process.start()
        far.close()
        self._answer()

    def measure(self) -> float:
        """us of one run, after one that is not measured."""
        return float(self._ask("measure"))

    def outputs(self) -> dict[str, Array]:
        found: dict[str, Array] = self._ask("outputs")
        return found

    def close(self) -> None:
        self._pipe.close()  # the child reads its end and leaves
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, request: str) -> Any:
        try:
            self._pipe.send(request)
        except OSError as error:
            raise ConvcError(f"{self.name}: its process ended early") from error
        return self._answer()

    def _answer(self) -> Any:
        if not self._pipe.poll(SECONDS):
            self._process.kill()
            raise ConvcError(f"{self.name}: no answer within {SECONDS:.0f} s")
        try:
            fine, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise ConvcError(f"{self.name}: its process ended with code {self._process.exitcode}") from error
        if not fine:
            raise ConvcError(f"{self.name}: {value}")
        return value


@contextmanager
def apart(name: str, task: Task) -> Iterator[Apart]:
    child = Apart(name, task)
    try:
        yield child
    finally:
        child.close()


def serve(pipe: Connection, name: str, task: Task) -> None:
    """The child: opens the runtime, then answers until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and closes the pipe
    try:
        runner = RUNTIMES[name].open(task)
        runner.run()
        pipe.send((True, None))
        while True:
            answer = measured(runner) if pipe.recv() == "measure" else dict(runner.outputs())
            _settle()
            pipe.send((True, answer))
    except EOFError:
        return
    except Exception as error:  # the boundary of a process: a foreign library may raise anything
        pipe.send((False, _told(error)))


def _settle() -> None:
    """Wait until this process rests: threads that spin on after a run keep a processor from whoever is next. Beside
    ONNX Runtime's, left spinning, OpenVINO and convc took twice as long on two processors."""
    end = time.monotonic() + SETTLING
    while time.monotonic() < end:
        busy = time.process_time()
        time.sleep(STEP)
        if time.process_time() - busy < STEP / 10:
            return


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, ConvcError) else f"{type(error).__name__}: {str(error)[:500]}"
