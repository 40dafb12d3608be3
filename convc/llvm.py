"""What TVM's LLVM knows of CPUs, asked of the library itself: TVM's Python package takes half a second to import,
and what is asked here it would only pass on. An `import tvm` afterwards finds its libraries mapped."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

LIBRARIES = {"tvm_runtime": "RTLD_GLOBAL", "tvm_compiler": "RTLD_LOCAL"}  # in the order and the modes of tvm/base.py


def host_cpu() -> str:
    """LLVM's name of this machine's CPU."""
    return str(_function("target.llvm_get_system_cpu")())


def is_cpu(arch: str, triple: str) -> bool:
    return bool(_function("target.llvm_is_valid_cpu")(arch, triple))


def cpus(triple: str) -> list[str]:
    """Every CPU that LLVM knows for a triple."""
    return [str(arch) for arch in _function("target.llvm_get_cpu_archlist")(_target({"mtriple": triple}))]


def cpu_features(arch: str, triple: str) -> tuple[str, ...]:
    """LLVM's names of what a CPU has, sorted."""
    found = _function("target.llvm_get_cpu_features")(_target({"mcpu": arch, "mtriple": triple}))
    return tuple(sorted(str(feature) for feature in found))


def _target(settings: dict[str, str]) -> Any:
    return _function("target.Target")({"kind": "llvm", **settings})


@cache
def _function(name: str) -> Callable[..., Any]:
    from tvm_ffi import get_global_func

    _load()
    found: Callable[..., Any] = get_global_func(name)
    return found


@cache
def _load() -> None:
    """Map the libraries that `import tvm` maps, from where its own libinfo.py says that they are."""
    from tvm_ffi.libinfo import load_lib_ctypes

    package = find_spec("tvm")  # finds a package without importing it
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'tvm'", name="tvm")
    spec = spec_from_file_location("convc.llvm.libinfo", Path(package.origin).with_name("libinfo.py"))
    assert spec is not None and spec.loader is not None
    libinfo = module_from_spec(spec)
    spec.loader.exec_module(libinfo)
    for name, mode in LIBRARIES.items():
        load_lib_ctypes("tvm", name, mode, extra_lib_paths=libinfo.package_lib_paths())
