"""Are maps for GPUs right, which move 16 bytes an access where they can, and do they?"""

from __future__ import annotations

import numpy as np
import pytest
from cuda_shim import needs_shim
from gpu_kernels import B4, accesses, blocked, check, machine, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels import kernel_of, placeholder, whole
from test_cuda_algorithms import run_on_shim

from convc.ir import Binary, Cast, Concat, Const, Node, Pad, Reshape, Slice, Transpose, Unary
from convc.layout import PLAIN, Layout
from convc.plan.plan import Copy

pytestmark = needs_shim

SOME = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


SHAPE = (2, 21, 5, 7)  # no block divides the channels, no access a row
EVEN = (2, 20, 4, 8)
LAYOUTS = [(PLAIN, PLAIN), (PLAIN, B4), (B4, PLAIN), (B4, B4)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [SHAPE, EVEN], ids=str)
def test_copies_between_layouts(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> None:
    x = placeholder(*shape, dtype=dtype)
    values = whole(rng, *shape, dtype=dtype)
    for source, to in LAYOUTS:
        np.testing.assert_array_equal(run([Copy(x)], {x: values}, [source], to), values)


def test_lanes_that_pad_a_block_become_zero(rng: np.random.Generator) -> None:
    x = placeholder(1, 5, 3, 3)
    y = np.empty(B4.physical(x.shape), "float32")
    run_on_shim(kernel_of([Copy(x)], (x,), [PLAIN], B4), machine(), whole(rng, *x.shape), y)
    assert not y[:, 1, ..., 1:].any()


@SOME
@given(
    shape=st.lists(st.integers(1, 20), min_size=3, max_size=5).filter(lambda s: np.prod(s) < 20_000 and s[1] > 1),
    kind=st.sampled_from(["transpose", "slice", "pad", "reflect", "concat", "reshape"]),
    pair=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 99),
)
def test_moves_of_any_shape(shape: list[int], kind: str, pair: tuple[Layout, Layout], seed: int) -> None:
    rng, x = np.random.default_rng(seed), placeholder(*shape)
    values = {x: whole(rng, *shape)}
    node = moved(kind, x, rng)
    if isinstance(node, Concat):
        values[node.xs[1]] = whole(rng, *node.xs[1].shape)
    check([node], values, [blocked(pair[0], read) for read in values], blocked(pair[1], node))


def moved(kind: str, x: Node, rng: np.random.Generator) -> Node:
    """A node that moves the elements of x, drawn."""
    rank, shape = len(x.shape), x.shape
    if kind == "transpose":
        return Transpose(x, tuple(int(a) for a in rng.permutation(rank)))
    if kind == "slice":
        begin = [int(rng.integers(0, e)) for e in shape]
        size = [int(rng.integers(1, e - b + 1)) for b, e in zip(begin, shape, strict=True)]
        return Slice(x, tuple(begin), tuple((s + 1) // 2 for s in size), (2,) * rank)
    if kind == "concat":
        axis = int(rng.integers(0, rank))
        other = [int(rng.integers(1, 9)) if a == axis else e for a, e in enumerate(shape)]
        return Concat((x, placeholder(*other)), axis)
    if kind == "reshape":
        return Reshape(x, (shape[0], int(np.prod(shape[1:]))))
    most = [3 if kind == "pad" else min(3, e) for e in shape]
    pad = tuple((int(rng.integers(0, m)), int(rng.integers(0, m))) for m in most)
    return Pad(x, pad, "constant" if kind == "pad" else kind)


@pytest.mark.parametrize("layouts", [(B4, B4, B4), (PLAIN, PLAIN, PLAIN), (B4, PLAIN, B4), (PLAIN, B4, B4)], ids=str)
@pytest.mark.parametrize("shape", [SHAPE, EVEN], ids=str)
def test_chains(shape: tuple[int, ...], layouts: tuple[Layout, ...], rng: np.random.Generator) -> None:
    """Per channel, per element and by itself; x is read at two places of the chain."""
    x, scale = placeholder(*shape), Const(whole(rng, 1, shape[1], 1, 1))
    scaled = Binary("mul", x, scale)
    nodes = [scaled, Binary("add", scaled, x), Unary("relu", Binary("add", scaled, x))]
    nodes[2] = Unary("relu", nodes[1])
    check(nodes, {x: whole(rng, *shape), scale: scale.value}, layouts[:2], layouts[2])


def test_types_of_several_sizes_share_a_strip(rng: np.random.Generator) -> None:
    x, y = placeholder(*EVEN, dtype="int8"), placeholder(*EVEN, dtype="float64")
    wide = Cast(x, "float64")
    check([wide, Binary("add", wide, y)], {x: whole(rng, *EVEN, dtype="int8"), y: whole(rng, *EVEN).astype("float64")},
          [B4, B4], B4)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "source", "to", "expected"),
    [
        (EVEN, PLAIN, PLAIN, (1, 1)), (SHAPE, PLAIN, PLAIN, (1, 1)), (EVEN, B4, B4, (1, 1)), (SHAPE, B4, B4, (1, 1)),
        (EVEN, PLAIN, B4, (0, 1)), (EVEN, B4, PLAIN, (1, 0)),
    ],
)  # fmt: skip
def test_what_lies_alike_moves_16_bytes_an_access(
    shape: tuple[int, ...], source: Layout, to: Layout, expected: tuple[int, int]
) -> None:
    x = placeholder(*shape)
    assert accesses(Unary("relu", x), x, source, to) == expected
