"""ONNX's reductions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from convc.errors import UnsupportedError
from convc.frontend.call import Call, normal_axes
from convc.ir import ArgReduce, Cast, Node, Reduce

FUNCTIONS = {
    "ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod",
    "ReduceL1": "l1", "ReduceL2": "l2", "ReduceSumSquare": "sum_square", "ReduceLogSum": "log_sum",
    "ReduceLogSumExp": "log_sum_exp",
}  # fmt: skip


def reduction(fn: str, call: Call) -> Node:
    """Axes are an attribute until opset 12 (ReduceSum) or 17, then an argument; none are all, or with noop none."""
    x = call[0]
    axes = call.ints("axes") if "axes" in call.attributes else call.constant_ints(1, "axes")
    if not axes and call.flag("noop_with_empty_axes", False):
        chosen: tuple[int, ...] = ()
    else:
        chosen = tuple(sorted(normal_axes(axes or tuple(range(x.type.rank)), x.type.rank)))
    keep = call.flag("keepdims", True)
    if x.dtype == "bool":
        return Cast(Reduce(fn, Cast(x, "uint8"), chosen, keep), "bool")
    return Reduce(fn, x, chosen, keep)


def arg_reduction(fn: str, call: Call) -> Node:
    x = call[0]
    if x.type.rank == 0:
        raise UnsupportedError("a tensor of rank 0")
    last = call.flag("select_last_index", False)
    return ArgReduce(fn, x, call.axis(0, x.type.rank), call.flag("keepdims", True), last)


OPERATORS: dict[str, Callable[[Call], Node]] = {
    **{name: partial(reduction, fn) for name, fn in FUNCTIONS.items()},
    "ArgMax": partial(arg_reduction, "max"),
    "ArgMin": partial(arg_reduction, "min"),
}
