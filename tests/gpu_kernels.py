"""Generic kernels for GPUs in this process: groups of nodes compiled, run on the shim with every access checked, and
referenced; lanes that pad a block hold NaN, or all bits."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from kernels import assert_close, kernel_of, laid_out, read_back, reference
from test_cuda_algorithms import run_on_shim

from convc.ir import Node
from convc.layout import PLAIN, Layout
from convc.target import GpuTarget, parse_target

B4 = Layout(4)
Values = dict[Node, np.ndarray]


@functools.cache
def machine() -> GpuTarget:
    found = parse_target("cuda/sm_80")
    assert isinstance(found, GpuTarget)
    return found


def run(nodes: Sequence[Node], values: Values, layouts: Sequence[Layout], result: Layout = PLAIN) -> np.ndarray:
    last = nodes[-1] if nodes else next(iter(values))
    y = np.empty(result.physical(last.shape), last.dtype)
    given_ = zip(values.values(), layouts, strict=True)
    arrays = [np.ascontiguousarray(laid_out(v, layout).array) for v, layout in given_]
    run_on_shim(kernel_of(nodes, tuple(values), layouts, result), machine(), *arrays, y)
    return read_back(y, last.shape, result)


def check(
    nodes: Sequence[Node], values: Values, layouts: Sequence[Layout], result: Layout = PLAIN, *, tolerance: float = 0.0
) -> None:
    """The emitted group agrees with the reference, as `assert_close` has it."""
    assert_close(run(nodes, values, layouts, result), reference(nodes, values), tolerance)


def blocked(layout: Layout, node: Node) -> Layout:
    """`layout` where the node has channels for it."""
    return layout if len(node.shape) >= 3 and node.shape[1] > 1 else PLAIN


def accesses(node: Node, x: Node, source: Layout, result: Layout) -> tuple[int, int]:
    """Loads from and stores to parameters of 16 bytes, in the text."""
    from convc.lower.cuda import source_of
    from convc.lower.generic import generic

    text = source_of(generic(kernel_of([node], [x], [source], result), machine()), "k", machine()).text
    return text.count("= *(float4*)(x"), text.count("*(float4*)(y_flat_ptr")
