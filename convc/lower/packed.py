"""The size of a constant in the form in which run kernels read it."""

from __future__ import annotations

from tvm import te

from convc.algorithm import algorithms
from convc.plan.plan import Packing


def packed_shape(packing: Packing) -> tuple[int, ...]:
    """Extents of the packed form of a constant."""
    weight = packing.weight
    if packing.choice is None or packing.problem is None:
        return packing.layout.physical(weight.shape)
    w = te.placeholder(packing.problem.weights, weight.dtype, name="w")
    packed = algorithms()[packing.choice.algorithm].pack(w, packing.problem, packing.choice.config)
    return tuple(int(extent) for extent in packed.shape)
