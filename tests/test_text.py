"""Does the text of a graph say what the graph is, and nothing that a model's names could inject?"""

from __future__ import annotations

import zlib

import numpy as np

from convc.ir import Binary, Const, Conv, Graph, Input, Pool, Reduce, Softmax, TensorType, Unary
from convc.ir.text import label, show


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 3, 3, 3)).astype(np.float32)


def network(seed: int = 0, name: str = "image") -> Graph:
    x = Input(name, TensorType((1, 3, 8, 8)))
    w = Const(weights(seed))
    conv = Conv(x, w, None, (2, 2), ((1, 1), (1, 1)), (1, 1), 1, origin=("stem/conv\n",))
    act = Unary("clip", conv, (0.0, 6.0))
    pool = Pool("max", act, (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), (0, 0))
    mean = Reduce("mean", pool, (2, 3))
    y = Softmax(Binary("add", mean, Const(np.array(0.5, np.float32))), 1)
    return Graph((x,), (("y", y), ("features", conv)))


def test_every_node_is_a_line() -> None:
    assert show(network(), origin=True).splitlines() == [
        "i0 = input('image') : float32[1x3x8x8]",
        f"c0 = const(crc32={_crc(weights(0))}) : float32[4x3x3x3]",
        "n0 = conv(i0, c0, stride=(2, 2), pad=((1, 1), (1, 1)), dilation=(1, 1), group=1) : float32[1x4x4x4]"
        "  # 'stem/conv\\n'",
        "n1 = clip(n0, params=(0.0, 6.0)) : float32[1x4x4x4]",
        "n2 = pool_max(n1, kernel=(2, 2), stride=(2, 2), pad=((0, 0), (0, 0)), dilation=(1, 1), overhang=(0, 0))"
        " : float32[1x4x2x2]",
        "n3 = reduce_mean(n2, axes=(2, 3)) : float32[1x4x1x1]",
        f"c1 = const(crc32={_crc(np.float32(0.5))}, [0.5]) : float32[]",
        "n4 = add(n3, c1) : float32[1x4x1x1]",
        "n5 = softmax(n4, axis=1) : float32[1x4x1x1]",
        "output('y') = n5",
        "output('features') = n0",
    ]


def _crc(value: np.ndarray | np.float32) -> str:
    return f"{zlib.crc32(value.tobytes()):08x}"


def test_same_graph_same_text_and_other_weights_other_text() -> None:
    assert show(network()) == show(network())
    assert show(network(1)) != show(network())


def test_names_cannot_break_a_line() -> None:
    text = show(network(name="x\n; system('rm')\u2028" + "a" * 10**6))
    assert len(text) < 2000
    assert text.splitlines()[0].startswith("i0 = input(\"x\\n; system('rm')\\u2028aaa")
    assert label("short") == "'short'"


def test_inputs_that_nothing_reads_are_shown() -> None:
    x, unused = Input("x", TensorType((2,))), Input("unused", TensorType((3,)))
    assert "i1 = input('unused') : float32[3]" in show(Graph((x, unused), (("y", Unary("relu", x)),)))
