"""Objects and glue to a shared library, with the system's C compiler. The same input gives the same bytes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from convc.errors import ConvcError, MissingDependencyError
from convc.runtime.glue import Glue
from convc.target import Target, host_machine

COMPILERS = ("cc", "gcc", "clang")
SECONDS = 300
COMPILE_FLAGS = (
    "-std=gnu11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-ident", "-fno-strict-aliasing", "-pthread",
    "-Wall", "-Wextra", "-c",
)
# Nothing of the machine or the time in the file, every symbol found at link time, no relocations in the code.
LINK_FLAGS = (
    "-shared", "-s", "-pthread", "-Wl,--build-id=none", "-Wl,--as-needed", "-Wl,-Bsymbolic", "-Wl,-z,defs",
    "-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack", "-Wl,-z,text", "-Wl,--version-script=exports.map",
)


def link(objects: Sequence[bytes], glue: Glue, target: Target) -> bytes:
    """The shared library: ELF objects + glue -> bytes. It needs libc, libm and libpthread only.

    Raises MissingDependencyError without a C compiler for the target, ConvcError where the compiler refuses.
    """
    compiler = find_compiler(target)
    with tempfile.TemporaryDirectory(prefix="convc-") as folder:  # made with mode 0700
        root = Path(folder)
        for name, text in glue.files.items():
            (root / name).write_text(text)
        (root / "exports.map").write_text(_exports(glue))
        names = [f"k{i:04d}.o" for i in range(len(objects))]
        for name, content in zip(names, objects, strict=True):
            (root / name).write_bytes(content)
        compile_c([*compiler, *COMPILE_FLAGS, "run.c", "-o", "run.o"], root)
        (root / "objects.txt").write_text("\n".join(names))  # thousands of names do not fit on a command line
        compile_c([*compiler, *LINK_FLAGS, "run.o", "@objects.txt", "-lm", "-o", "model.so"], root)
        return (root / "model.so").read_bytes()


def find_compiler(target: Target) -> tuple[str, ...]:
    """$CONVC_CC, else the first C compiler in PATH that makes code for the target."""
    if asked := shlex.split(os.environ.get("CONVC_CC", "")):
        if shutil.which(asked[0]):
            return tuple(asked)
        raise MissingDependencyError(f"CONVC_CC is '{asked[0]}', which is not in PATH; set it to a C compiler")
    machine = target.triple.partition("-")[0]
    native = machine == host_machine()
    candidates = COMPILERS if native else (f"{machine}-linux-gnu-gcc",)
    if found := next((name for name in candidates if shutil.which(name)), None):
        return (found,)
    package = "gcc" if native else f"gcc-{machine.replace('_', '-')}-linux-gnu"
    raise MissingDependencyError(
        f"linking for {target.label} needs a C compiler and found none of {', '.join(candidates)}; "
        f"run `apt-get install {package}` or set CONVC_CC"
    )


def _exports(glue: Glue) -> str:
    shown = " ".join(f"{name};" for name in glue.exports)
    return f"{{ global: {shown} local: *; }};\n"


def compile_c(command: Sequence[str], folder: Path) -> None:
    """Run the C compiler in `folder`. Raises ConvcError with its words where it fails."""
    environment = os.environ | {"LC_ALL": "C", "TMPDIR": str(folder), "SOURCE_DATE_EPOCH": "0"}
    line = shlex.join(command)
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=SECONDS, check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConvcError(f"the C compiler did not end within {SECONDS} s: {line}") from error
    except OSError as error:
        raise MissingDependencyError(f"the C compiler cannot be run ({error}): {line}") from error
    if done.returncode:
        raise ConvcError(f"the C compiler failed with code {done.returncode}: {line}\n{done.stderr[-4000:]}")
