"""Do nvcc and NVRTC make the same of a kernel, and does the one that is here get the work?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_models import model, node

import convc
from convc.errors import ConvcError, MissingDependencyError
from convc.gpu import capability, portable
from convc.launch import Usage
from convc.lower import gpu_compiler, nvcc
from convc.lower.fatbin import ELF, FOR_LINUX_64, HEAD, MAGIC, MEMBER, PTX, THIS_ONE_ONLY, Member, fatbin
from convc.lower.gpu_compiler import COMPILERS, GpuCompiler
from convc.lower.ptxas import usage_in
from convc.target import GpuTarget, parse_target

NVCC, NVRTC = COMPILERS
HERE = [
    pytest.param(c, id=c.name, marks=pytest.mark.skipif(c.missing() is not None, reason=str(c.missing())))
    for c in COMPILERS
]
needs_nvrtc = pytest.mark.skipif(NVRTC.missing() is not None, reason=str(NVRTC.missing()))
FAT = ("cuda/sm_75", "cuda/sm_80,sm_90a+ptx")
TEXT = r"""
#include <cuda_fp16.h>
extern "C" __global__ void __launch_bounds__(64) twice(const float* x, float* y) {
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = 2.0f * held[63 - threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(64) halved(const __half* x, float* y) {
  y[threadIdx.x] = __half2float(x[threadIdx.x]) / 2.0f;
}
"""


def gpus(name: str) -> GpuTarget:
    found = parse_target(name)
    assert isinstance(found, GpuTarget)
    return found


def members(image: bytes) -> list[tuple[int, str, bytes]]:
    """Kind, architecture and the start of each member's data; sizes must add up."""
    magic, version, size, total = HEAD.unpack_from(image)
    assert (magic, version, size, size + total) == (MAGIC, 1, HEAD.size, len(image))
    found, at = [], size
    while at < len(image):
        kind, version, head, length, packed, _, _, _, number, _, _, flags, _, _ = MEMBER.unpack_from(image, at)
        assert version == 0x0101 and flags & FOR_LINUX_64 == FOR_LINUX_64
        found.append((kind, f"sm_{number}{'a' * bool(flags & THIS_ONE_ONLY)}", image[at + head : at + head + 4]))
        at += head + length
    assert at == len(image)
    return found


@pytest.mark.parametrize("target", FAT)
@pytest.mark.parametrize("compiler", HERE)
def test_an_image_holds_code_for_every_architecture(compiler: GpuCompiler, target: str) -> None:
    machine = gpus(target)
    image, usage = compiler.compile_source(TEXT, machine)
    held = members(image)
    assert [arch for kind, arch, _ in held if kind == ELF] == list(machine.archs)
    assert [arch for kind, arch, _ in held if kind == PTX] == (["sm_80"] if machine.ptx else [])
    assert all(start == b"\x7fELF" for kind, _, start in held if kind == ELF)
    assert set(usage) == {"twice", "halved"}
    for used in usage.values():
        assert tuple(u.arch for u in used) == machine.archs
        assert all(8 <= u.registers <= 32 and not u.spills for u in used)
    assert [u.shared for u in usage["twice"]] == [256] * len(machine.archs)
    assert compiler.compile_source(TEXT, machine) == (image, usage)


@needs_nvrtc
def test_another_process_makes_the_same_bytes() -> None:
    code = (
        "import hashlib, sys\nfrom convc.lower.nvrtc import compile_source\nfrom convc.target import parse_target\n"
        "image, _ = compile_source(sys.stdin.read(), parse_target('cuda/sm_80+ptx'))\n"
        "print(hashlib.sha256(image).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], input=TEXT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(NVRTC.compile_source(TEXT, gpus("cuda/sm_80+ptx"))[0]).hexdigest()


@pytest.mark.parametrize("compiler", HERE)
def test_text_that_is_no_code_is_refused_with_the_compilers_words(compiler: GpuCompiler) -> None:
    with pytest.raises(ConvcError, match=rf"^{compiler.name} refuses a kernel for [^\n]*sm_80: [\s\S]*nonsense"):
        compiler.compile_source("nonsense;", gpus("cuda/sm_80"))


def test_members_are_padded_and_marked() -> None:
    image = fatbin([Member(PTX, "sm_75", b"text\0"), Member(ELF, "sm_90a", b"\x7fELF12345")])
    assert members(image) == [(PTX, "sm_75", b"text"), (ELF, "sm_90a", b"\x7fELF")]
    assert len(image) == HEAD.size + (MEMBER.size + 16 + 8) + (MEMBER.size + 16)


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    gone = {name: (lambda said=name: f"{said} is gone") for name in names}
    rows = tuple(dataclasses.replace(c, missing=gone.get(c.name, c.missing)) for c in COMPILERS)
    monkeypatch.setattr(gpu_compiler, "COMPILERS", rows)


def test_without_any_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "nvcc", "NVRTC")
    assert gpu_compiler.taken() is None
    with pytest.raises(MissingDependencyError) as caught:
        gpu_compiler.compile_source(TEXT, gpus("cuda/sm_80"))
    assert str(caught.value) == (
        "targets cuda/... need one of NVIDIA's compilers (nvcc is gone; NVRTC is gone); run `pip install "
        "nvidia-cuda-nvcc`, or `pip install nvidia-cuda-nvrtc cuda-bindings` where there is no gcc, or install CUDA "
        "from https://developer.nvidia.com/cuda-downloads"
    )


@needs_nvrtc
def test_where_nvcc_is_missing_nvrtc_compiles_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVC_CACHE_DIR", str(tmp_path))
    without(monkeypatch, "nvcc")
    assert gpu_compiler.identity()[0] == "NVRTC"
    network = model([node("Relu", "x", "y", name="only")], {"x": (1, 4, 5, 5)}, {})
    artifact = convc.compile(network.SerializeToString(), target="cuda/sm_80")
    manifest = json.loads(bytes(artifact.entries["manifest.json"]))
    launches = [launch for row in manifest["kernels"].values() for launch in row["launches"]]
    assert launches and all(u["arch"] == "sm_80" and u["registers"] for one in launches for u in one["usage"])
    for name, image in artifact.entries.items():
        if name.endswith(".fatbin"):
            assert [arch for _, arch, _ in members(bytes(image))] == ["sm_80"]


def test_nvcc_is_not_enough_without_a_host_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: "/somewhere/nvcc")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    assert nvcc.missing() == "nvcc needs gcc, which is not on PATH"
    monkeypatch.setenv("NVCC_CCBIN", "/opt/gcc-14")
    assert nvcc.missing() is None
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: None)
    assert nvcc.missing() == "nvcc is not on PATH"


@pytest.mark.parametrize("layout", ["nvidia/cu13/bin", "nvidia/cuda_nvcc/bin"])
def test_nvcc_is_found_where_pip_puts_it(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tmp_path / layout / "nvcc"
    found.parent.mkdir(parents=True)
    found.touch(mode=0o755)
    monkeypatch.setattr(nvcc.sysconfig, "get_path", lambda name: str(tmp_path))
    assert str(found.parent) in list(nvcc._places())


def test_later_gpus_translate_the_newest_ptx_that_is_not_for_one_alone() -> None:
    assert portable(["sm_80", "sm_90a"]) == "sm_80" and portable(["sm_80", "sm_90", "sm_90a"]) == "sm_90"
    assert portable(["sm_90a"]) is None and capability("sm_90a") == (9, 0)


def test_reports_of_both_compilers_are_read() -> None:
    report = (
        "ptxas info    : Compiling entry function 'f' for 'sm_80'\n"
        "    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 62 registers, used 1 barriers, 16384 bytes smem, 368 bytes cmem[0]\n"
        "ptxas info    : Compiling entry function 'f' for 'sm_90a'\n"
        "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 0 barriers\n"
    )
    first, second = usage_in(report)["f"]
    assert dataclasses.astuple(first) == ("sm_80", 62, 16384, 16, 8, 12) and first.spills
    assert dataclasses.astuple(second) == ("sm_90a", 40, 0, 0, 0, 0) and not second.spills


@pytest.mark.parametrize(("again", "kept"), [(0, b"again"), (8, b"again"), (24, b"first")])
def test_what_spills_is_compiled_for_one_block_at_least(
    again: int, kept: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(text: str, target: GpuTarget) -> tuple[bytes, dict[str, tuple[Usage, ...]]]:
        is_again = "__launch_bounds__(64, 1) twice" in text and "__launch_bounds__(64, 1) halved" in text
        spilled = again if is_again else 16
        return b"again" if is_again else b"first", {"twice": (Usage("sm_80", 255, 0, 0, spilled, 0),)}

    row = dataclasses.replace(NVCC, missing=lambda: None, compile_source=stand_in)
    monkeypatch.setattr(gpu_compiler, "COMPILERS", (row, NVRTC))
    assert gpu_compiler.compile_source(TEXT, gpus("cuda/sm_80"))[0] == kept
