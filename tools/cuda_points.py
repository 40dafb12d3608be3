"""Winograd at points that others compute at, by a name, for artifacts that are compared with those at convc's own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from unittest import mock

from convc.numerics.bilinear import Bilinear
from convc.numerics.known import known
from convc.numerics.points import chosen, chosen_strided
from convc.schedules import _tiling, _winograd_cuda, winograd

OWN = "convc"
TABLE = ((2, 3), (4, 3), (6, 3))
CACHES = (_tiling.form_of, _winograd_cuda._work_of, winograd._spread, winograd._mantissa, winograd._operations)


def sets(m: int, r: int) -> dict[str, Bilinear]:
    """F(m, r) by the name of its points: convc's own first, then those of others that differ."""
    own = chosen(m, r)
    others = {each.name: each.b for each in known(m, r) if set(each.b.points) != set(own.points)}
    return {OWN: own, **others}


@contextlib.contextmanager
def computed_at(b: Bilinear) -> Iterator[None]:
    """Every F(m, r) of b's size at its points: costs and bounds too. Kernels are compiled anew, as the cache of code
    does not know points."""

    def at(m: int, r: int, stride: int) -> Bilinear:
        return b if (m, r, stride) == (b.m, b.r, b.stride) else chosen_strided(m, r, stride)

    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CONVC_CACHE_DIR=folder):
        with mock.patch.object(_tiling, "chosen_strided", at):
            _forget()
            yield
        _forget()


def _forget() -> None:
    for cache in CACHES:
        cache.cache_clear()
