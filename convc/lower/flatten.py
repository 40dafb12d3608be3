"""Buffers of one axis, with every index the sum that it is: TVM's own pass, kept from rewriting indices.

tirx.transform.FlattenBuffer puts each index through TVM's iter map, which is wrong where one variable is divided with
and without an offset. To split i + 1 evenly it pads the variable on the left, and then divides i + 1 wherever i is
divided (PadDividendToDivisor in iter_affine_map.cc): (i % 4 + 1) // 2 becomes (i + 1) % 4 // 2, 0 instead of 2 at
i = 3. An index inside a call is left alone; what can be simplified, the passes after this one do.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Op, TensorLoad
from tvm.tirx import Expr, Stmt

from convc.lower.names import each

HIDDEN = "index"


def flatten() -> Any:
    """In a pipeline what tirx.transform.FlattenBuffer() is."""
    return tvm.ir.transform.Sequential([each(_hide), tirx.transform.FlattenBuffer(), each(_reveal)])


def _hide(func: tirx.PrimFunc) -> tirx.PrimFunc:
    return func.with_body(tvm_ffi.structural_map(func.body, [(TensorLoad, _load), (tirx.BufferStore, _store)]))


def _load(load: TensorLoad) -> Expr:
    return tirx.BufferLoad(load.source, [_hidden(i) for i in load.indices])


def _store(store: tirx.BufferStore) -> Stmt:
    return tirx.BufferStore(store.buffer, store.value, [_hidden(i) for i in store.indices])


def _hidden(index: Expr) -> Expr:
    """As a call that only `_reveal` knows. The iter map rewrites no vector of indices."""
    plain = isinstance(index, tirx.IntImm) or not index.ty.is_scalar()
    return index if plain else tirx.call_pure_extern(index.ty, HIDDEN, index)


def _reveal(func: tirx.PrimFunc) -> tirx.PrimFunc:
    return func.with_body(tvm_ffi.structural_map(func.body, (Call, _revealed)))


def _revealed(call: Call) -> Expr:
    hidden = call.op.same_as(Op.get("tirx.call_pure_extern")) and call.args[0].value == HIDDEN
    return call.args[1] if hidden else call
