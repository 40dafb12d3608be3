"""The size of a constant in the form in which run kernels read it."""

from __future__ import annotations

import hashlib
import struct

from convc.algorithm import Algorithm
from convc.lower.objects import toolchain
from convc.plan.plan import Packing
from convc.plan.text import kernel_text
from convc.problem import Problem
from convc.runtime import cache


def packed_shape(packing: Packing) -> tuple[int, ...]:
    """Extents of the packed form of a constant. Only `pack` knows an algorithm's, so that they are asked of it, and
    then kept beside the object code that they belong to."""
    choice, problem = packing.choice, packing.problem
    if choice is None or problem is None:
        return packing.layout.physical(packing.weight.shape)
    parts = "packed shape", choice.kind, kernel_text(packing), toolchain()
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if stored := cache.get(key):
        return tuple(extent for (extent,) in struct.iter_unpack("<q", stored))
    shape = _shape_of(choice.entry, packing, problem)
    cache.put(key, struct.pack(f"<{len(shape)}q", *shape))
    return shape


def _shape_of(algorithm: Algorithm, packing: Packing, problem: Problem) -> tuple[int, ...]:
    from tvm import te  # half a second that a warm cache does without

    assert packing.choice is not None
    w = te.placeholder(problem.weights, packing.weight.dtype, name="w")
    return tuple(int(extent) for extent in algorithm.pack(w, problem, packing.choice.config).shape)
