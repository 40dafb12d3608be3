"""CUDA C++ to machine code by NVIDIA's run-time compiler, a library that pip installs: neither nvcc nor the host's
compiler is needed, and no GPU and no driver either."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from convc.errors import ConvcError
from convc.gpu import portable
from convc.launch import Usage
from convc.lower.fatbin import ELF, PTX, Member, fatbin
from convc.lower.ptxas import usage_in
from convc.target import GpuTarget

LANGUAGE = "-std=c++17"
FLAGS = (LANGUAGE, "--ptxas-options=-v")


def compile_source(text: str, target: GpuTarget) -> tuple[bytes, Mapping[str, tuple[Usage, ...]]]:
    """A fat binary for the target's architectures, and by kernel what each takes there.

    Raises ConvcError where NVRTC refuses the text, with its words.
    """
    members: list[Member] = []
    usage: dict[str, tuple[Usage, ...]] = {}
    if target.ptx and (arch := portable(target.archs)):
        number = arch.removeprefix("sm_")
        members.append(Member(PTX, arch, _compiled(text, f"compute_{number}", (LANGUAGE,), "PTX")[0]))
    for arch in target.archs:
        cubin, log = _compiled(text, arch, FLAGS, "CUBIN")
        members.append(Member(ELF, arch, cubin))
        for kernel, used in usage_in(log).items():
            usage[kernel] = (*usage.get(kernel, ()), *used)
    return fatbin(members), usage


def missing() -> str | None:
    """Why it makes no code here, or None."""
    try:
        _nvrtc().nvrtcVersion()
    except ImportError as error:
        return f"cuda-bindings cannot be imported ({error})"
    except RuntimeError:  # what the bindings raise where they find no library
        return "the library NVRTC cannot be found"
    try:
        code, found, *_ = _nvrtc().nvrtcGetBundledHeadersInfo()
        has_headers = not code and bool(found.available)
    except (AttributeError, RuntimeError):
        has_headers = False
    return None if has_headers else f"NVRTC {version()} comes without CUDA's headers, as later versions do not"


@cache
def version() -> str:
    """Part of what decides the code."""
    _, major, minor = _nvrtc().nvrtcVersion()
    return f"{major}.{minor}"


def _nvrtc() -> Any:
    return importlib.import_module("cuda.bindings.nvrtc")


def _compiled(text: str, arch: str, flags: Sequence[str], form: str) -> tuple[bytes, str]:
    """Code of one architecture, CUBIN or PTX, and what the compiler said."""
    nvrtc = _nvrtc()
    headers = _headers().name
    # The name gets into the code, the folders do not.
    program = _checked("nvrtcCreateProgram", nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, None, None))
    try:
        options = [f"--gpu-architecture={arch}", *flags, f"-I{headers}", f"-I{headers}/cccl"]
        code, *_ = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        log = _read("ProgramLog", program).decode(errors="replace").strip("\0 \n")
        if code:
            raise ConvcError(f"NVRTC refuses a kernel for {arch}: {log[-2000:] or _words(code)}")
        return _read(form, program), log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _read(what: str, program: Any) -> bytes:
    nvrtc = _nvrtc()
    size = _checked(f"nvrtcGet{what}Size", getattr(nvrtc, f"nvrtcGet{what}Size")(program))
    # NVRTC writes into these bytes, so they must be nobody else's: Python shares those of length 0 and 1.
    found: bytes = b" " * (size + 2)
    _checked(f"nvrtcGet{what}", getattr(nvrtc, f"nvrtcGet{what}")(program, found))
    return found[:size]


@cache
def _headers() -> tempfile.TemporaryDirectory[str]:
    """A folder with CUDA's own headers, unpacked from the library, that lasts as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="convc-")
    _checked("nvrtcInstallBundledHeaders", _nvrtc().nvrtcInstallBundledHeaders(folder.name.encode(), 0))
    return folder


def _checked(call: str, answer: Sequence[Any]) -> Any:
    code, *found = answer
    if code:
        raise ConvcError(f"{call} failed: {_words(code)}")
    return found[0] if found else None


def _words(code: Any) -> str:
    return str(_nvrtc().nvrtcGetErrorString(code)[1].decode(errors="replace"))
