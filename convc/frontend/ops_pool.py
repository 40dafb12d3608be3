"""ONNX's pools, local and global."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import Call, scalar
from convc.frontend.window import Window, spatial_extents, window_of
from convc.ir import Binary, Node, Pool, Reduce, Unary


def pool(kind: str, call: Call) -> Node:
    x = call[0]
    window = window_of(call, x, call.ints("kernel_shape") or ())
    for pads, span in zip(window.pad, window.spans, strict=True):
        if max(pads) >= span:
            raise UnsupportedError(f"padding {pads} as large as the window of {span}: some windows would be empty")
    beyond = overhang(window, x.shape[2:]) if call.flag("ceil_mode", False) else (0,) * (x.type.rank - 2)
    return Pool(
        kind, x, window.kernel, window.stride, window.pad, window.dilation, beyond,
        count_pad=call.flag("count_include_pad", False), p=call.integer("p", 2),
    )  # fmt: skip


def overhang(window: Window, extents: tuple[int, ...]) -> tuple[int, ...]:
    """How far a last window that begins inside the input or its front padding reaches beyond the padded input."""
    found = []
    for i, span, s, (before, after) in zip(extents, window.spans, window.stride, window.pad, strict=True):
        room = i + before + after
        last = -(-(room - span) // s) * s
        last -= s if last >= i + before else 0
        found.append(max(last + span - room, 0))
    return tuple(found)


def global_pool(fn: str, call: Call) -> Node:
    return Reduce(fn, call[0], spatial_axes(call[0]))


def spatial_axes(x: Node) -> tuple[int, ...]:
    return tuple(range(2, len(spatial_extents(x)) + 2))


def global_lp_pool(call: Call) -> Node:
    x, p = call[0], call.integer("p", 2)
    return p_norm(x, p, spatial_axes(x))


def p_norm(x: Node, p: int, axes: tuple[int, ...]) -> Node:
    if p < 1:
        raise BadInputError(f"the exponent p is {p}, it must be 1 or more")
    if p in (1, 2):
        return Reduce(f"l{p}", x, axes)
    total = Reduce("sum", Binary("pow", Unary("abs", x), scalar(p, x)), axes)
    return Binary("pow", total, scalar(1 / p, x))


OPERATORS: dict[str, Callable[[Call], Node]] = {
    "MaxPool": partial(pool, "max"), "AveragePool": partial(pool, "average"), "LpPool": partial(pool, "lp"),
    "GlobalAveragePool": partial(global_pool, "mean"), "GlobalMaxPool": partial(global_pool, "max"),
    "GlobalLpPool": global_lp_pool,
}  # fmt: skip
