"""Do targets say of a CPU what LLVM says, without importing the compiler?"""

from __future__ import annotations

import subprocess
import sys

import pytest

from convc import llvm
from convc.errors import UsageError
from convc.target import TRIPLES, parse_target

CPUS = [("znver3", "x86_64"), ("x86-64-v4", "x86_64"), ("cortex-a72", "aarch64")]


@pytest.mark.parametrize(("arch", "machine"), CPUS)
def test_features_are_those_of_tvm(arch: str, machine: str) -> None:
    from tvm.target import Target, codegen

    target = Target({"kind": "llvm", "mcpu": arch, "mtriple": TRIPLES[machine]})
    assert llvm.cpu_features(arch, TRIPLES[machine]) == tuple(sorted(map(str, codegen.llvm_get_cpu_features(target))))
    assert llvm.cpus(TRIPLES[machine]) == [str(cpu) for cpu in codegen.llvm_get_cpu_archlist(target)]
    assert llvm.is_cpu(arch, TRIPLES[machine]) and not llvm.is_cpu("znver33", TRIPLES[machine])
    assert llvm.host_cpu() == str(codegen.llvm_get_system_cpu())


def test_a_target_needs_no_import_of_tvm_and_does_not_hinder_one() -> None:
    code = (
        "import sys\n"
        "from convc.target import parse_target\n"
        "target = parse_target('cpu/znver3')\n"
        "assert 'tvm' not in sys.modules\n"
        "import tvm\n"
        "f = tvm.te.compute((4,), lambda i: i + 1, name='f')\n"
        "module = tvm.compile(tvm.IRModule({'main': tvm.te.create_prim_func([f])}), target=target.tvm)\n"
        "assert 'znver3' in str(tvm.target.Target(target.tvm)), tvm.target.Target(target.tvm)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_misspelt_cpu_is_told_with_those_near_it() -> None:
    with pytest.raises(UsageError, match="LLVM knows no CPU 'znver33' for x86_64-.*; did you mean znver"):
        parse_target("cpu/znver33")
