"""Do the algorithms that skip taps outside x count them rightly, share an image among threads, and stay inside x?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import compiled, laid_out, native, read_back

from convc.algorithm import Choice, algorithms
from convc.ir import Const, Conv, Input, TensorType
from convc.layout import PLAIN, Layout
from convc.lower.kernel import lower
from convc.lower.packed import packed_shape
from convc.plan.plan import Group, Kernel, Packing
from convc.problem import Problem
from convc.schedules import _window

SHARED = {  # few blocks of channels, so that three threads must share an image
    "depthwise": ["g8_ic8ih9iw13_oc8_kh3ph1", "g5_ic5iw24_oc5_kw5_pw2", "g8_ic8ih6iw31_oc8_kh5kw1ph2pw0"],
    "grouped": ["g4_ic16ih9iw11_oc16_kh3ph1", "g8_ic8ih12iw7_oc16_kh3sh2ph1"],
    "diagonal": ["g3_ic9ih9iw11_oc15_kh3ph1", "g2_ic6iw30_oc14_kw1"],
}


@st.composite
def lines(draw: st.DrawFn) -> Problem:
    i, k, s, d = (draw(st.integers(1, high)) for high in (20, 5, 3, 3))
    before, after = draw(st.integers(0, 6)), draw(st.integers(-2, 6))
    o = max(1, (i + before + after - (k - 1) * d - 1) // s + 1)
    return Problem(1, 2, 2, 2, (i,), (o,), (k,), (s,), (before,), (d,))


def reads(p: Problem, o: int) -> list[bool]:
    """Whether each tap of output `o` is inside x."""
    return [0 <= o * p.s[0] + u * p.d[0] - p.p[0] < p.i[0] for u in range(p.k[0])]


@settings(max_examples=300, deadline=None)
@given(p=lines())
def test_pairs_are_the_taps_inside(p: Problem) -> None:
    assert _window.pairs(p, 0) == sum(sum(reads(p, o)) for o in range(p.o[0]))


@settings(max_examples=300, deadline=None)
@given(p=lines(), tile=st.integers(1, 7))
def test_interior_tiles_are_whole_and_inside(p: Problem, tile: int) -> None:
    first, last = _window.interior(p, 0, tile)
    whole = range(p.o[0] // tile)
    free = [t for t in whole if all(all(reads(p, o)) for o in range(t * tile, (t + 1) * tile))]
    assert list(range(first, last)) == free


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in SHARED.items() for text in texts])
def test_threads_share_an_image(name: str, text: str) -> None:
    algorithm, p, target = algorithms()[name], Problem.parse(text), replace(native(), threads=3)
    config = next(c for c in algorithm.space(p, target) if c["xb"] == target.lanes)
    assert config["parts"] > 1
    rng = np.random.default_rng(1)
    x = Input("x", TensorType((p.mb, p.ic, *p.i), p.dtype))
    w = Const(rng.integers(-3, 4, (p.oc, p.icg, *p.k)).astype(p.dtype))
    conv = Conv(x, w, None, p.s, tuple(zip(p.p, p.after, strict=True)), p.d, p.g)
    group, choice, layout = Group((conv,), (x, w)), Choice(name, config), Layout(target.lanes)
    data = rng.integers(-3, 4, x.shape).astype(p.dtype)
    packing = Packing(w, p, choice)
    raw, packed = laid_out(w.value, PLAIN), laid_out(np.zeros(packed_shape(packing), p.dtype), PLAIN)
    assert compiled(lower(packing, target), target)(raw.pointer, packed.pointer) == 0
    read, y = laid_out(data, layout), laid_out(np.zeros(conv.shape, p.dtype), layout)
    kernel = compiled(lower(Kernel(group, (layout, PLAIN), layout, choice), target), target, tasks=3)
    assert kernel(read.pointer, packed.pointer, y.pointer) == 0
    np.testing.assert_array_equal(read_back(y.array, conv.shape, layout), conv.reference(data, w.value))
