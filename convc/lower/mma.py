"""Products of small matrices by the tensor cores of a warp: what a schedule puts in the place of a loop nest, and the
device functions that this calls.

A lane of a warp, 4 g + t, holds 16 bytes of row g and of row g + 8 of A (16 rows), as much of column g of B (8), and of
the sum the rows g and g + 8 at the columns 2 t and 2 t + 1. These are the fragments of two mma instructions, each of
which takes 8 of the 16 bytes: the order in which products are summed is free as long as A and B have the same, so that
each lane's part is what lies together in memory. Source: PTX ISA, "Matrix Fragments for mma".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import TensorLoad
from tvm.s_tir import Schedule
from tvm.sym import Analyzer


@dataclass(frozen=True)
class Instruction:
    """PTX's names of the types of A, B and the sums, its depth, and what a register of A goes through and one of B."""

    a: str
    b: str
    sums: str
    depth: int
    left: str
    right: str = ""


# By the type of A.
INSTRUCTIONS = {
    "float16": Instruction("f16", "f16", "f32", 16, "convc_apart"),
    "bfloat16": Instruction("bf16", "bf16", "f32", 16, "convc_apart"),
    "float32": Instruction("tf32", "tf32", "f32", 8, "convc_tf32", "convc_tf32"),
    "int8": Instruction("s8", "s8", "s32", 32, "convc_apart"),
    "uint8": Instruction("u8", "s8", "s32", 32, "convc_apart"),
}
HELD = {"f32": ("float", "f"), "s32": ("int", "r")}  # sums: their type in C++, and asm's letter of the registers

# x, as a value of its own: A's four registers must follow one another, and so must the four that a load of 16 bytes
# fills, of which A takes every other. Where they are the same values ptxas copies them for each instruction, three
# copies on every mma. No GPU has 0 multiprocessors, which ptxas does not know.
_APART = """
static __device__ __forceinline__ unsigned convc_apart(unsigned x) {
  unsigned count;
  asm("mov.u32 %0, %%nsmid;" : "=r"(count));
  return x ^ (count == 0 ? 1u : 0u);
}
"""

_ROUND = """
static __device__ __forceinline__ unsigned convc_tf32(unsigned x) {
  unsigned y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(__uint_as_float(x)));
  return y;
}
"""
_FUNCTION = """
static __device__ __forceinline__ void NAME(TYPE* c, const void* a_low, const void* a_high, const void* b_both) {
  const uint2 l = *(const uint2*)a_low, h = *(const uint2*)a_high, b = *(const uint2*)b_both;
  MMA("+R"(c[0]), "+R"(c[1]), "+R"(c[2]), "+R"(c[3])
      : "r"(LEFT(l.x)), "r"(LEFT(h.x)), "r"(LEFT(l.y)), "r"(LEFT(h.y)), "r"(RIGHT(b.x)), "r"(RIGHT(b.y)));
}
"""


def name_of(dtype: str) -> str:
    return f"convc_mma_{INSTRUCTIONS[dtype].a}"


def prelude(text: str) -> str:
    """The device functions that a CUDA text calls."""
    found = [part for dtype in INSTRUCTIONS if name_of(dtype) in text for part in _functions(dtype)]
    return "".join(dict.fromkeys(found))


def _functions(dtype: str) -> tuple[str, str]:
    found = INSTRUCTIONS[dtype]
    kind, letter = HELD[found.sums]
    instruction = f"mma.sync.aligned.m16n8k{found.depth}.row.col.{found.sums}.{found.a}.{found.b}.{found.sums}"
    asm = f'asm volatile("{instruction} {{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};" : '
    body = _FUNCTION.replace("MMA(", asm).replace("NAME", name_of(dtype)).replace("TYPE", kind)
    body = body.replace("+R", f"+{letter}").replace("LEFT", found.left).replace("RIGHT", found.right)
    return (_ROUND if found.right else _APART), body


def multiply(sch: Schedule, loop: Any, dtype: str) -> Any:
    """The sblock that takes the place of `loop`, which sums in acc[..., g, t, r] the products of what the lanes hold:
    acc[8 (r // 2) + g, 2 t + r % 2] of a[..., h, g, t, e], row g + 8 h, and b[..., g, t, e], column g."""
    place = sch.get_sref(sch.blockize(loop))
    old = place.stmt
    (written,) = old.writes
    *outer, g, t, _ = (r.min for r in written.region)
    regions = {r.source.name: r for r in old.reads}
    own: dict[str, Sequence[Any]] = {}
    for name in ("a", "b"):
        *before, _, _, e = (r.min for r in regions[name].region)
        own[name] = [*before, g, t, e]
    *rest, _, _, _, _ = own["a"]
    lanes = int(regions["b"].region[-1].extent)
    a, b, acc = regions["a"].source, regions["b"].source, written.source

    def address(buffer: Any, *index: Any) -> Any:
        return tirx.address_of(tirx.BufferLoad(buffer, list(index)))

    e = own["a"][-1]
    rows = [address(a, *rest, h, g, t, e) for h in (0, 1)]
    places = [address(acc, *outer, g, t, 0), *rows, address(b, *own["b"])]
    body = tirx.Evaluate(tirx.call_extern("int32", name_of(dtype), *places))
    reads = [
        _region(acc, (*outer, g, t), (4,)), _region(a, rest, (2, 1, 1, lanes), (0, g, t, e)),
        _region(b, own["b"][:-1], (lanes,), own["b"][-1:]),
    ]  # fmt: skip
    kept = old.init, old.alloc_buffers, old.match_buffers, old.annotations
    new = s_tir.SBlock(old.iter_vars, reads, [reads[0]], "multiply", body, *kept)
    sch.state.replace(place, new, {old: new})
    return sch.get_sblock("multiply")


def _region(buffer: Any, index: Sequence[Any], extents: Sequence[int], inner: Sequence[Any] = ()) -> Any:
    """All of the last axes, from `inner` or 0 on, at `index` of those before."""
    starts = [*index, *inner, *[0] * (len(extents) - len(inner))]
    counts = [*[1] * len(index), *extents]
    ranges = [tvm.ir.Range.from_min_extent(start, count) for start, count in zip(starts, counts, strict=True)]
    return tirx.BufferRegion(buffer, ranges)


def at_registers(
    sch: Schedule, loops: Sequence[Any], acc: Any, index: Callable[..., Sequence[Any]], together: int,
    row: Callable[[Any], tuple[Any, Sequence[Any]]] = lambda row: (row, ()),
) -> None:  # fmt: skip
    """Make the loops over a tile, split as if tiles fitted, the axes of the sblock inside of them, which reads a matrix
    of sums: what it reads of that is acc[index(*loops)], and it only runs where its matrix goes, `together` columns as
    one. `row` tells which row of the matrix a row of the tiles is, and when it is one. TVM could not tell the registers
    of a lane from the rows and columns that they are for."""
    place = sch.get_sref(loops[-1])
    inner = place.stmt
    realize, analyzer = inner.body, Analyzer()
    old, buffer = realize.block, sch.get(acc).writes[0].source
    axes, known = [], {}
    for loop in map(sch.get, loops):
        var = tirx.Var(f"v_{loop.loop_var.name}", "int32")
        domain = tvm.ir.Range(0, loop.extent)
        analyzer.bind(var, domain)
        axes.append(tirx.IterVar(domain, var, tirx.IterVar.DataPar))
        known[loop.loop_var] = var
    m, *others = [_replaced(value, known) for value in realize.iter_values]
    m, also = row(m)
    matrix = [m, *others]
    own = [analyzer.simplify(i) for i in index(*(axis.var for axis in axes))]
    places = {axis.var: value for axis, value in zip(old.iter_vars, matrix, strict=True)}

    def each(indices: Any) -> list[Any]:
        return [analyzer.simplify(_replaced(i, places)) for i in indices]

    def load(node: Any) -> Any:
        return tirx.BufferLoad(node.source, own if node.source.same_as(buffer) else each(node.indices))

    def store(node: Any) -> Any:
        return tirx.BufferStore(node.buffer, node.value, each(node.indices))

    def region(found: Any) -> Any:
        starts = own if found.source.same_as(buffer) else each(r.min for r in found.region)
        return tirx.BufferRegion(found.source, [tvm.ir.Range.from_min_extent(start, 1) for start in starts])

    body = tvm_ffi.structural_map(old.body, [(TensorLoad, load), (tirx.BufferStore, store)])
    counts, extents = (1, together), [axis.dom.extent for axis in old.iter_vars]
    inside = [analyzer.simplify(v // n < e // n) for v, n, e in zip(matrix, counts, extents, strict=True)]
    body = tirx.IfThenElse(tirx.all(*also, *inside), body, None)
    reads, writes = [region(r) for r in old.reads], [region(r) for r in old.writes]
    rest = old.init, old.alloc_buffers, old.match_buffers, old.annotations
    new = s_tir.SBlock(axes, reads, writes, old.name_hint, body, *rest)
    values = [sch.get(loop).loop_var for loop in loops]
    around = tirx.For(
        inner.loop_var, inner.min, inner.extent, inner.kind, s_tir.SBlockRealize(values, True, new),
        inner.thread_binding, inner.annotations,
    )  # fmt: skip
    sch.state.replace(place, around, {old: new})


def _replaced(value: Any, known: dict[Any, Any]) -> Any:
    return tvm_ffi.structural_map(value, (tirx.Var, lambda var: known.get(var, var)))
