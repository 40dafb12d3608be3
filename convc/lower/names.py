"""Vectorising expressions with names: TVM's own pass, between what makes it possible and what makes it affordable.

`let` names a value and hides it behind `opaque` from TVM's analyzer, which else puts the values of names in for the
names, over and over: time exponential in a chain of them. But the vectoriser leaves a loop with an opaque value alone,
and the code generator asks the analyzer again. So the hiding ends where loops are vectorised, and with it the names:
each becomes a variable in memory, of the type it has in the end, which LLVM makes a register again.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Op
from tvm.tirx import Expr, Stmt

from convc.lower.vector_math import opaque


def vectorize() -> Any:
    """In a pipeline what tirx.transform.VectorizeLoop(True) is, for functions whose stores may hold names."""
    passes = [each(reveal), tirx.transform.VectorizeLoop(True), each(unname)]
    return tvm.ir.transform.Sequential(passes)


def each(rule: Any) -> Any:
    """In a pipeline: rule(function) for every function."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def run(module: Any, _context: Any) -> Any:
        return tvm.IRModule({gv: rule(fn) for gv, fn in module.functions_items()}, attrs=module.attrs)

    return run


def reveal(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """opaque(x) -> x everywhere."""
    return func.with_body(tvm_ffi.structural_map(func.body, (Call, _revealed)))


def _revealed(call: Call) -> Expr:
    if not call.op.same_as(Op.get("tirx.call_llvm_intrin")):
        return call
    return call.args[1] if int(call.args[0].value) in _opaque_intrinsics() else call


@cache
def _opaque_intrinsics() -> frozenset[int]:
    return frozenset(int(opaque(tirx.Var("x", dtype)).args[0].value) for dtype in ("float32", "int32"))


def unname(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """y[i] = Let(name, value, body)  ->  name[0] = value; y[i] = body of name[0]"""
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.BufferStore, _unnamed)))


def _unnamed(store: tirx.BufferStore) -> Stmt:
    statements: list[Stmt] = []
    homes: dict[Any, Expr] = {}
    value = store.value
    while isinstance(value, tirx.Let):
        dtype = tvm_ffi.dtype(str(value.var.ty))
        home = tirx.decl_buffer((dtype.lanes,), str(dtype.with_lanes(1)), value.var.name)
        all_of_it = [tirx.Ramp(0, 1, dtype.lanes) if dtype.lanes > 1 else tirx.const(0, "int32")]
        statements += [tirx.AllocBuffer(home), tirx.BufferStore(home, _at_home(value.value, homes), all_of_it)]
        homes[value.var] = tirx.BufferLoad(home, all_of_it)
        value = value.body
    if not statements:
        return store
    return tirx.SeqStmt([*statements, tirx.BufferStore(store.buffer, _at_home(value, homes), store.indices)])


def _at_home(x: Expr, homes: dict[Any, Expr]) -> Expr:
    return tvm_ffi.structural_map(x, (tirx.Var, lambda var: homes.get(var, var)))
