"""Is everything here that convc needs? One small function a question."""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from convc.errors import ConvcError, MissingDependencyError
from convc.peers import PEERS, RUNTIMES
from convc.report.machine import package_version, this_machine
from convc.report.native import load_c
from convc.report.state import state_dir
from convc.runtime.cache import cache_folder, open_cache
from convc.runtime.driver import INSTALL, Driver
from convc.target import GpuTarget, available_threads, parse_target

PIN = re.compile(r"([A-Za-z0-9_.-]+)==([^;\s]+)(?!.*extra)")
LEAST_PYTHON = (3, 11)
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
KERNEL = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] = 1.0f; }'
GPUS_ONLY = "needed for cuda/... targets only"
MARKS = {"ok": "ok", "note": "!", "bad": "bad"}


@dataclass(frozen=True)
class Check:
    """`state` is ok, note (worth knowing), or bad (convc will not work); `advice` what to do about it."""

    name: str
    state: str
    found: str
    advice: str = ""


def checks() -> Iterator[Check]:
    """Every check, in the order in which one failing explains the next."""
    for question in QUESTIONS:
        yield from question()


def python() -> Iterator[Check]:
    fine = sys.version_info >= LEAST_PYTHON
    needs = ".".join(map(str, LEAST_PYTHON))
    yield Check("Python", "ok" if fine else "bad", platform.python_version(), "" if fine else f"needs {needs} or later")


def pins() -> Iterator[Check]:
    """Packages of which convc needs exactly one version."""
    for name, wanted in pinned_packages():
        found = package_version(name)
        advice = "" if found == wanted else f"run `pip install {name}=={wanted}`"
        yield Check(name, "bad" if advice else "ok", found or "missing", advice)


def pinned_packages() -> list[tuple[str, str]]:
    try:
        lines = requires("convc") or []
    except PackageNotFoundError:
        lines = []
    return [(found[1], found[2]) for line in lines if (found := PIN.match(line))]


def llvm() -> Iterator[Check]:
    try:
        from tvm.target import codegen

        version = str(codegen.llvm_version_major())
    except (ImportError, OSError, AttributeError, ValueError) as error:
        advice = "run `pip install --force-reinstall convc`"
        yield Check("TVM and LLVM", "bad", f"TVM cannot be imported ({error})", advice)
        return
    yield Check("TVM and LLVM", "ok", f"LLVM {version}")


def compiler() -> Iterator[Check]:
    """The C compiler, tried."""
    try:
        answer = load_c("int answer(void) { return 42; }").answer()
    except ConvcError as error:
        yield Check("C compiler", "bad", str(error).partition("\n")[0], "install gcc or clang, or set CONVC_CC")
        return
    good = answer == 42
    yield Check("C compiler", "ok" if good else "bad", "compiles, links and loads" if good else f"42 became {answer}")


def processor() -> Iterator[Check]:
    machine = this_machine()
    yield Check("CPU", "ok", f"{machine.cpu} ({machine.machine})")
    yield Check("instruction sets", "ok", " ".join(machine.features) or "none known")
    try:
        target = parse_target("native")
    except ConvcError as error:
        yield Check("native target", "bad", str(error), "name a --target")
        return
    yield Check("native target", "ok", f"{target.label}, {target.lanes} lanes, {target.registers} vector registers")


def threads() -> Iterator[Check]:
    machine = this_machine()
    quota = f", control group allows {machine.quota:g}" if machine.quota else ""
    asked = os.environ.get("CONVC_NUM_THREADS", "")
    if asked and not (asked.isdigit() and int(asked) > 0):
        yield Check("CONVC_NUM_THREADS", "note", f"'{asked}' is ignored", "set a positive number")
    yield Check("threads", "ok", f"{available_threads()} ({len(machine.cpus)} processors usable{quota})")
    if GOVERNOR.exists() and (governor := GOVERNOR.read_text().strip()) != "performance":
        yield Check("frequency", "note", f"governor is {governor}", "times will vary; set it to performance to measure")


def state() -> Iterator[Check]:
    folder = state_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"convc")
    except OSError as error:
        advice = "measured peaks and tracebacks will not be kept"
        yield Check("state folder", "note", f"{folder}: {error.strerror}", advice)
        return
    yield Check("state folder", "ok", str(folder))


def objects() -> Iterator[Check]:
    """The folder that keeps compiled kernels."""
    folder = cache_folder()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = open_cache.__wrapped__(folder)
    reason = "; ".join(str(warning.message) for warning in told)
    yield (
        Check("object cache", "ok", str(folder))
        if found
        else Check("object cache", "note", reason, "compiling is slow")
    )


def gpu_compilers() -> Iterator[Check]:
    """Those for GPUs, tried: one of them is enough, and only for cuda/... targets."""
    from convc.lower.gpu_compiler import COMPILERS

    machine = parse_target("cuda/sm_80")
    assert isinstance(machine, GpuTarget)
    absent = {compiler.name: compiler.missing() for compiler in COMPILERS}
    for compiler in COMPILERS:
        if reason := absent[compiler.name]:
            others = [name for name, why in absent.items() if why is None]
            advice = f"not needed beside {others[0]}" if others else f"{GPUS_ONLY}: `{compiler.install}`"
            yield Check(compiler.name, "note", f"absent: {reason}", advice)
            continue
        try:
            compiler.compile_source(KERNEL, machine)
        except ConvcError as error:
            yield Check(compiler.name, "note", str(error).strip().rpartition("\n")[2], GPUS_ONLY)
        else:
            yield Check(compiler.name, "ok", f"{compiler.version()}, compiles")


def gpu() -> Iterator[Check]:
    """What running on a GPU takes."""
    bindings = package_version("cuda-bindings")
    advice = "" if bindings else f"needed to run on GPUs only: `{INSTALL}`"
    yield Check("cuda-bindings", "ok" if bindings else "note", bindings or "absent", advice)
    try:
        found = Driver.open()
    except MissingDependencyError:
        yield Check("GPU", "note", "there is an NVIDIA driver, and no cuda-bindings to ask it", f"`{INSTALL}`")
    except ConvcError as error:
        yield Check("GPU", "note", f"absent: {error}", "needed to run on GPUs only; compiling for them needs none")
    else:
        major, minor = found.capability
        yield Check("GPU", "ok", f"{found.name}, compute capability {major}.{minor}")


def peers() -> Iterator[Check]:
    for name in PEERS:
        runtime = RUNTIMES[name]
        if runtime.is_installed:
            yield Check(runtime.title, "ok", runtime.version)
        else:
            advice = f"only `bench --vs {name}` needs it: `{runtime.install}`"
            yield Check(runtime.title, "note", "not installed", advice)


QUESTIONS: tuple[Callable[[], Iterator[Check]], ...] = (
    python, pins, llvm, compiler, processor, threads, state, objects, gpu_compilers, gpu, peers,
)  # fmt: skip
