"""Does a change of layout turn whole squares of vectors right, for every length of vector that this machine runs?"""

from __future__ import annotations

import numpy as np
import pytest
from kernels import call, laid_out, read_back, whole
from test_algorithms import TARGETS, machine

from convc.ir import TensorType
from convc.layout import PLAIN, Layout
from convc.lower.build import assembly
from convc.lower.generic import relayout


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_squares_and_what_is_left_of_them(target: str, dtype: str) -> None:
    lanes = machine(target).lanes
    for channels, width in ((lanes, lanes), (3 * lanes, 4 * lanes + 3), (2 * lanes + 1, 2 * lanes)):
        shape = (2, channels, 3, width)
        x = whole(np.random.default_rng(0), *shape, dtype=dtype)
        for source, to in ((PLAIN, Layout(lanes)), (Layout(lanes), PLAIN)):
            schedule = relayout(shape, dtype, source, to, machine(target))
            y = call(schedule, [laid_out(x, source)], TensorType(shape, dtype), to, target=machine(target))
            np.testing.assert_array_equal(read_back(y, shape, to), x)


@pytest.mark.parametrize("target", TARGETS)
def test_a_square_is_loaded_and_stored_in_whole_vectors(target: str) -> None:
    lanes = machine(target).lanes
    schedule = relayout((1, lanes, lanes, 8), "float32", PLAIN, Layout(lanes), machine(target))
    code = assembly(schedule, "kernel", machine(target))
    one_by_one = [line for line in code.splitlines() if line.split()[:1] in (["vmovss"], ["movss"], ["vinsertps"])]
    assert not one_by_one
