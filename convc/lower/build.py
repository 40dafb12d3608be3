"""Scheduled functions to object code: plain C functions over raw pointers, through TVM's LLVM back end."""

from __future__ import annotations

import math
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType
from tvm.s_tir import Schedule

from convc.lower.flatten import flatten
from convc.lower.prefetch import prefetch
from convc.target import Target

# Above this a temporary comes from the caller's workspace. A register tile of 32 AVX-512 registers is 2 KiB;
# TVM's own limit of 1 KiB would send it to the heap once per tile.
STACK_BYTES = 4 << 10
RAW = 1  # any calling_conv but 0 keeps MakePackedAPI away


def raw_function(sch: Schedule, symbol: str, *, noalias: bool) -> tirx.PrimFunc:
    """The function "main" of `sch` as `int symbol(float* a, float* b, ...)`: its buffers become pointers, in order."""
    func = sch.mod["main"]
    pointers, declared = [], []
    for param in func.params:
        pointer = tirx.Var(param.name + "_p", PointerType(PrimType(str(param.ty.dtype)), "global"))
        pointers.append(pointer)
        declared.append(tirx.DeclBuffer(param, data=pointer))
    body = tirx.SeqStmt([*declared, func.body])
    raw = tirx.PrimFunc(pointers, body, PrimType("int32"), func.attrs)
    return raw.with_attr({"global_symbol": symbol, "calling_conv": RAW, "tirx.noalias": noalias})


def build_object(sch: Schedule, symbol: str, target: Target, *, noalias: bool = True) -> tuple[bytes, int]:
    """ELF object with `int32 symbol(void* ...)`, and the bytes of workspace one thread takes at once.

    The pointers must be 64-byte aligned: nothing checks it. `noalias` promises that no two overlap.
    """
    return _emit(sch, symbol, target, form="o", noalias=noalias)


def assembly(sch: Schedule, symbol: str, target: Target) -> str:
    """The same code as text, to count multiplies, broadcasts and spills."""
    return _emit(sch, symbol, target, form="s", noalias=True)[0].decode()


class _Lowering(threading.local):
    """What the passes of this thread's build find out: TVM's pipelines take no argument of ours."""

    scratch: int = 0


_LOWERING = _Lowering()


def _emit(sch: Schedule, symbol: str, target: Target, *, form: str, noalias: bool) -> tuple[bytes, int]:
    _register()
    module = tvm.IRModule({symbol: raw_function(sch, symbol, noalias=noalias)})
    _LOWERING.scratch = 0
    with tvm.transform.PassContext(config={"s_tir.LoopPartition": {"partition_const_loop": True}}):
        library = tirx.build(module, target=target.tvm, pipeline="convc_cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"kernel.{form}"
        library.write_to_file(str(path))
        return path.read_bytes(), _LOWERING.scratch


@cache
def _register() -> None:
    tirx.register_tir_pipeline("convc_cpu", _pipeline)


def _pipeline() -> tuple[Any, Any, Any]:
    """TVM's pipeline for s_tir without its GPU passes, with our rule for the stack and raw C functions."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def lower(module: Any, _context: Any) -> Any:
        module = tvm.ir.transform.Sequential(
            [
                s_tir.transform.CanonicalizeLoop(),
                s_tir.transform.LowerInitBlock(),
                s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
                s_tir.transform.ConvertBlocksToOpaque(),
                s_tir.transform.CompactBufferAllocation(),
                s_tir.transform.LowerMatchBuffer(),
                s_tir.transform.StmtSimplify(),
                s_tir.transform.LowerOpaqueBlock(),
                flatten(),
                prefetch(),
                tirx.transform.NarrowDataType(32),
                s_tir.transform.LoopPartition(),
                tirx.transform.VectorizeLoop(True),
                tirx.transform.StorageRewrite(),
                s_tir.transform.HoistIfThenElse(),
                tirx.transform.UnrollLoop(),
                s_tir.transform.RenormalizeSplitPattern(),
                tirx.transform.StmtSimplify(),
                tirx.transform.RemoveNoOp(),
                s_tir.transform.RewriteUnsafeSelect(),
                tirx.transform.AnnotateEntryFunc(),
                tirx.transform.SplitHostDevice(),
                tirx.transform.MakePackedAPI(),
            ]
        )(module)
        return tvm.IRModule({gv: _finish(fn) for gv, fn in module.functions_items()}, attrs=module.attrs)

    def host() -> Any:
        return tvm.ir.transform.Sequential([tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()])

    return lower, host, host


def _finish(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Keep small temporaries on the stack, and give the body its device and its return value."""
    body = tvm_ffi.structural_map(func.body, (tirx.AllocBuffer, _place))
    device = tvm.runtime.convert("default")
    # Here and not earlier: the passes before hoist allocations out of these attributes.
    body = tirx.AttrStmt(device, "device_id", tirx.const(0, "int32"), body)
    body = tirx.AttrStmt(device, "device_type", tirx.const(1, "int32"), body)
    return func.with_body(tirx.SeqStmt([body, tirx.Return(tirx.const(0, "int32"))]))


def _place(node: tirx.AllocBuffer) -> tirx.AllocBuffer:
    buffer = node.buffer
    elements = math.prod(int(extent) for extent in buffer.ty.shape)
    size = elements * tvm_ffi.dtype(str(buffer.ty.dtype)).itemsize
    if size <= STACK_BYTES:
        return tirx.AllocBuffer(buffer, {"disable_lower_builtin": tirx.const(1, "int32")})
    _LOWERING.scratch += -(-size // 64) * 64
    return node
