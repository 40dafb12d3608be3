"""ONNX operators that move elements, other than by index: reshape, transpose, concatenate, tile, pad."""

from __future__ import annotations

import math
from collections.abc import Callable

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import Call, normal_axes, normal_axis, scalar
from convc.ir import Broadcast, Concat, Node, Pad, Reshape, Transpose
from convc.ir.check import broadcast_shape

PAD_MODES = ("constant", "reflect", "edge", "wrap")


def concat(call: Call) -> Node:
    xs = tuple(call[i] for i in range(len(call.args)))
    return Concat(xs, call.axis(1, xs[0].type.rank))


def transpose(call: Call) -> Node:
    x = call[0]
    perm = call.ints("perm")
    return Transpose(x, perm if perm is not None else tuple(reversed(range(x.type.rank))))


def reshape(call: Call) -> Node:
    x, wanted = call[0], call.constant_ints(1, "the shape") or ()
    return Reshape(x, resolved(wanted, x.shape, copy_zeros=not call.flag("allowzero", False)))


def resolved(wanted: tuple[int, ...], shape: tuple[int, ...], *, copy_zeros: bool) -> tuple[int, ...]:
    """0 copies the extent at its place, -1 takes what is left."""
    if copy_zeros and any(e == 0 and i >= len(shape) for i, e in enumerate(wanted)):
        raise BadInputError(f"shape {list(wanted)} copies an extent that {list(shape)} does not have")
    to = [shape[i] if e == 0 and copy_zeros else e for i, e in enumerate(wanted)]
    known = math.prod(e for e in to if e != -1)
    if to.count(-1) > 1 or (-1 in to and (known < 1 or math.prod(shape) % known)):
        raise BadInputError(f"shape {list(wanted)} does not fit a tensor of {list(shape)}")
    return tuple(math.prod(shape) // known if e == -1 else e for e in to)


def flatten(call: Call) -> Node:
    x, axis = call[0], call.integer("axis", 1)
    axis = axis if axis == x.type.rank else normal_axis(axis, x.type.rank)
    return Reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def axes_of(call: Call) -> tuple[int, ...] | None:
    """An attribute before opset 13, an argument since."""
    return call.ints("axes") if "axes" in call.attributes else call.constant_ints(1, "the axes")


def squeeze(call: Call) -> Node:
    x, axes = call[0], axes_of(call)
    gone = normal_axes(axes, x.type.rank) if axes is not None else [i for i, e in enumerate(x.shape) if e == 1]
    if any(x.shape[a] != 1 for a in gone):
        raise BadInputError(f"axes {list(gone)} of x {x.type} are not all of extent 1")
    return Reshape(x, tuple(e for i, e in enumerate(x.shape) if i not in gone))


def unsqueeze(call: Call) -> Node:
    x, axes = call[0], axes_of(call) or ()
    rank = x.type.rank + len(axes)
    fresh, old = normal_axes(axes, rank), iter(x.shape)
    return Reshape(x, tuple(1 if i in fresh else next(old) for i in range(rank)))


def expand(call: Call) -> Node:
    x, wanted = call[0], call.constant_ints(1, "the shape") or ()
    return Broadcast(x, broadcast_shape(x.shape, wanted))


def tile(call: Call) -> Node:
    """Each axis becomes (repeats, extent), the first of the two is broadcast."""
    x, repeats = call[0], call.constant_ints(1, "the repeats") or ()
    if len(repeats) != x.type.rank or any(r < 0 for r in repeats):
        raise BadInputError(f"repeats {list(repeats)} do not fit x {x.type}")
    pairs = list(zip(repeats, x.shape, strict=True))
    apart = Reshape(x, tuple(n for _, e in pairs for n in (1, e)))
    wide = Broadcast(apart, tuple(n for r, e in pairs for n in (r, e)))
    return Reshape(wide, tuple(r * e for r, e in pairs))


def pad(call: Call) -> Node:
    """Pads and value are attributes before opset 11, then arguments; 18 adds axes."""
    x, mode = call[0], call.text("mode", "constant", PAD_MODES)
    rank = x.type.rank
    flat = call.ints("pads") if call.version < 11 else call.constant_ints(1, "the pads")
    axes = call.constant_ints(3, "the axes")
    chosen = normal_axes(axes, rank) if axes is not None else tuple(range(rank))
    if flat is None or len(flat) != 2 * len(chosen):
        raise BadInputError(f"pads {list(flat or ())} are not two for each of {len(chosen)} axes")
    pairs = [(0, 0)] * rank
    for axis, before, after in zip(chosen, flat[: len(chosen)], flat[len(chosen) :], strict=True):
        pairs[axis] = (before, after)
    return Pad(x, tuple(pairs), mode, pad_value(call))


def pad_value(call: Call) -> float:
    if call.version < 11:
        return call.real("value", 0.0)
    value = call.constant_or_none(2, "the value")
    if value is None or value.size == 0:
        return 0.0
    if value.size != 1:
        raise BadInputError(f"the value must be one number, not {value.size}")
    return float(value.reshape(-1)[0])


def depth_to_space(call: Call) -> Node:
    """DCR: channel = (row in block, column in block, channel). CRD: channel = (channel, row, column)."""
    x, size = image(call)
    n, c, h, w = x.shape
    if c % (size * size):
        raise BadInputError(f"{c} channels are not a multiple of blocksize {size} squared")
    rest = c // (size * size)
    if call.text("mode", "DCR", ("DCR", "CRD")) == "DCR":
        apart = Transpose(Reshape(x, (n, size, size, rest, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        apart = Transpose(Reshape(x, (n, rest, size, size, h, w)), (0, 1, 4, 2, 5, 3))
    return Reshape(apart, (n, rest, h * size, w * size))


def space_to_depth(call: Call) -> Node:
    x, size = image(call)
    n, c, h, w = x.shape
    if h % size or w % size:
        raise BadInputError(f"extents {h} x {w} are not multiples of blocksize {size}")
    apart = Reshape(x, (n, c, h // size, size, w // size, size))
    order = (0, 3, 5, 1, 2, 4) if call.text("mode", "DCR", ("DCR", "CRD")) == "DCR" else (0, 1, 3, 5, 2, 4)
    return Reshape(Transpose(apart, order), (n, c * size * size, h // size, w // size))


def image(call: Call) -> tuple[Node, int]:
    """x [N, C, H, W] and the block's side."""
    x, size = call[0], call.integer("blocksize", 0)
    if x.type.rank != 4 or size < 1:
        raise BadInputError(f"x {x.type} must have rank 4, blocksize {size} must be 1 or more")
    return x, size


def identity(call: Call) -> Node:
    return call[0]


def dropout(call: Call) -> Node | tuple[Node, ...]:
    training = call.constant_or_none(2, "training_mode")
    if training is not None and training.any():
        raise UnsupportedError("training mode is not supported")
    if not call.wants(1) or call.version < 10:
        return call[0]
    return call[0], Broadcast(scalar(True, "bool"), call[0].shape)


OPERATORS: dict[str, Callable[[Call], Node | tuple[Node, ...]]] = {
    "Concat": concat, "Transpose": transpose, "Reshape": reshape, "Flatten": flatten, "Squeeze": squeeze,
    "Unsqueeze": unsqueeze, "Expand": expand, "Tile": tile, "Pad": pad, "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth, "Identity": identity, "Dropout": dropout,
}  # fmt: skip
