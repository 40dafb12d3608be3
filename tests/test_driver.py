"""Does the runtime ask CUDA for what it should? On a libcuda of host memory, through the real bindings."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def has_bindings() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings.driver") is not None
    except ModuleNotFoundError:
        return False


pytestmark = [
    pytest.mark.skipif(not has_bindings(), reason="cuda-bindings is not installed"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]
HEAD = """
import gc, sys
import numpy as np
from convc.runtime.driver import Driver
driver = Driver.open(1)
a, b, y = np.arange(6, dtype=np.float32), np.ones(6, np.float32), np.zeros(6, np.float32)
"""
FAILS = """
def fails(ask):
    try:
        ask()
    except Exception as error:
        print(type(error).__name__, error)
"""


@cache
def folder() -> Path:
    from tempfile import mkdtemp

    made = Path(mkdtemp(prefix="fake-libcuda-"))
    line = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Wno-pedantic", "-o", made / "libcuda.so.1"]
    subprocess.run([*line, HERE / "fake_libcuda.c"], check=True)
    return made


def asked(code: str, *, head: str = HEAD, **environment: str) -> tuple[list[str], list[str]]:
    """What the code prints, and what the driver was asked, in a process that has the fake libcuda."""
    done = subprocess.run(
        [sys.executable, "-c", head + FAILS + code], capture_output=True, text=True, check=False, timeout=60,
        env=os.environ | {"LD_LIBRARY_PATH": str(folder())} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_a_kernel_alone_and_in_a_graph() -> None:
    printed, log = asked("""
print(driver.name, driver.capability, driver.ordinal)
stream = driver.stream()
x, w, z = (driver.allocate(24) for _ in range(3))
driver.copy_in(x, a, stream)
driver.copy_in(w, b, stream)
module = driver.load(b"fat")
add = driver.function(module, "add", 0)
driver.launch(add, (3, 1, 1), (2, 1, 1), 64, (x, w, z), stream)
driver.copy_out(y, z, stream)
driver.synchronize(stream)
print(y.tolist(), x % 256)
graph = driver.capture(stream, lambda: driver.launch(add, (1, 3, 1), (1, 1, 2), 0, (z, w, x), stream))
print(np.frombuffer((__import__("ctypes").c_char * 24).from_address(x), np.float32).tolist() == a.tolist())
driver.replay(graph, 0)
driver.copy(w, x, 24, 0)
driver.copy_out(y, w, 0)
print(y.tolist())
driver.forget(graph)
for pointer in (x, w, z):
    driver.free(pointer)
driver.unload(module)
driver.close(stream)
del driver
gc.collect()
""")
    assert printed == [
        "Fake 41 (8, 6) 1", "[1.0, 2.0, 3.0, 4.0, 5.0, 6.0] 0", "True", "[2.0, 3.0, 4.0, 5.0, 6.0, 7.0]",
    ]  # fmt: skip
    assert log == [
        "init 0", "retain", "stream 1", "allocate 24", "allocate 24", "allocate 24", "in 24 on 11", "in 24 on 11",
        "load", "launch 700 3 1 1, 2 1 1, 64 on 11", "out 24 on 11", "synchronize 11", "begin on 11, 2",
        "launch 700 1 3 1, 1 1 2, 0 on 11", "end on 11", "instantiate 21, 0", "destroy 21", "replay 22 on 0",
        "copy 24 on 0", "out 24 on 0", "forget 22", "free", "free", "free", "settle", "unload 7", "close 11",
        "release 41",
    ]  # fmt: skip


def test_events() -> None:
    printed, log = asked("""
mark, start = driver.event(), driver.event(timed=True)
driver.record(mark, 0)
driver.record(start, 5, in_graph=True)
driver.wait(6, mark)
print(driver.elapsed(start, start))
driver.drop(mark)
""")
    assert printed == ["250.0"]
    assert log[2:] == [
        "event 2", "event 0", "record 31 on 0", "record 31 on 5, 1", "6 waits for 31, 0", "wait for 31", "drop 31",
    ]  # fmt: skip


def test_a_capture_that_fails_ends() -> None:
    printed, log = asked("fails(lambda: driver.capture(3, lambda: 1 / 0))")
    assert printed == ["ZeroDivisionError division by zero"]
    assert log[2:] == ["begin on 3, 2", "end on 3", "destroy 21"]


def test_shared_memory_above_48_kib_is_asked_for() -> None:
    printed, log = asked("""
module = driver.load(b"fat")
for shared in (48 << 10, 64 << 10):
    driver.function(module, "add", shared)
fails(lambda: driver.function(module, "add", 163 << 10))
fails(lambda: driver.function(module, "sub", 0))
""")
    assert log[3:] == ["attribute 8 of 700 is 65536", "attribute 8 of 700 is 166912"]
    assert printed == [
        "TargetMismatchError a thread block of kernel add needs 166912 bytes of shared memory, which this GPU, "
        "Fake 41, does not grant (the CUDA driver's cuFuncSetAttribute failed: CUDA_ERROR_FAKE: a fake one)",
        "ConvcError the CUDA driver's cuModuleGetFunction failed: CUDA_ERROR_FAKE: a fake one",
    ]


def test_errors_have_the_drivers_words() -> None:
    printed, _ = asked("""
fails(lambda: driver.allocate(1 << 21))
fails(lambda: driver.synchronize(99))
fails(lambda: driver.load(b"thin"))
fails(lambda: Driver.open(2))
""")
    assert printed == [
        "BudgetError Fake 41 has no 2097152 bytes of memory left",
        "ConvcError the CUDA driver's cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access",
        "TargetMismatchError the NVIDIA driver finds no code in it that runs: CUDA_ERROR_FAKE: a fake one",
        "TargetMismatchError this machine has no GPU number 2, of 2 that are visible",
    ]


def test_a_driver_that_does_not_start() -> None:
    head = "from convc.runtime.driver import Driver"
    printed, _ = asked("fails(Driver.open)", head=head, FAKE_INIT="100")
    assert printed == [
        "TargetMismatchError the NVIDIA driver of this machine does not start: CUDA_ERROR_FAKE: a fake one"
    ]
