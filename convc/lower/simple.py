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


def set_place(sch: Schedule, outer: Any, reader: Any, buffer: str, axis: int, place: Any) -> None:
    """What lies in the loop `outer` works at `place` along `axis` of `buffer`: the sblock `reader`, which reads it, by
    one axis more, the others by their axis of that number. The place follows from the reader's other axes as well, but
    by divisions that the simplifier does not always see through."""
    old, loop = sch.get(reader), sch.get_sref(outer)
    extent = next(r.source.ty.shape[axis] for r in old.reads if r.source.name == buffer)
    own = tirx.IterVar(tvm.ir.Range(0, extent), tirx.Var("place", "int32"), tirx.IterVar.DataPar)

    def load(node: Any) -> Any:
        return tirx.BufferLoad(node.source, _with(node.indices, axis, own.var)) if node.source.name == buffer else node

    def region(found: Any) -> Any:
        if found.source.name != buffer:
            return found
        return tirx.BufferRegion(found.source, _with(found.region, axis, tvm.ir.Range.from_min_extent(own.var, 1)))

    body = tvm_ffi.structural_map(old.body, (TensorLoad, load))
    rest = old.name_hint, body, old.init, old.alloc_buffers, old.match_buffers, old.annotations
    new = s_tir.SBlock([*old.iter_vars, own], [region(r) for r in old.reads], old.writes, *rest)

    def placed(realize: Any) -> Any:
        if realize.block.same_as(old):
            return s_tir.SBlockRealize([*realize.iter_values, place], realize.predicate, new)
        return s_tir.SBlockRealize(_with(realize.iter_values, axis, place), realize.predicate, realize.block)

    sch.state.replace(loop, tvm_ffi.structural_map(loop.stmt, (s_tir.SBlockRealize, placed)), {old: new})


def _with(values: Any, axis: int, value: Any) -> list[Any]:
    return [value if i == axis else v for i, v in enumerate(values)]
