"""Parallel convolutions of one value that are added become one: RepVGG, MobileOne, dilated re-parameterisation."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from convc.ir import Array, Binary, Const, Conv, Node
from convc.passes.affine import affine_chain
from convc.passes.constants import along, is_float, rounded
from convc.passes.rewrite import Uses, origins
from convc.passes.scale import bias_of

# How much more than all branches together the merged convolution may multiply. One call instead of several, and one
# pass over x and y, pay for that much.
WORTHWHILE = 1.3
MOST_TERMS = 16


@dataclass(frozen=True)
class Branch:
    """One addend. Tap u along axis a reads x at stride[a] * i + start[a] + u * step[a].

    w is [O, C/group, *K], b [O] float64. `macs` is what it multiplies for each output element.
    """

    w: Array
    b: Array
    start: tuple[int, ...]
    step: tuple[int, ...]
    group: int
    macs: int
    nodes: tuple[Node, ...]

    def positions(self, axis: int) -> list[int]:
        return [self.start[axis] + u * self.step[axis] for u in range(self.w.shape[2 + axis])]


def merge_branches(node: Node, uses: Uses) -> Node | None:
    """conv(x, w1, b1) + conv(x, w2, b2)  ->  conv(x, w1 + w2, b1 + b2) with both kernels placed in a common one.

    Either may also be x itself or x * s + t: a kernel of one tap. They may be any two addends of a sum of many.
    """
    if not (isinstance(node, Binary) and node.fn == "add" and is_float(node)):
        return None
    terms = addends(node, uses)
    convs = [t for t in terms if isinstance(t, Conv)]
    for conv, other in itertools.product(convs, terms):
        if conv is other or not (merged := merged_pair(conv, other, uses)):
            continue
        rest = [t for t in terms if t is not conv and t is not other]
        return functools.reduce(lambda a, b: Binary("add", a, b, origin=node.origin), [*rest, merged])
    return None


def addends(node: Node, uses: Uses) -> list[Node]:
    """The values that `node` adds up, all of its shape; empty where one of them comes twice or would broadcast."""
    terms: list[Node] = []
    stack = [node]
    while stack:
        at = stack.pop()
        inner = isinstance(at, Binary) and at.fn == "add" and not any(isinstance(a, Const) for a in at.args)
        if inner and (at is node or uses.sole(at)) and len(terms) + len(stack) < MOST_TERMS:
            stack.extend(reversed(at.args))
        else:
            terms.append(at)
    usable = len(set(terms)) == len(terms) and all(t.shape == node.shape for t in terms)
    return terms if usable else []


def merged_pair(conv: Conv, other: Node, uses: Uses) -> Conv | None:
    first = of_conv(conv, uses)
    second = first and same_place(other, conv, uses)
    merged = first and second and merge(conv, (first, second))
    return replace(merged, origin=origins(conv, *second.nodes)) if merged and second else None


def of_conv(node: Node, uses: Uses) -> Branch | None:
    """A convolution with known weights that nobody else reads."""
    match node:
        case Conv(_, Const(w), None | Const()) if uses.sole(node):
            start = tuple(-before for before, _ in node.pad)
            return Branch(w, bias_of(node), start, node.dilation, node.group, w[0].size, (node,))
    return None


def same_place(node: Node, conv: Conv, uses: Uses) -> Branch | None:
    """`node` as a branch beside `conv`: a convolution of the same x, or x with a scale and a shift."""
    if isinstance(node, Conv):
        fits = node.x is conv.x and node.stride == conv.stride
        return of_conv(node, uses) if fits else None
    if conv.x.shape != conv.shape or any(s != 1 for s in conv.stride):
        return None
    if node is conv.x:
        return of_scale(np.ones(conv.shape[1]), np.zeros(conv.shape[1]), conv, ())
    chain = affine_chain(node, uses) if uses.sole(node) else None
    if chain is None or chain.x is not conv.x:
        return None
    scale, shift = along(chain.scale, conv.shape, 1), along(chain.shift, conv.shape, 1)
    return None if scale is None or shift is None else of_scale(scale, shift, conv, chain.nodes)


def of_scale(scale: Array, shift: Array, conv: Conv, nodes: tuple[Node, ...]) -> Branch:
    """x * scale + shift as a depthwise kernel of one tap. It multiplies nothing that a convolution would not."""
    rank = len(conv.stride)
    w = scale.reshape(-1, 1, *(1,) * rank)
    return Branch(w, shift, (0,) * rank, (1,) * rank, len(scale), 0, nodes)


def merge(conv: Conv, branches: tuple[Branch, Branch]) -> Conv | None:
    """All branches in one convolution, with the stride and output of `conv`; None where it would multiply too much."""
    group = math.gcd(*(b.group for b in branches))
    taps = [common_taps([b.positions(axis) for b in branches]) for axis in range(len(conv.stride))]
    kernel = tuple(len(t) for t in taps)
    per_group = conv.x.shape[1] // group
    if per_group * math.prod(kernel) > WORTHWHILE * sum(b.macs for b in branches):
        return None
    w = np.zeros((conv.shape[1], per_group, *kernel))
    for branch in branches:
        place(w, branch, taps, group=group)
    weights, bias = rounded(w, conv.dtype), rounded(sum((b.b for b in branches), np.zeros(conv.shape[1])), conv.dtype)
    if weights is None or bias is None:
        return None
    merged = Conv(
        conv.x,
        weights,
        bias if np.any(bias.value) else None,
        conv.stride,
        tuple(padding(conv, branches, axis, t) for axis, t in enumerate(taps)),
        tuple(t.step if len(t) > 1 else 1 for t in taps),
        group,
    )
    return merged if merged.shape == conv.shape else None


def common_taps(positions: list[list[int]]) -> range:
    """The coarsest evenly spaced positions that hold all of these."""
    every = sorted({p for each in positions for p in each})
    step = math.gcd(*(p - every[0] for p in every)) or 1
    return range(every[0], every[-1] + 1, step)


def padding(conv: Conv, branches: tuple[Branch, Branch], axis: int, taps: range) -> tuple[int, int]:
    """Zeros before and after: as many after as the branches have, where that gives the same number of windows."""
    extent, out, stride = conv.x.shape[2 + axis], conv.shape[2 + axis], conv.stride[axis]
    kept = [n.pad[axis][1] + taps[-1] - b.positions(axis)[-1] for b in branches for n in b.nodes if isinstance(n, Conv)]
    after = max(kept)
    if (extent - taps[0] + after - (taps[-1] - taps[0] + 1)) // stride + 1 != out:
        after = max(0, (out - 1) * stride + taps[-1] - (extent - 1))
    return -taps[0], after


def place(w: Array, branch: Branch, taps: list[range], *, group: int) -> None:
    """Add the branch's kernel to w [O, C/group, *K], where `group` divides the branch's own number of groups."""
    at = [[t.index(p) for p in branch.positions(axis)] for axis, t in enumerate(taps)]
    parts = branch.group // group
    rows, columns = w.shape[0] // branch.group, w.shape[1] // parts
    for g in range(branch.group):
        outs, begin = range(g * rows, (g + 1) * rows), g % parts * columns
        w[np.ix_(outs, range(begin, begin + columns), *at)] += branch.w[outs.start : outs.stop]
