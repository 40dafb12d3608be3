"""Candidates and the trial itself (trial.c, and packed.c for TVM's remote procedure calls) to one shared library, with
the C compiler that artifacts are linked with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from convc.runtime.link import COMPILE_FLAGS, compile_c, find_compiler
from convc.target import Target
from convc.tune.build import Compiled

HERE = Path(__file__).parent
EXPORTS = (
    "convc_check", "convc_time", "convc_close",
    "__tvm_ffi_convc_check", "__tvm_ffi_convc_time", "__tvm_ffi_convc_processors",
)  # fmt: skip


def trial_library(candidates: Sequence[Compiled], target: Target) -> bytes:
    """ELF shared library whose candidates have the numbers of their places in `candidates`. It needs libc and libm.

    Raises MissingDependencyError without a C compiler for the target, ConvcError where the compiler refuses.
    """
    compiler = find_compiler(target)
    with TemporaryDirectory(prefix="convc-") as folder:
        root = Path(folder)
        (root / "trial.o").write_bytes(_trial_object(compiler))
        (root / "trial.h").write_text((HERE / "trial.h").read_text())
        (root / "table.c").write_text(_table(candidates))
        (root / "exports.map").write_text(f"{{ global: {' '.join(f'{e};' for e in EXPORTS)} local: *; }};\n")
        names = []
        for i, candidate in enumerate(candidates):
            for part, content in (("p", candidate.pack_object), ("k", candidate.kernel_object)):
                names.append(f"{part}{i:04d}.o")
                (root / names[-1]).write_bytes(content)
        compile_c([*compiler, *COMPILE_FLAGS, "table.c", "-o", "table.o"], root)
        link = ["-shared", "-s", "-pthread", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,--version-script=exports.map"]
        compile_c([*compiler, *link, "trial.o", "table.o", *names, "-lm", "-o", "trial.so"], root)
        return (root / "trial.so").read_bytes()


@lru_cache(maxsize=4)
def _trial_object(compiler: tuple[str, ...]) -> bytes:
    with TemporaryDirectory(prefix="convc-") as folder:
        root = Path(folder)
        sources = *(HERE / name for name in ("packed.c", "trial.c", "trial.h")), HERE.parent / "runtime" / "pool.c"
        for source in sources:
            (root / source.name).write_text(source.read_text())
        compile_c([*compiler, *COMPILE_FLAGS, "packed.c", "-o", "trial.o"], root)
        return (root / "trial.o").read_bytes()


def _table(candidates: Sequence[Compiled]) -> str:
    def parameters(count: int) -> str:
        return ", ".join(["void*"] * count)

    lines = [f"int32_t {c.pack}(void*, void*);\nint32_t {c.kernel}({parameters(c.reads + 1)});" for c in candidates]
    for reads in sorted({c.reads for c in candidates}):
        args = ", ".join(f"a[{i}]" for i in range(reads + 1))
        lines.append(
            f"static int invoke_{reads}(function f, void* const* a) {{\n"
            f"  return ((int32_t (*)({parameters(reads + 1)}))f)({args});\n}}"
        )
    rows = [
        f"  {{(function){c.pack}, (function){c.kernel}, invoke_{c.reads}, {c.reads}, {c.packed_bytes}u, "
        f"{c.workspace_bytes}u}},\n"
        for c in candidates
    ]
    table = f"const struct candidate CANDIDATES[] = {{\n{''.join(rows)}  {{0}}}};"
    return "\n".join(['#include "trial.h"', *lines, table, f"const int CANDIDATE_COUNT = {len(rows)};\n"])
