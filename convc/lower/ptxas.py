"""What ptxas, the assembler in each of NVIDIA's compilers, tells of the kernels that it makes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from convc.launch import Usage

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")


def usage_in(report: str) -> Mapping[str, tuple[Usage, ...]]:
    """What it says with -v, by kernel: one Usage an architecture."""
    found: dict[str, list[Usage]] = {}
    kernel, arch, frame = "", "", (0, 0, 0)
    for line in report.splitlines():
        if match := _ENTRY.search(line):
            kernel, arch = match.groups()
        elif match := _FRAME.search(line):
            stack, stores, loads = map(int, match.groups())
            frame = stack, stores, loads
        elif match := _USED.search(line):
            shared = _SHARED.search(line)
            usage = Usage(arch, int(match.group(1)), int(shared.group(1)) if shared else 0, *frame)
            found.setdefault(kernel, []).append(usage)
    return {name: tuple(usages) for name, usages in found.items()}
