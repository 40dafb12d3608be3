"""Padding with zeros goes into the convolution or the average that reads it."""

from __future__ import annotations

from dataclasses import replace

from convc.ir import Conv, Node, Pad, Pads, Pool
from convc.passes.rewrite import Uses, origins


def fold_pad(node: Node, uses: Uses) -> Node | None:
    """conv(pad(x, p), pad=q)  ->  conv(x, pad=p + q), and the same for an average that counts its padding."""
    match node:
        case Conv(Pad(x, pad, "constant", 0.0) as before) if is_spatial(pad):
            return replace(node, x=x, pad=sums(pad[2:], node.pad), origin=origins(before, node))
        case Pool("average", Pad(x, pad, "constant", 0.0) as before) if is_spatial(pad) and counts_pad(node):
            both = sums(pad[2:], node.pad)
            spans = [(k - 1) * d + 1 for k, d in zip(node.kernel, node.dilation, strict=True)]
            if any(max(p) >= span for p, span in zip(both, spans, strict=True)):
                return None
            return replace(node, x=x, pad=both, count_pad=True, origin=origins(before, node))
    return None


def is_spatial(pad: Pads) -> bool:
    """Nothing before the spatial axes, and nothing negative."""
    return all(p == (0, 0) for p in pad[:2]) and all(v >= 0 for p in pad for v in p)


def counts_pad(pool: Pool) -> bool:
    return pool.count_pad or all(p == (0, 0) for p in pool.pad)


def sums(a: Pads, b: Pads) -> Pads:
    return tuple((p[0] + q[0], p[1] + q[1]) for p, q in zip(a, b, strict=True))
