"""Scheduled functions to CUDA C++: the text of their kernels, and how they are launched."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import Call, Op
from tvm.s_tir import Schedule
from tvm.tirx import Expr

from convc.launch import MOST_GRID, MOST_THREADS, Launch, Temporary, Three, aligned
from convc.lower import copies, mma, wgmma
from convc.lower.build import raw_function
from convc.lower.copies import filled
from convc.lower.flatten import flatten
from convc.lower.guard import guarded
from convc.lower.names import each, vectorize
from convc.lower.vector_math import nearest
from convc.lower.waits import merged, settled
from convc.target import GpuTarget

SHARED = "tirx.use_dyn_shared_memory"
FLAGS = ("tirx.use_programtic_dependent_launch", "tirx.use_cooperative_launch")  # launch parameters without a value
AXES = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")
WORDS = {"int8": "int32", "uint8": "uint32"}  # four of a type


@dataclass(frozen=True)
class Source:
    """A function in CUDA C++. `scratch` are the bytes of its temporaries in global memory."""

    text: str
    launches: tuple[Launch, ...]
    scratch: int


def source_of(sch: Schedule, symbol: str, target: GpuTarget, *, noalias: bool = True) -> Source:
    """The function "main" of `sch` as kernels `<symbol>_kernel...`, launched one after the other.

    Its parameters are the pointers of the function, 64-byte aligned: nothing checks it. `noalias` promises that no two
    overlap. Raises ValueError where a launch is beyond what GPUs have.
    """
    os.environ["TVM_COMPILE_FORCE_FALLBACK"] = "1"  # else TVM compiles the text itself where it finds a driver
    machine = tvm.target.Target({**target.tvm, "host": {"kind": "llvm"}})
    func = raw_function(sch, symbol, noalias=noalias).with_attr("target", machine)
    config = {"tirx.use_async_copy": target.capability >= (8, 0), "tirx.UnrollLoop": {"explicit_unroll": False}}
    with tvm.transform.PassContext(config=config), machine:
        module = _passes()(tvm.IRModule({symbol: func}))
        host, kernels = _divided(module)
        launches, scratch = _launches(host)
        text = _text(kernels, machine) if launches else ""
    return Source(text, launches, scratch)


@cache
def _passes() -> Any:
    """TVM's pipeline for s_tir as far as the split of host and device, with our flattening and homes of temporaries."""
    return tvm.ir.transform.Sequential(
        [
            each(guarded),
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerCrossThreadReduction(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.LiftThreadBinding(),
            s_tir.transform.ManifestSharedMemoryLocalStage(),
            s_tir.transform.StmtSimplify(),  # else a thread's tile is not seen to be but a part of the block's
            s_tir.transform.CompactBufferAllocation(),
            s_tir.transform.LowerAutoCopy(),
            s_tir.transform.UnifyThreadBinding(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.InjectPermutedLayout(),
            s_tir.transform.AnnotateIrregularLoop(),
            s_tir.transform.InjectSoftwarePipeline(),
            s_tir.transform.TransformMmaBufferLayout(),
            s_tir.transform.LowerOpaqueBlock(),
            flatten(),
            each(settled),
            tirx.transform.BF16ComputeLegalize(),
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            vectorize(),
            s_tir.transform.InjectVirtualThread(),
            s_tir.transform.InjectDoubleBuffer(),
            each(_localized),
            s_tir.transform.HoistIfThenElse(),
            tirx.transform.UnrollLoop(),
            s_tir.transform.RenormalizeSplitPattern(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            s_tir.transform.RewriteUnsafeSelect(),
            tirx.transform.VerifyMemory(),
            tirx.transform.AnnotateEntryFunc(),
            s_tir.transform.ThreadSync("shared"),
            s_tir.transform.ThreadSync("shared.dyn"),
            s_tir.transform.ThreadSync("warp"),
            each(merged),
            each(wgmma.overlapped),
            s_tir.transform.InferFragment(),
            s_tir.transform.LowerThreadAllreduce(),
            each(copies.marked),
            s_tir.transform.InjectPTXAsyncCopy(),
            each(filled),
            s_tir.transform.MergeSharedMemoryAllocations(),
            tirx.transform.SplitHostDevice(),
        ]
    )


def _localized(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """What a kernel allocates without saying where is its threads' own: only outside of kernels is "global" memory."""
    homes: dict[Any, Any] = {}

    def move(alloc: tirx.AllocBuffer) -> None:
        buffer = alloc.buffer
        if buffer.scope() == "global":
            homes[buffer] = tirx.decl_buffer(buffer.ty.shape, str(buffer.ty.dtype), buffer.name, scope="local")

    def find(attr: tirx.AttrStmt) -> None:
        if attr.attr_key == "thread_extent":
            tvm_ffi.structural_walk(attr.body, (tirx.AllocBuffer, move))

    tvm_ffi.structural_walk(func.body, (tirx.AttrStmt, find))
    if not homes:
        return func
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.Var, lambda var: homes.get(var, var))))


def _divided(module: Any) -> tuple[tirx.PrimFunc, Any]:
    host, kernels = None, {}
    for name, func in module.functions_items():
        if "tirx.is_global_func" in func.attrs:
            kernels[name] = func
        else:
            host = func
    return host, tvm.IRModule(kernels)


def _text(kernels: Any, machine: Any) -> str:
    passes = [
        tirx.transform.FP8StorageLegalize(), tirx.transform.BF16StorageLegalize(), tirx.transform.LowerWarpMemory(),
        tirx.transform.StmtSimplify(), each(_called), each(_folded), each(_worded), tirx.transform.LowerIntrin(),
    ]  # fmt: skip
    module = tvm.ir.transform.Sequential(passes)(kernels)
    text = str(tvm.get_global_func("target.build.cuda")(module, machine).inspect_source("cuda"))
    return mma.prelude(text) + wgmma.prelude(text) + copies.prelude(text) + text


def _called(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """CUDA's functions for the intrinsics of LLVM that our arithmetic asks for by name."""
    return func.with_body(tvm_ffi.structural_map(func.body, (Call, _own)))


def _own(call: Call) -> Expr:
    if not call.op.same_as(Op.get("tirx.call_llvm_pure_intrin")) or int(call.args[0].value) != _rounding():
        return call
    name = "rint" if str(call.ty) == "float64" else "rintf"
    return tirx.call_pure_extern(call.ty, name, *call.args[1:])


def _folded(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The bits of constants as constants: TVM takes the address of what it reinterprets."""
    return func.with_body(tvm_ffi.structural_map(func.body, (Call, _bits)))


def _bits(call: Call) -> Expr:
    if not call.op.same_as(Op.get("tirx.reinterpret")) or not isinstance(call.args[0], tirx.FloatImm | tirx.IntImm):
        return call
    given, wanted = (np.dtype(str(t)) for t in (call.args[0].ty, call.ty))
    return tirx.const(np.array(call.args[0].value, given).view(wanted).item(), str(call.ty))


def _worded(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Vectors of one 8-bit number as the words that hold them: TVM would name every number of them."""
    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.Broadcast, _words)))


def _words(vector: tirx.Broadcast) -> Expr:
    dtype, count = str(vector.value.ty), int(vector.lanes) // 4
    if dtype not in WORDS or count not in (2, 4) or not isinstance(vector.value, tirx.IntImm):
        return vector
    word = tirx.const(int(np.full(4, vector.value.value, dtype).view(WORDS[dtype])[0]), WORDS[dtype])
    return tirx.reinterpret(vector.ty, tirx.Broadcast(word, count))


@cache
def _rounding() -> int:
    number: int = int(nearest(tirx.Var("x", "float32")).args[0].value)
    return number


def _launches(host: tirx.PrimFunc) -> tuple[tuple[Launch, ...], int]:
    """The kernels' launches in order, and the bytes of the temporaries that they share."""
    places: dict[Any, int | Temporary] = {param: k for k, param in enumerate(host.params)}
    found: list[Launch] = []
    scratch = 0

    def visit(node: Any) -> None:
        nonlocal scratch
        if isinstance(node, tirx.AllocBuffer):
            places[node.buffer] = Temporary(scratch)
            scratch += aligned(_bytes(node.buffer))
        elif isinstance(node, tirx.DeclBuffer):
            places[node.buffer] = places[_origin(node.data)]
        elif isinstance(node, Call) and getattr(node.op, "name", "") == "tirx.call_ffi_kernel":
            found.append(_launch(node, places))

    tvm_ffi.structural_walk(host.body, [(kind, visit) for kind in (tirx.AllocBuffer, tirx.DeclBuffer, Call)])
    return tuple(found), scratch


def _bytes(buffer: Any) -> int:
    elements = math.prod(int(extent) for extent in buffer.ty.shape)
    return -(-elements * int(tvm_ffi.dtype(str(buffer.ty.dtype)).bits) // 8)


def _origin(data: Any) -> Any:
    """The pointer or buffer that an address is of; names may be used twice."""
    while isinstance(data, Call):
        data = data.args[0]
    return data


def _launch(call: Call, places: dict[Any, int | Temporary]) -> Launch:
    tags = [str(tag) for tag in call.attrs.launch_params if str(tag) not in FLAGS]
    kernel, *rest = call.args
    args, extents = rest[: len(rest) - len(tags)], rest[len(rest) - len(tags) :]
    values = {tag: int(extent) for tag, extent in zip(tags, extents, strict=True)}
    grid, block = _three(values, AXES[:3]), _three(values, AXES[3:])
    if math.prod(block) > MOST_THREADS or any(n > most for n, most in zip(grid, MOST_GRID, strict=True)):
        raise ValueError(f"{kernel.value} has a grid of {grid} and blocks of {block}: more than GPUs have")
    return Launch(str(kernel.value), grid, block, values.get(SHARED, 0), tuple(places[_origin(a)] for a in args))


def _three(values: dict[str, int], axes: Sequence[str]) -> Three:
    x, y, z = (values.get(axis, 1) for axis in axes)
    return x, y, z
