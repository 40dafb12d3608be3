"""The indices of an sblock, simplified: after a change of its loops they still go by way of the old ones, and what a
tile reads cannot be told from them."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import Schedule
from tvm.sym import Analyzer


def simplify_indices(sch: Schedule, sblock: Any, *, same: str = "") -> None:
    """In place. The buffer called `same` is known to be read at the sblock's own indices: an axis of one element is
    0 to the simplifier, which does not know of the tile that goes beyond it."""
    place = sch.get_sref(sblock)
    old = place.stmt
    analyzer = Analyzer()
    for axis in old.iter_vars:
        analyzer.bind(axis.var, axis.dom)

    def each(indices: Any) -> list[Any]:
        return [analyzer.simplify(i) for i in indices]

    own = [axis.var for axis in old.iter_vars]

    def load(node: Any) -> Any:
        return tirx.BufferLoad(node.source, own if node.source.name == same else each(node.indices))

    def store(node: Any) -> Any:
        return tirx.BufferStore(node.buffer, node.value, each(node.indices))

    def region(found: Any) -> Any:
        if found.source.name == same:
            return tirx.BufferRegion(found.source, [tvm.ir.Range.from_min_extent(var, 1) for var in own])
        ranges = [tvm.ir.Range.from_min_extent(*each((r.min, r.extent))) for r in found.region]
        return tirx.BufferRegion(found.source, ranges)

    body = tvm_ffi.structural_map(old.body, [(TensorLoad, load), (tirx.BufferStore, store)])
    reads, writes = [region(r) for r in old.reads], [region(r) for r in old.writes]
    rest = old.name_hint, body, old.init, old.alloc_buffers, old.match_buffers, old.annotations
    new = s_tir.SBlock(old.iter_vars, reads, writes, *rest)
    sch.state.replace(place, new, {old: new})


def clamp_places(sch: Schedule, outer: Any, loop: Any, count: int) -> None:
    """What lies in `outer` is at the place of iteration `count` - 1 in later iterations of `loop`, where nothing is
    stored. What a tile reads cannot be told from a condition on the loop; from its places it can."""
    var = sch.get(loop).loop_var
    last = tirx.min(var, count - 1)

    def clamped(realize: Any) -> Any:
        values = [
            tvm_ffi.structural_map(v, (tirx.Var, lambda each: last if each.same_as(var) else each))
            for v in realize.iter_values
        ]
        return s_tir.SBlockRealize(values, realize.predicate, realize.block)

    place = sch.get_sref(outer)
    sch.state.replace(place, tvm_ffi.structural_map(place.stmt, (s_tir.SBlockRealize, clamped)), {})
