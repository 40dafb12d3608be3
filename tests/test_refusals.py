"""Does every node refuse arguments that make no sense, with the reason?"""

from __future__ import annotations

import math

import numpy as np
import pytest

from convc.ir import (
    LRN,
    ArgReduce,
    Binary,
    Broadcast,
    Cast,
    Concat,
    Const,
    Conv,
    ConvTranspose,
    Gather,
    Input,
    MatMul,
    Node,
    Normalize,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Softmax,
    TensorType,
    Transpose,
    Unary,
    Where,
)

X4 = Input("x", TensorType((1, 4, 5, 5)))
W = Const(np.zeros((4, 2, 3, 3), np.float32))
TWO, ONE, NO_PAD = (2, 2), (1, 1), ((0, 0), (0, 0))


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (Conv(X4, W, None, ONE, NO_PAD, ONE, 1), "reads 2 channels"),
        (Conv(X4, W, None, ONE, NO_PAD, ONE, 0), "1 or more"),
        (Conv(X4, W, None, (0, 1), NO_PAD, ONE, 2), "1 or more"),
        (Conv(X4, W, None, (1,), NO_PAD, ONE, 2), "stride has 1"),
        (Conv(X4, W, None, ONE, ((-1, 0), (0, 0)), ONE, 2), "negative"),
        (Conv(X4, W, None, ONE, NO_PAD, (3, 1), 2), "spans 7"),
        (Conv(X4, W, Const(np.zeros(3, np.float32)), ONE, NO_PAD, ONE, 2), "4 output channels"),
        (Conv(X4, Const(np.zeros((4, 2, 3, 3))), None, ONE, NO_PAD, ONE, 2), "dtypes differ"),
        (Conv(X4, Const(np.zeros((4, 2, 3), np.float32)), None, ONE, NO_PAD, ONE, 2), "rank"),
        (Conv(X4, Const(np.zeros((4, 2, 3, 3), np.int8)), None, ONE, NO_PAD, ONE, 2), "dtypes differ"),
        (MatMul(Cast(X4, "uint8"), Const(np.zeros((5, 4), np.uint8))), "must be int8"),
        (Conv(X4, Const(np.zeros((0, 2, 3, 3), np.float32)), None, ONE, NO_PAD, ONE, 2), "1 or more"),
        (Conv(X4, Const(np.zeros((3, 2, 3, 3), np.float32)), None, ONE, NO_PAD, ONE, 2), "3 output channels"),
        (Conv(Input("i", TensorType((4, 5))), W, None, ONE, NO_PAD, ONE, 2), "spatial"),
        (ConvTranspose(X4, W, None, ONE, ((4, 4), (0, 0)), ONE, (0, 0), 1), "crops all"),
        (ConvTranspose(X4, W, None, ONE, NO_PAD, ONE, (-1, 0), 1), "negative"),
        (MatMul(X4, Const(np.zeros((4, 4), np.float32))), "5 columns"),
        (MatMul(X4, Const(np.zeros(5, np.float32))), "matrices"),
        (Pool("max", X4, (3, 3), ONE, ((3, 0), (0, 0)), ONE, (0, 0)), "nothing but padding"),
        (Pool("median", X4, (3, 3), ONE, NO_PAD, ONE, (0, 0)), "median"),
        (Pool("max", X4, (6, 3), ONE, NO_PAD, ONE, (0, 0)), "spans 6"),
        (Unary("relu", X4, (1.0,)), "takes 0 parameters"),
        (Unary("system", X4), "not a function"),
        (Unary("not", X4), "bool"),
        (Binary("add", X4, Const(np.zeros(3, np.float32))), "broadcast"),
        (Binary("and", X4, X4), "bool"),
        (Where(X4, X4, X4), "bool"),
        (Cast(X4, "object"), "object"),
        (Reshape(X4, (10, 11)), "110"),
        (Reshape(X4, (-10, -10)), "negative"),
        (Transpose(X4, (0, 1, 2, 2)), "permutation"),
        (Slice(X4, (0, 0, 0, 4), (1, 4, 5, 2), (1, 1, 1, 1)), "outside"),
        (Slice(X4, (0, 0, 0, 0), (1, 4, 5, 5), (1, 1, 1, 0)), "step"),
        (Concat((X4, Const(np.zeros((1, 4, 5, 4), np.float32))), 1), "differ"),
        (Concat((), 0), "nothing"),
        (Concat((X4,), 4), "outside"),
        (Pad(X4, ((0, 0), (0, 0), (-3, -3), (0, 0))), "crops more"),
        (Pad(X4, ((0, 0), (0, 0), (5, 0), (0, 0)), "reflect"), "reflects further"),
        (Broadcast(X4, (1, 4, 5, 6)), "broadcast"),
        (Gather(X4, X4, 0), "integers"),
        (Reduce("sum", X4, (2, 1)), "ascending"),
        (Reduce("sum", X4, (4,)), "outside"),
        (ArgReduce("sum", X4, 1), "position"),
        (Softmax(X4, -1), "outside"),
        (Normalize(X4, (1,), -1.0), "negative"),
        (LRN(X4, 0, 1.0, 1.0, 1.0), "size"),
        (Resize(X4, (1, 4, 5, 0), (1.0, 1.0, 1.0, 1.0), "linear", "half_pixel"), "1 or more"),
        (Resize(X4, (1, 4, 5, 5), (1.0, 1.0, 1.0, math.inf), "linear", "half_pixel"), "finite"),
        (Resize(X4, (1, 4, 5, 5), (1.0, 1.0, 1.0, 1.0), "linear", "tf_crop_and_resize"), "roi has 0"),
    ],
)
def test_nonsense_is_refused_with_the_reason(node: Node, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _ = node.type
