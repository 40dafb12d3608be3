"""Scales and shifts by constants go into the weights of the convolution or matrix product beside them: batch norm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convc.ir import Array, Binary, Const, Conv, ConvTranspose, MatMul, Node
from convc.passes.affine import Affine, affine_chain, affine_step, is_quotient
from convc.passes.constants import along, finite, rounded, rounded_product
from convc.passes.rewrite import Uses, origins

# Below this scale x + shift/scale could lose what x holds.
SMALLEST_SCALE = 2.0**-10


def fold_scale_after(node: Node, uses: Uses) -> Node | None:
    """conv(x, w, b) * s + t  ->  conv(x, w * s, b * s + t), s and t one number per output channel"""
    step = affine_step(node)
    if step is None or is_quotient(node) or not uses.sole(step.x):
        return None
    match step.x:
        case Conv(w=Const(w), b=None | Const()) as conv:
            return _with_scaled_outputs(conv, w, step)
        case ConvTranspose(w=Const(w), b=None | Const()) as conv:
            return _with_scaled_outputs(conv, outputs_first(w, conv), step)
        case MatMul(a, Const(b)) as product if b.ndim == 2 and not step.shifts:
            scale = along(step.scale, product.shape, len(product.shape) - 1)
            scaled = None if scale is None else rounded_product(b, scale, node.dtype)
            return scaled and MatMul(a, scaled, origin=origins(product, node))
    return None


def _with_scaled_outputs(conv: Conv | ConvTranspose, w: Array, step: Affine) -> Node | None:
    """`w` has the output channels first."""
    scale, shift = along(step.scale, conv.shape, 1), along(step.shift, conv.shape, 1)
    if scale is None or shift is None:
        return None
    by_channel = scale.reshape(-1, *(1,) * (w.ndim - 1))
    weights = rounded_product(w, by_channel, conv.dtype) if step.scales else finite(w)
    bias = rounded(bias_of(conv) * scale + shift, conv.dtype)
    if weights is None or bias is None:
        return None
    if isinstance(conv, ConvTranspose):
        weights = Const(inputs_first(weights.value, conv))
    needed = conv.b is not None or step.shifts
    return replace(conv, w=weights, b=bias if needed else None, origin=origins(conv, *step.nodes))


def bias_of(conv: Conv | ConvTranspose) -> Array:
    """One float64 number for each output channel."""
    return conv.b.value.astype(np.float64) if isinstance(conv.b, Const) else np.zeros(conv.shape[1])


def outputs_first(w: Array, conv: ConvTranspose) -> Array:
    """w [C, O/group, *K] as [O, C/group, *K]."""
    split = w.reshape(conv.group, -1, *w.shape[1:]).swapaxes(1, 2)
    return split.reshape(-1, *split.shape[2:])


def inputs_first(w: Array, conv: ConvTranspose) -> Array:
    """[O, C/group, *K] as w [C, O/group, *K]."""
    split = w.reshape(conv.group, -1, *w.shape[1:]).swapaxes(1, 2)
    return split.reshape(-1, *split.shape[2:])


def fold_scale_before(node: Node, uses: Uses) -> Node | None:
    """conv(x * s + t, w, b)  ->  conv(x, w * s, b + w . t), s and t one number per input channel.

    Padding follows the shift, so with padding only s goes: conv(x * s + t, w)  ->  conv(x + t/s, w * s).
    """
    match node:
        case Conv(x, Const(), None | Const()) if uses.sole(x):
            chain = affine_chain(x, uses)
            return None if chain is None else _conv_of_affine(node, chain)
        case MatMul(a, Const(b)) if b.ndim == 2 and uses.sole(a):
            chain = affine_chain(a, uses)
            return None if chain is None else _product_of_affine(node, b, chain)
    return None


def _conv_of_affine(conv: Conv, chain: Affine) -> Node | None:
    scale, shift = along(chain.scale, conv.x.shape, 1), along(chain.shift, conv.x.shape, 1)
    if scale is None or shift is None:
        return None
    weights = rounded(scaled_inputs(conv, scale), conv.dtype)
    origin = origins(*reversed(chain.nodes), conv)
    if weights is None:
        return None
    if not chain.shifts:
        return replace(conv, x=chain.x, w=weights, origin=origin)
    if all(p == (0, 0) for p in conv.pad):
        return _with_shift_in_bias(conv, chain, weights, shift)
    if not chain.scales or np.min(np.abs(chain.scale)) < SMALLEST_SCALE:
        return None
    moved = rounded(chain.shift / chain.scale, conv.dtype)
    return moved and replace(
        conv, x=Binary("add", chain.x, moved, origin=chain.nodes[0].origin), w=weights, origin=origin
    )


def _with_shift_in_bias(conv: Conv, chain: Affine, weights: Const, shift: Array) -> Node | None:
    moved = scaled_inputs(conv, shift).reshape(conv.shape[1], -1).sum(axis=1)
    bias = rounded(bias_of(conv) + moved, conv.dtype)
    return bias and replace(conv, x=chain.x, w=weights, b=bias, origin=origins(*reversed(chain.nodes), conv))


def scaled_inputs(conv: Conv, scale: Array) -> Array:
    """w times one number per input channel, float64 [O, C/group, *K]."""
    assert isinstance(conv.w, Const)
    w = conv.w.value.astype(np.float64)
    split = w.reshape(conv.group, -1, *w.shape[1:])
    scaled = split * scale.reshape(conv.group, 1, w.shape[1], *(1,) * (w.ndim - 2))
    return np.asarray(scaled.reshape(w.shape))


def _product_of_affine(node: MatMul, b: Array, chain: Affine) -> Node | None:
    last = len(node.a.shape) - 1
    scale, shift = along(chain.scale, node.a.shape, last), along(chain.shift, node.a.shape, last)
    if scale is None or shift is None:
        return None
    wide = b.astype(np.float64)
    weights, bias = rounded(wide * scale[:, None], node.dtype), rounded(shift @ wide, node.dtype)
    if weights is None or bias is None:
        return None
    product = MatMul(chain.x, weights, origin=origins(*reversed(chain.nodes), node))
    return Binary("add", product, bias, origin=product.origin) if chain.shifts else product
