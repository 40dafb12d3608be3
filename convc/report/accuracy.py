"""How far a result is from its reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from convc.ir import Array

STEPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Accuracy:
    """`rel_l2` is |y - ref| / |ref|, `max_error` max|y - ref| / max|ref|; both infinite where one is finite and the
    other not. `top1` says whether each row of a matrix, as classifiers yield, has its largest element at the same
    place (None for other shapes); `equal` whether all elements are the same."""

    rel_l2: float
    max_error: float
    top1: bool | None
    equal: bool

    def within(self, tolerance: float, *, dtype: str = "float32") -> bool:
        """Whether both errors are. Results of a 2-byte `dtype` may always differ by one step of it, by rounding."""
        return self.equal or max(self.rel_l2, self.max_error) <= max(tolerance, STEPS.get(dtype, 0.0))


def accuracy(found: Array, reference: Array) -> Accuracy:
    """Of one tensor. Not-a-number and infinities must be where the reference has them."""
    y, ref = found.astype(np.float64), reference.astype(np.float64)
    same = bool(np.array_equal(found, reference, equal_nan=found.dtype.kind == "f"))
    if y.size == 0 or same:
        return Accuracy(0.0, 0.0, _same_top1(y, ref), same)
    finite = np.isfinite(ref)
    if not np.array_equal(np.isfinite(y), finite) or not np.array_equal(y[~finite], ref[~finite], equal_nan=True):
        return Accuracy(np.inf, np.inf, None, False)
    error, ref = np.abs(y - ref, where=finite, out=np.zeros_like(ref)), np.where(finite, ref, 0)
    return Accuracy(
        ratio(float(np.linalg.norm(error.ravel())), float(np.linalg.norm(ref.ravel()))),
        ratio(float(error.max()), float(np.abs(ref).max())),
        _same_top1(y, ref),
        same,
    )


def worst(parts: Mapping[str, Accuracy]) -> Accuracy:
    values = parts.values()
    return Accuracy(
        max((a.rel_l2 for a in values), default=0.0),
        max((a.max_error for a in values), default=0.0),
        None if all(a.top1 is None for a in values) else all(a.top1 is not False for a in values),
        all(a.equal for a in values),
    )


def ratio(error: float, scale: float) -> float:
    """`error` relative to `scale`; of no error 0, whatever the scale."""
    return 0.0 if error == 0 else float("inf") if scale == 0 else error / scale


def _same_top1(y: Array, ref: Array) -> bool | None:
    if y.ndim < 2 or y.shape[1] < 2 or y.size != y.shape[0] * y.shape[1]:
        return None
    rows = (values.reshape(y.shape[0], -1).argmax(1) for values in (y, ref))
    return bool(np.array_equal(*rows))
