"""Products of matrices by the tensor cores of a warpgroup, four warps, straight from shared memory (sm_90a): what a
schedule puts in the place of a loop nest, and the device functions that this calls.

An instruction multiplies 64 rows of A by up to 256 columns of B, 32 bytes of each. Both lie in shared memory as core
matrices, 8 rows or columns of 16 bytes one after the other; the next 8 follow, and the second 16 bytes of all of them
lie at a distance of their own. A lane holds of the sums of its warp's 16 rows what it holds of m16n8's, for every 8
columns. Source: PTX ISA, "Asynchronous warpgroup-level matrix instructions".

The tensor cores work while threads go on: `START` tells them to, `FINISH` waits until the sums are there, and between
the two what they read and what they write is theirs. They read shared memory by another way than threads write it
(PTX: the async proxy); `ORDER` in front of a barrier makes that see what was written.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import Schedule
from tvm.sym import Analyzer

from convc.lower.mma import HELD, INSTRUCTIONS
from convc.lower.waits import COMMIT as COPIES
from convc.lower.waits import is_barrier

TOGETHER = "convc_wgmma_step"  # around the calls of a step
GROUP, ROWS = 4, 16  # warps that multiply together, and rows of each
START, STEP, COMMIT = "convc_wgmma_start", "convc_wgmma_add", "convc_wgmma_commit"
FINISH, ORDER = "convc_wgmma_finish", "convc_wgmma_order"

# A and B begin PLUS chunks of 16 bytes behind a and b; the second chunks of their rows lie FAR chunks further on.
_STEP = """
static __device__ __forceinline__ void NAME(TYPE* c, const void* a, int a_plus, int a_far, const void* b, int b_plus,
                                            int b_far) {
  const unsigned a_at = (unsigned)__cvta_generic_to_shared(a) >> 4, b_at = (unsigned)__cvta_generic_to_shared(b) >> 4;
  const unsigned long long near = 8ull << 32;
  const unsigned long long left = near | ((a_far << 16) + a_plus + a_at);
  const unsigned long long right = near | ((b_far << 16) + b_plus + b_at);
  asm volatile("{ .reg .pred add; setp.ne.b32 add, 1, 0; "
               "wgmma.mma_async.sync.aligned.INSTRUCTION {REGISTERS}, LEFT, RIGHT, addSCALES; }"
      : SUMS : "l"(left), "l"(right));
}
"""
_FINISH = """
static __device__ __forceinline__ void NAME(TYPE* c) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" : SUMS : : "memory");
}
"""
# The arguments are an element of A and one of B, as TVM keeps shared memory from the first statement that is seen to
# read it to the last, and addresses do not tell it. Nothing uses them, so that nothing is read.
_START = """
template <class A, class B> static __device__ __forceinline__ void convc_wgmma_start(A, B) {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
"""
_COMMIT = """
template <class A, class B> static __device__ __forceinline__ void convc_wgmma_commit(A, B) {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
"""
_ORDER = """
static __device__ __forceinline__ void convc_wgmma_order() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
"""


def prelude(text: str) -> str:
    """The device functions that a CUDA text calls."""
    names = sorted(set(re.findall(rf"\b{STEP}_\w+_n\d+|\b{FINISH}_\w+_n\d+", text)))
    return (_START + _COMMIT + _ORDER if names else "") + "".join(map(_function, names))


def _function(name: str) -> str:
    form, kind, columns = re.fullmatch(rf"({STEP}|{FINISH})_(\w+)_n(\d+)", name).groups()  # type: ignore[union-attr]
    found = next(f for f in INSTRUCTIONS.values() if f.a == kind)
    held, letter = HELD[found.sums]
    count = int(columns) // 2
    parts = {
        "NAME": name, "TYPE": held, "SUMS": ", ".join(f'"+{letter}"(c[{i}])' for i in range(count)),
        "INSTRUCTION": f"m{GROUP * ROWS}n{columns}k{found.depth}.{found.sums}.{found.a}.{found.b}",
        "REGISTERS": ", ".join(f"%{i}" for i in range(count)), "LEFT": f"%{count}", "RIGHT": f"%{count + 1}",
        "SCALES": ", 1, 1, 0, 0" if found.sums == "f32" else "",
    }  # fmt: skip
    return re.sub("|".join(parts), lambda match: parts[match[0]], _STEP if form == STEP else _FINISH)


def multiply(sch: Schedule, loop: Any, dtype: str) -> Any:
    """The sblock that takes the place of `loop` and the loops in it, groups | i, j, r, q, e. It sums in acc[..., w, wn,
    i, j, g, t, r] what the lanes of warp w hold of the products of left[..., k, tile, q, row, e], rows (i warps + w) 16
    + shift and on, and right[..., k, q, piece, g, e], pieces wn tn and on; an instruction takes two q."""
    place = sch.get_sref(sch.blockize(loop))
    old = place.stmt
    (written,) = old.writes
    acc, *outer = written.source, *(r.min for r in written.region)
    *outer, w, wn, _, _, g, t, _ = outer
    *_, tm, tn, _, _, _ = (int(r.extent) for r in written.region)
    _, a, b = old.reads
    *before, _, tile, _, low, _ = (r.min for r in a.region)
    shift = Analyzer().simplify(low - w * ROWS - g)
    *beside, _, _, _, _, _ = (r.min for r in b.region)
    bk, high = int(a.region[-5].extent), int(a.region[-3].extent)
    warps = int(acc.ty.shape[len(outer)])
    kind = INSTRUCTIONS[dtype].a

    def address(buffer: Any, *index: Any) -> Any:
        return tirx.address_of(tirx.BufferLoad(buffer, list(index)))

    def sums(i: int) -> Any:
        return address(acc, *outer, w, wn, i, 0, g, t, 0)

    def product(k: int, q: int, i: int) -> Any:
        row = (i * warps + w // GROUP * GROUP) * ROWS + shift
        lefts = [address(a.source, *before, k, tile, q + n, row, 0) for n in (0, 1)]
        rights = [address(b.source, *beside, k, q + n, wn * tn, 0, 0) for n in (0, 1)]
        return _call(f"{STEP}_{kind}_n{8 * tn}", sums(i), *lefts, *rights)

    read = [tirx.BufferLoad(r.source, [each.min for each in r.region]) for r in (a, b)]
    body = [_call(START, *read)]
    body += [product(k, q, i) for k in range(bk) for q in range(0, high, 2) for i in range(tm)]
    body += [_call(COMMIT, *read), *(_call(f"{FINISH}_{kind}_n{8 * tn}", sums(i)) for i in range(tm))]
    every = [tvm.ir.Range.from_min_extent(0, int(n)) for n in a.source.ty.shape[-2:-1]]
    reads = [written, tirx.BufferRegion(a.source, [*a.region[:-2], *every, a.region[-1]]), b]
    whole = tirx.AttrStmt(tirx.const(0, "int32"), TOGETHER, tirx.const(1, "int32"), tirx.SeqStmt(body))
    kept = old.init, old.alloc_buffers, old.match_buffers, old.annotations
    new = s_tir.SBlock(old.iter_vars, reads, [written], "multiply", whole, *kept)
    sch.state.replace(place, new, {old: new})
    return sch.get_sblock("multiply")


def overlapped(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Where a step's copies stand in front of its products, they go between their start and the wait for them; what
    threads have written is put in order in front of the barriers of such steps; and the places of the operands are
    those of the step's first product and constants."""
    body = tvm_ffi.structural_map(func.body, (tirx.AttrStmt, _place))
    return func.with_body(tvm_ffi.structural_map(body, (tirx.SeqStmt, _overlap)))


def _place(products: tirx.AttrStmt) -> tirx.AttrStmt:
    if not _has(products, TOGETHER):
        return products
    analyzer = Analyzer()
    first: list[Any] = []
    found: list[Any] = []
    for statement in products.body.seq:
        name, *args = statement.value.args
        if name.value.startswith(STEP):
            sums, a, a_next, b, b_next = args
            first = first or [a, b]
            places: list[Any] = []
            for base, start, next_ in zip(first, (a, b), (a_next, b_next), strict=True):
                places += [base, _chunks(analyzer, base, start), _chunks(analyzer, start, next_)]
            statement = _call(name.value, sums, *places)
        found.append(statement)
    return tirx.AttrStmt(products.node, products.attr_key, products.value, tirx.SeqStmt(found))


def _chunks(analyzer: Analyzer, start: Any, end: Any) -> Any:
    """16 bytes each, between two addresses in one buffer."""
    (i,), (j,) = (address.args[0].indices for address in (start, end))
    size = np.dtype(str(start.args[0].ty)).itemsize
    return analyzer.simplify(tirx.floordiv((j - i) * size, 16))


def _overlap(sequence: tirx.SeqStmt) -> tirx.SeqStmt:
    if not any(_has(statement, TOGETHER) for statement in sequence.seq):
        return sequence
    found: list[Any] = []
    for statement in sequence.seq:
        if is_barrier(statement):
            found.append(_call(ORDER))
        if _has(statement, TOGETHER) and found and _has(found[-1], COPIES):
            statement = _around(found.pop(), statement)
        found.append(statement)
    return tirx.SeqStmt(found)


def _around(copies: Any, products: tirx.AttrStmt) -> tirx.AttrStmt:
    calls = list(products.body.seq)
    first = next(k for k, call in enumerate(calls) if call.value.args[0].value.startswith(FINISH))
    body = tirx.SeqStmt([*calls[:first], copies, *calls[first:]])
    return tirx.AttrStmt(products.node, products.attr_key, products.value, body)


def _has(statement: Any, key: str) -> bool:
    return isinstance(statement, tirx.AttrStmt) and statement.attr_key == key


def _call(name: str, *args: Any) -> tirx.Evaluate:
    return tirx.Evaluate(tirx.call_extern("int32", name, *args))
