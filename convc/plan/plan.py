"""The plan: what an artifact executes. An ordered list of kernel calls whose arguments are slots, and their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from convc.algorithm import Choice
from convc.ir import Const, Conv, ConvTranspose, Input, MatMul, Node, TensorType
from convc.ir.check import FLOATS, SUMS
from convc.ir.node import Array
from convc.layout import PLAIN, Layout
from convc.problem import Problem


@dataclass(frozen=True, eq=False)
class Copy(Node):
    """y = x: between two layouts, or into a buffer of the caller. Only plans hold it, always as a group of its own."""

    x: Node

    def infer(self) -> TensorType:
        return self.x.type

    def reference(self, *args: Array) -> Array:
        return args[0]


def is_literal(node: Node) -> bool:
    """Whether code holds the value as a number instead of reading it from memory: constants of one element."""
    return isinstance(node, Const) and node.value.size == 1


def is_anchor(node: Node) -> bool:
    """Whether algorithms compute it: a convolution (or transposed, or a matmul) by constant weights, of floats or
    of 8-bit numbers that are summed in int32."""
    match node:
        case Conv(x, Const()) | ConvTranspose(x, Const()):
            fits = node.b is None
        case MatMul(x, Const(value)):
            fits = value.ndim == 2
        case _:
            return False
    return fits and x.dtype in (*FLOATS, *SUMS) and not isinstance(x, Const)


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that become one kernel, arguments first; the last is the result, the only one that leaves the kernel.

    A group is anchored where its first node `is_anchor`: an algorithm computes it and the nodes after it are the
    epilogue; a bias is an add of [1, O, 1, ...] there. Every other group is generic.
    `reads` are the values from outside, in order of first use, without literals (an anchor's weights are none).
    """

    nodes: tuple[Node, ...]
    reads: tuple[Node, ...]

    @property
    def result(self) -> Node:
        return self.nodes[-1]

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Group:
        """The group of `nodes`, arguments before users, with its reads."""
        inside = set(nodes)
        reads = (a for n in nodes for a in n.args if a not in inside and (is_anchor(n) or not is_literal(a)))
        return cls(tuple(nodes), tuple(dict.fromkeys(reads)))

    @property
    def anchor(self) -> Node | None:
        return self.nodes[0] if is_anchor(self.nodes[0]) else None

    @property
    def weights(self) -> Const | None:
        """The anchor's constant, which the choice's algorithm packs."""
        match self.anchor:
            case Conv(w=Const() as w) | ConvTranspose(w=Const() as w) | MatMul(b=Const() as w):
                return w
        return None

    @property
    def problem(self) -> Problem | None:
        """The anchor's problem in canonical form."""
        return None if self.anchor is None else Problem.of(self.anchor).canonical

    @property
    def origin(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for node in self.nodes for name in node.origin))


@dataclass(frozen=True, eq=False)
class Kernel:
    """A compiled function to be: a group, the layout of each read and of the result, and the choice where anchored.

    Its C parameters are the reads in order (the anchor's weights already packed), then the result. Without a choice
    an anchored group is lowered as a generic one. `in_place` is the read in whose buffer the result is written, element
    for element: the two pointers are equal, so that the code must not promise that they do not alias.
    """

    group: Group
    layouts: tuple[Layout, ...]
    result: Layout
    choice: Choice | None = None
    in_place: int | None = None


@dataclass(frozen=True, eq=False)
class Packing:
    """An init kernel: one constant -> the form in which run kernels read it.

    With a choice it is the algorithm's `pack`; without one a copy into `layout`. Constants of one type that are packed
    alike share it, so the code may depend on the type of `weight` and never on its values.
    """

    weight: Const
    problem: Problem | None = None
    choice: Choice | None = None
    layout: Layout = PLAIN


@dataclass(frozen=True)
class Slot:
    """Where a kernel's argument lies: in the caller's `input` or `output` number `index`, or at `offset` bytes in
    `weights` (as in the file), `packed` (written once by init) or `arena` (the workspace)."""

    space: str
    offset: int = 0
    index: int = 0


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a kernel: the slots of its reads in order, then the slot of its result.

    Calls with the same code share the kernel; `origin` is this call's own.
    """

    kernel: Kernel | Packing
    args: tuple[Slot, ...]
    origin: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """init packs `weights` (bytes at these offsets, each 64-byte aligned) into `packed_bytes`; run uses `arena_bytes`.

    `groups` in order of execution hold what partition found; `select` fills `choices` and `layouts`; `arena` fills
    the calls and sizes. `inputs` and `outputs` are the caller's, row-major.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, Node], ...]
    groups: tuple[Group, ...]
    choices: Mapping[Group, Choice] = field(default_factory=dict)
    layouts: Mapping[Node, Layout] = field(default_factory=dict)
    init: tuple[Call, ...] = ()
    run: tuple[Call, ...] = ()
    weights: tuple[tuple[str, int, Const], ...] = ()
    weight_bytes: int = 0
    packed_bytes: int = 0
    arena_bytes: int = 0
