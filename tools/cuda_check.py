"""Whether what a GPU computed is right: a sample of a layer's outputs beside float64 sums over the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda_networks import Array

from convc.dtypes import ROUNDING
from convc.problem import Problem

DISTINCT = 7  # images that differ; image n of a batch is n % 7, and no extent of a thread block is a multiple of 7
COUNT = 4096  # outputs of a sample
IMAGES = 12  # of a batch, that the sample is from
CHUNK = 1 << 21  # products at once
TF32 = 2.0**-10  # of a product whose factors are rounded to tf32
# The largest error over the root mean square of the outputs. One product left out is 1e-2 of that where 4608 are added.
LIMITS = {"f32": 1e-4, "tf32": 5e-3, "f16": 5e-3}
MIXING = {"f32": 2e-3, "tf32": 0.1, "f16": 0.1}  # of algorithms with cancellation in their transforms
NETWORK_LIMITS = {"f32": 1e-3, "tf32": 2e-2, "f16": 3e-2}  # relative L2 of a network's outputs


@dataclass(frozen=True)
class Sample:
    """Places of outputs (image, channel, row, column) with their sums in float64, and sum(|x * w|) of each."""

    places: Array
    expected: Array
    magnitude: Array

    @property
    def images(self) -> list[int]:
        return sorted({int(n) for n in self.places[:, 0]})


@dataclass(frozen=True)
class Verdict:
    """`error` is the largest over the root mean square of the outputs, `rms` that of all errors; `reason` why it is
    wrong, or None."""

    error: float
    reason: str | None
    rms: float | None = None

    @property
    def row(self) -> dict[str, Any]:
        return {"error": self.error, "rms": self.rms, "wrong": self.reason}


def images(shape: Sequence[int], dtype: str) -> Array:
    """The images of a batch that differ: normal, each larger than the one before, so that networks with random weights
    tell them apart. The same for the same extents of an image."""
    count = min(shape[0], DISTINCT)
    drawn = [np.random.default_rng([n, *shape[1:]]).standard_normal(shape[1:], np.float32) for n in range(count)]
    return np.stack([image * np.float32(1 + n / 4) for n, image in enumerate(drawn)]).astype(dtype)


def sample(p: Problem, x: Array, w: Array, *, count: int = COUNT, seed: int = 0) -> Sample:
    """Of a convolution along two axes; `x` are the images that differ."""
    random = np.random.default_rng(seed)
    some = np.unique([0, p.mb - 1, *random.integers(0, p.mb, IMAGES - 2)])
    corners = [(n, o, *at) for n in (0, p.mb - 1) for o in (0, p.oc - 1) for at in ((0, 0), (p.o[0] - 1, p.o[1] - 1))]
    drawn = [random.choice(some, count), *(random.integers(0, extent, count) for extent in (p.oc, *p.o))]
    places = np.unique(np.concatenate([np.array(corners), np.stack(drawn, 1)]), axis=0)
    before, after = p.p, [max(0, a) for a in p.after]
    padded = np.pad(x, ((0, 0), (0, 0), *zip(before, after, strict=True)))
    step = max(1, CHUNK // p.reduction)
    parts = [_sums(p, padded, w, places[i : i + step]) for i in range(0, len(places), step)]
    expected, magnitude = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Sample(places, expected, magnitude)


def _sums(p: Problem, x: Array, w: Array, places: Array) -> tuple[Array, Array]:
    n, o, h, v = places.T
    rows, columns = (
        at[:, None] * s + np.arange(k) * d for at, s, k, d in zip((h, v), p.s, p.k, p.d, strict=True)
    )
    channels = (o // p.ocg * p.icg)[:, None] + np.arange(p.icg)
    image = (n % len(x))[:, None, None, None]
    window = x[image, channels[:, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]
    products = window.astype(np.float64) * w[o].astype(np.float64)
    return products.sum((1, 2, 3)), np.abs(products).sum((1, 2, 3))


def judge(found: Array, wanted: Sample, dtype: str, stored: str, *, mixes: bool, bound: float | None) -> Verdict:
    """`found` are the sampled outputs. Wrong beyond the algorithm's own bound, a fraction of sum(|x * w|), or beyond
    what errors that come at random leave of it."""
    difference = np.abs(found.astype(np.float64) - wanted.expected)
    size = float(np.sqrt(np.mean(wanted.expected**2))) or 1.0
    error, rms = float(difference.max() / size), float(np.sqrt(np.mean(difference**2)) / size)
    if mixes and bound is not None:  # of the largest |y|, which is known from the sample only
        allowed = bound * np.abs(wanted.expected).max() + 3 * ROUNDING[stored] * wanted.magnitude
    else:
        if not error <= (limit := (MIXING if mixes else LIMITS)[dtype]):
            worst = wanted.places[int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))]
            where = tuple(int(i) for i in worst)
            return Verdict(error, f"off by {error:.1e} of a typical output at {where}, where {limit:g} is allowed", rms)
        if bound is None:
            return Verdict(error, None, rms)
        allowed = (bound + 3 * ROUNDING[stored] + (TF32 if dtype == "tf32" else 0.0)) * wanted.magnitude
    if not (excess := float((difference / allowed).max())) <= 1:
        return Verdict(error, f"off by {excess:.1f} times what the algorithm promises", rms)
    return Verdict(error, None, rms)


def judge_network(found: Array, golden: Array, dtype: str) -> Verdict:
    """By relative L2."""
    error = float(np.linalg.norm(found.astype(np.float64) - golden) / np.linalg.norm(golden))
    limit = NETWORK_LIMITS[dtype]
    return Verdict(error, None if error <= limit else f"off by {error:.1e}, where {limit:g} is allowed")


def weight_of(row: Mapping[str, Any]) -> Any:
    from cuda_networks import Weight

    return Weight(row["name"], tuple(row["shape"]), row["mean"], row["deviation"])
