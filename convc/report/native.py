"""Small C programs of convc's own, compiled and loaded: to see that the compiler works, and to measure the machine."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from convc.errors import ConvcError

SECONDS = 60


def load_c(source: str, *flags: str) -> ctypes.CDLL:
    """The shared library of C `source`, made by the compiler that artifacts are linked with.

    Raises MissingDependencyError where there is none, ConvcError where it refuses or its library does not load.
    """
    from convc.runtime.link import find_compiler
    from convc.target import parse_target

    with TemporaryDirectory(prefix="convc-") as folder:
        (Path(folder) / "code.c").write_text(source)
        command = [*find_compiler(parse_target("native")), "-O3", *flags, "-shared", "-fPIC", "code.c", "-o", "code.so"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
            if done.returncode:
                raise ConvcError(f"the C compiler failed: {' '.join(command)}\n{done.stderr[-2000:]}")
            return ctypes.CDLL(str(Path(folder) / "code.so"))
        except subprocess.TimeoutExpired as error:
            raise ConvcError(f"the C compiler did not end within {SECONDS} s: {' '.join(command)}") from error
        except OSError as error:
            raise ConvcError(f"what the C compiler made does not load: {error}") from error
