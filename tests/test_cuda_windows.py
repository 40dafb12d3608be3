"""Are the kernels for GPUs right whose elements read many others: pools, resizes, products of what is not constant?"""

from __future__ import annotations

import numpy as np
import pytest
from cuda_shim import needs_shim
from gpu_kernels import B4, accesses, check
from kernels import placeholder, whole

from convc.ir import LRN, Conv, ConvTranspose, MatMul, Pool, Resize, Unary
from convc.layout import PLAIN, Layout

pytestmark = needs_shim


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
@pytest.mark.parametrize("kind", ["max", "average"])
def test_pools(kind: str, layout: Layout, rng: np.random.Generator) -> None:
    x = placeholder(2, 21, 11, 13)
    values = {x: whole(rng, *x.shape)}
    pool = Pool(kind, x, (3, 2), (2, 2), ((1, 1), (0, 1)), (1, 1), (0, 0))
    check([pool, Unary("relu", pool)], values, [layout], layout, tolerance=1e-6)
    check([Pool(kind, x, (11, 13), (1, 1), ((0, 0), (0, 0)), (1, 1), (0, 0))], values, [layout], layout, tolerance=1e-6)


def test_a_pool_reads_and_writes_the_lanes_of_a_block_at_once() -> None:
    x = placeholder(1, 8, 6, 6)
    pool = Pool("max", x, (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), (0, 0))
    assert accesses(pool, x, B4, B4) == (2, 1)  # the taps of a row, in a loop over rows


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
def test_local_response(layout: Layout, rng: np.random.Generator) -> None:
    x = placeholder(2, 21, 5, 7)
    check([LRN(x, 5, 1e-2, 0.75, 1.0)], {x: whole(rng, *x.shape)}, [layout], layout, tolerance=2e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizes(mode: str, rng: np.random.Generator) -> None:
    x = placeholder(2, 6, 11, 13)
    node = Resize(x, (2, 6, 17, 29), (1, 1, 17 / 11, 29 / 13), mode, "half_pixel")
    for layout in (PLAIN, B4):
        check([node], {x: whole(rng, *x.shape)}, [layout], layout, tolerance=2e-6)


def test_products_of_activations(rng: np.random.Generator) -> None:
    """Squares of both sizes, whole and not, stacks that are broadcast, and a product that fills no square."""
    whole_squares, broadcast, narrow = ((128, 64, 64), (128, 64, 64)), ((2, 1, 70, 9), (3, 9, 65)), ((5, 130), (130, 3))
    for shapes in (((3, 17, 33), (3, 33, 19)), broadcast, narrow, whole_squares):
        a, b = placeholder(*shapes[0]), placeholder(*shapes[1])
        product = MatMul(a, b)
        values = {a: whole(rng, *shapes[0]), b: whole(rng, *shapes[1])}
        check([product, Unary("relu", product)], values, [PLAIN, PLAIN])


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_convolutions_by_weights_from_outside(dtype: str, group: int, rng: np.random.Generator) -> None:
    x, pad = placeholder(2, 6, 9, 11, dtype=dtype), ((1, 1), (1, 0))
    w, turned = placeholder(9, 6 // group, 3, 3, dtype=dtype), placeholder(6, 9 // group, 3, 3, dtype=dtype)
    given_ = {x: whole(rng, *x.shape, dtype=dtype)}
    conv = Conv(x, w, None, (2, 1), pad, (1, 1), group)
    check([conv], {**given_, w: whole(rng, *w.shape, dtype=dtype)}, [B4, PLAIN], B4)
    back = ConvTranspose(x, turned, None, (2, 2), pad, (1, 1), (0, 0), group)
    check([back], {**given_, turned: whole(rng, *turned.shape, dtype=dtype)}, [PLAIN, PLAIN])
