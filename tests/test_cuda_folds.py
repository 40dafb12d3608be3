"""Do threads that share the elements of a fold agree with the reference, in every layout and at every extent?"""

from __future__ import annotations

import numpy as np
import pytest
from cuda_shim import needs_shim
from gpu_kernels import B4, blocked, check, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels import placeholder, whole

from convc.ir import ArgReduce, Normalize, Reduce, Softmax
from convc.layout import PLAIN, Layout

pytestmark = needs_shim

SOME = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
@pytest.mark.parametrize("axes", [(1,), (2, 3), (1, 2, 3), (0, 2)], ids=str)
def test_whole_numbers_are_summed_exactly(axes: tuple[int, ...], layout: Layout, rng: np.random.Generator) -> None:
    """33 channels fill no block; 1989 elements of an image no team."""
    x = placeholder(2, 33, 9, 7)
    node = Reduce("sum", x, axes)
    check([node], {x: whole(rng, *x.shape)}, [layout], blocked(layout, node))


@SOME
@given(
    shape=st.lists(st.integers(1, 70), min_size=2, max_size=4).filter(lambda s: 40 < np.prod(s) < 60_000),
    folded=st.integers(1, 15),
    node=st.sampled_from(["sum", "max", "min", "prod", "sum_square"]),
    dtype=st.sampled_from(["float32", "int8", "int64", "float64", "uint8"]),
    layout=st.sampled_from([PLAIN, B4]),
)
def test_folds_of_any_shape(shape: list[int], folded: int, node: str, dtype: str, layout: Layout) -> None:
    axes = tuple(a for a in range(len(shape)) if folded >> a & 1) or (0,)
    x = placeholder(*shape, dtype=dtype)
    values = whole(np.random.default_rng(1), *shape, dtype=dtype)
    values = np.sign(values) + (values == 0).astype(dtype) if node == "prod" else values
    reduced = Reduce(node, x, axes)
    check([reduced], {x: values.astype(dtype)}, [blocked(layout, x)], blocked(layout, reduced))


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_and_norms(axis: int, layout: Layout, rng: np.random.Generator) -> None:
    x = placeholder(1, 37, 12, 40)
    values = {x: rng.standard_normal(x.shape).astype(np.float32)}
    for node in (Softmax(x, axis), Normalize(x, tuple(range(axis, 4)), 1e-5), Reduce("log_sum_exp", x, (axis,))):
        check([node], values, [layout], blocked(layout, node), tolerance=2e-6)


@pytest.mark.parametrize("shape", [(1, 1000), (3, 4097), (200, 33)])
def test_softmax_over_classes(shape: tuple[int, int], rng: np.random.Generator) -> None:
    x = placeholder(*shape)
    check([Softmax(x, 1, log=True)], {x: rng.standard_normal(shape).astype(np.float32)}, [PLAIN], tolerance=1e-6)


def test_errors_of_long_sums_stay_small(rng: np.random.Generator) -> None:
    """A million numbers around 1: summed one after the other their mean would be off by about 1e-5."""
    x = placeholder(2, 512, 1024)
    values = (1 + rng.random(x.shape)).astype(np.float32)
    check([Reduce("mean", x, (1, 2))], {x: values}, [PLAIN], tolerance=2e-7)


@pytest.mark.parametrize("axis", [1, 3])
def test_positions_are_first_or_last_and_nan_beats_all(axis: int, rng: np.random.Generator) -> None:
    x = placeholder(1, 50, 6, 65)
    values = whole(rng, *x.shape)  # few values, so that many are equal
    values[0, 7, 2, 11] = values[0, 40, 2, 50] = np.nan
    for fn, last in (("max", False), ("min", True)):
        y = run([ArgReduce(fn, x, axis, last=last)], {x: values}, [PLAIN])
        np.testing.assert_array_equal(y, ArgReduce(fn, x, axis, last=last).reference(values))


@pytest.mark.parametrize("layout", [PLAIN, B4], ids=str)
def test_one_nan_is_found_by_every_fold(layout: Layout, rng: np.random.Generator) -> None:
    x = placeholder(1, 37, 40, 40)
    values = rng.standard_normal(x.shape).astype(np.float32)
    values[0, 5, 30, 39] = np.nan
    for node in (Reduce("max", x, (2, 3)), Reduce("min", x, (1,)), Reduce("sum", x, (1, 2, 3))):
        y = run([node], {x: values}, [layout], blocked(layout, node))
        np.testing.assert_array_equal(np.isnan(y), np.isnan(node.reference(values)))
