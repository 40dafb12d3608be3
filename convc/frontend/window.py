"""The attributes that convolutions and pools share: kernel, strides, dilations, and the several ways to say padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convc.errors import BadInputError, UnsupportedError
from convc.frontend.call import Call
from convc.frontend.limits import MAX_ELEMENTS
from convc.ir import Node, Pads

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True)
class Window:
    """Per spatial axis: taps, step, distance between taps, and (before, after) padding in elements."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: Pads

    @property
    def spans(self) -> tuple[int, ...]:
        """Elements from the first tap to the last, both included."""
        return spans(self.kernel, self.dilation)


def spans(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def window_of(call: Call, x: Node, kernel: tuple[int, ...]) -> Window:
    """The window over x [N, C, *I]; automatic padding is worked out from x's extents."""
    extents = spatial_extents(x)
    check_range("kernel_shape", kernel, len(extents), least=1)
    stride = per_axis(call, "strides", len(extents))
    dilation = per_axis(call, "dilations", len(extents))
    mode = call.text("auto_pad", "NOTSET", AUTO_PADS)
    given = explicit_pads(call, len(extents))
    if mode.startswith("SAME"):
        reach = zip(extents, spans(kernel, dilation), stride, strict=True)
        given = tuple(halves((-(-i // s) - 1) * s + span - i, upper=mode == "SAME_UPPER") for i, span, s in reach)
    elif mode == "VALID":
        given = ((0, 0),) * len(extents)
    return Window(kernel, stride, dilation, given)


def spatial_extents(x: Node) -> tuple[int, ...]:
    rank = x.type.rank
    if rank < 3:
        raise BadInputError(f"x is {x.type}; it needs a batch axis, a channel axis and a spatial axis")
    if rank > 5:
        raise UnsupportedError(f"x is {x.type}; 1 to 3 spatial axes are supported")
    return x.shape[2:]


def per_axis(call: Call, name: str, count: int, *, least: int = 1) -> tuple[int, ...]:
    found = call.ints(name) or (least,) * count
    check_range(name, found, count, least=least)
    return found


def explicit_pads(call: Call, count: int) -> Pads:
    flat = call.ints("pads") or (0,) * (2 * count)
    check_range("pads", flat, 2 * count, least=0)
    return tuple(zip(flat[:count], flat[count:], strict=True))


def check_range(name: str, values: tuple[int, ...], count: int, *, least: int) -> None:
    if len(values) != count:
        raise BadInputError(f"{name} has {len(values)} entries, it needs {count}")
    if min(values) < least or max(values) > MAX_ELEMENTS:
        raise BadInputError(f"{name} is {list(values)}; each entry must lie between {least} and {MAX_ELEMENTS}")


def halves(total: int, *, upper: bool) -> tuple[int, int]:
    """`total` elements of padding on two sides; of an odd one, `upper` puts the larger half after."""
    total = max(total, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)
