"""The container in which code for several GPU architectures is one image: the driver takes the member that fits.

A header, then the members, each behind a header of its own and padded to 8 bytes, as nvcc writes them uncompressed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from convc.gpu import capability

PTX, ELF = 1, 2
MAGIC, VERSION = 0xBA55ED50, 1
HEAD = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of all members
# kind, version, bytes of this header, of the member, of it compressed; place of options; minor and major of the kind's
# own version, architecture; place and length of a name; flags, 0, bytes before compression.
MEMBER = struct.Struct("<HHIQIIHHIIIQQQ")
MEMBER_VERSION = 0x0101
OWN_VERSION = {PTX: (0, 9), ELF: (8, 1)}  # minor, major
OPTIONS = {PTX: struct.pack("<II8x", MEMBER.size + 8, 0), ELF: b""}  # place and length of those to translate PTX with
FOR_LINUX_64 = 0x11
THIS_ONE_ONLY = 0x100000  # code with instructions that later architectures lack, as sm_90a's
ALIGNMENT = 8


@dataclass(frozen=True)
class Member:
    """Code of one architecture; `kind` is PTX or ELF."""

    kind: int
    arch: str
    data: bytes


def fatbin(members: Sequence[Member]) -> bytes:
    body = b"".join(_packed(member) for member in members)
    return HEAD.pack(MAGIC, VERSION, HEAD.size, len(body)) + body


def _packed(member: Member) -> bytes:
    major, minor = capability(member.arch)
    flags = FOR_LINUX_64 | (THIS_ONE_ONLY if member.arch.endswith("a") else 0)
    data, options = member.data + bytes(-len(member.data) % ALIGNMENT), OPTIONS[member.kind]
    head = MEMBER.pack(
        member.kind, MEMBER_VERSION, MEMBER.size + len(options), len(data), 0, MEMBER.size if options else 0,
        *OWN_VERSION[member.kind], 10 * major + minor, 0, 0, flags, 0, 0,
    )  # fmt: skip
    return head + options + data
