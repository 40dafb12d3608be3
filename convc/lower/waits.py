"""How threads wait for what they copy to shared memory while they compute: TVM's software pipelines made cheaper."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

COMMIT, WAIT, COUNT = "async_commit_queue_scope", "async_wait_queue_scope", "async_wait_inflight_count"


def settled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Where the number of copies that may be left in flight is no constant, as in the last steps of a pipeline, none
    may be: instructions take numbers only."""
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.AttrStmt, _settle)))


def _settle(attr: tirx.AttrStmt) -> tirx.AttrStmt:
    if attr.attr_key != COUNT or isinstance(attr.value, tirx.IntImm):
        return attr
    return tirx.AttrStmt(attr.node, attr.attr_key, tirx.const(0, "int32"), attr.body)


def merged(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Steps with one barrier instead of two. TVM's are: barrier, copy a later step's data, wait for this step's,
    barrier, compute. The first keeps copies from what the step before still reads, the second is for this step's data
    to be there for all. After the second both hold: wait, barrier, copy, compute. This step's copies are not yet on
    their way when it waits, so that one less may be left in flight."""
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, _merge)))


def _merge(loop: tirx.For) -> tirx.For:
    match loop.body:
        case tirx.SeqStmt(seq=[tirx.AttrStmt() as copies, tirx.AttrStmt() as wait]):
            count = wait.body
        case _:
            return loop
    if copies.attr_key != COMMIT or wait.attr_key != WAIT or not isinstance(count, tirx.AttrStmt):
        return loop
    steps = list(count.body.seq) if isinstance(count.body, tirx.SeqStmt) else []
    if not steps or not is_barrier(steps[0]) or int(count.value) < 1:
        return loop
    body = tirx.SeqStmt([steps[0], _without_barriers(copies), *steps[1:]])
    inner = tirx.AttrStmt(count.node, count.attr_key, tirx.const(int(count.value) - 1, "int32"), body)
    whole = tirx.AttrStmt(wait.node, wait.attr_key, wait.value, inner)
    return tirx.For(
        loop.loop_var, loop.min, loop.extent, loop.kind, whole, loop.thread_binding, loop.annotations
    )  # fmt: skip


def _without_barriers(statement: Any) -> Any:
    def drop(found: tirx.Evaluate) -> tirx.Evaluate:
        return tirx.Evaluate(tirx.const(0, "int32")) if is_barrier(found) else found

    return tvm_ffi.structural_map(statement, (tirx.Evaluate, drop))


def is_barrier(statement: Any) -> bool:
    value = statement.value if isinstance(statement, tirx.Evaluate) else None
    return isinstance(value, Call) and getattr(value.op, "name", "") == "tirx.tvm_storage_sync"
