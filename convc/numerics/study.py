"""What an algorithm's rounding does to results: numpy models of its arithmetic in three formats, and a measurement.

f32     everything in float32, by fused multiply-adds in order, whatever this machine's BLAS does: its own order made
        errors 0.6 to 1.2 times as large
f16     transforms and sums in float32; what the products read and write, U, V and M, kept in float16
i8      U and V in int8, symmetric, with a scale for each place (e, f) of the transformed tile; sums in int32

Rows are scaled to norms near 1 by powers of two first, without which float16 overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convc.numerics.bilinear import Bilinear, Matrix, equilibrated

Array = np.ndarray[Any, np.dtype[Any]]
Product = Callable[[Array, Array], Array]
SEED = 0
CHANNELS, TILES, FILTERS = 64, 48, 16  # of a measurement


@dataclass(frozen=True)
class Study:
    """Relative RMS error against the definition in float64, and how many outputs were not finite."""

    error: float
    nonfinite: int


def study(b: Bilinear, format: str, *, seed: int = SEED) -> Study:  # noqa: A002  the field's word
    """The error of `b` nested over two axes on standard normal x and w, 64 channels."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((TILES, CHANNELS, b.span, b.span))
    w = random.standard_normal((FILTERS, CHANNELS, b.r, b.r))
    x, w = x.astype(np.float32), w.astype(np.float32)
    found, wanted = nested(b, x, w, format), defined(b, x, w)
    finite = np.isfinite(found)
    error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) if finite.all() else np.inf
    return Study(float(error), int(np.count_nonzero(~finite)))


def nested(b: Bilinear, x: Array, w: Array, format: str, *, is_scaled: bool = True) -> Array:  # noqa: A002
    """y [T, O, m, m] of tiles x [T, C, span, span] and w [O, C, r, r], the arithmetic modelled; float32. `is_scaled`
    False leaves the rows as they are."""
    b = equilibrated(b) if is_scaled else b
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is a finding
        v = _by_place(_both_axes(_floats(b.bt), x.astype(np.float32)))
        u = _by_place(_both_axes(_floats(b.g), w.astype(np.float32)))
        products = FORMATS[format](v, u.swapaxes(-2, -1))
        return _both_axes(_floats(b.at), _to_tiles(products))


def defined(b: Bilinear, x: Array, w: Array) -> Array:
    """What `nested` stands for, by the definition in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (b.r, b.r), axis=(-2, -1))
    taps = windows[:, :, :: b.stride, :: b.stride]
    return np.tensordot(taps, w.astype(np.float64), axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def _f32(a: Array, b: Array) -> Array:
    """a @ b in float32; float64 holds each product exactly."""
    found = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float32)
    for k in range(a.shape[-1]):
        found = (found + a[..., :, k, None].astype(np.float64) * b[..., k, None, :]).astype(np.float32)
    return found


def _f16(v: Array, u: Array) -> Array:
    return _in_f16(_in_f16(v) @ _in_f16(u))


def _i8(v: Array, u: Array) -> Array:
    v, v_scale = _in_i8(v)
    u, u_scale = _in_i8(u)
    # Sums of int8 products are whole numbers below 2^53, so float64 has the bits of int32 and BLAS does the work.
    return np.asarray((v @ u) * (v_scale * u_scale), np.float32)


FORMATS: Mapping[str, Product] = {"f32": _f32, "f16": _f16, "i8": _i8}
"""M [n, n, T, O] of V [n, n, T, C] and U [n, n, C, O]."""


def _in_f16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


def _in_i8(values: Array) -> tuple[Array, Array]:
    """Whole numbers of -127 to 127 and, for each place, their scale."""
    largest = np.abs(values).max(axis=(-2, -1), keepdims=True).astype(np.float64)
    scale = np.where(largest > 0, largest, 1.0) / 127
    return np.rint(values / scale), scale


def _floats(matrix: Matrix) -> Array:
    return np.array(matrix, np.float64).astype(np.float32)


def _both_axes(matrix: Array, tiles: Array) -> Array:
    """matrix @ tile @ matrix.T of every tile."""
    return _f32(_f32(matrix, tiles), matrix.T)


def _by_place(tiles: Array) -> Array:
    """[A, C, n, n] -> [n, n, A, C]"""
    return np.ascontiguousarray(tiles.transpose(2, 3, 0, 1))


def _to_tiles(places: Array) -> Array:
    return np.ascontiguousarray(places.transpose(2, 3, 0, 1))
