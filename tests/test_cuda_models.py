"""Do the shim's instructions compute what the PTX ISA and CUDA's headers say?

Fragments are laid out here element by element as the ISA's tables have them, and results compared with numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from cuda_shim import needs_shim
from test_cuda_shim import run

pytestmark = needs_shim

Array = np.ndarray
Place = Callable[[int, int, int], tuple[int, int]]  # of element i of lane 4 g + t, from (g, t, i)
LANES = [(lane // 4, lane % 4) for lane in range(32)]
HEAD = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"


def kernel(parameters: str, body: str) -> str:
    return f'{HEAD}extern "C" __global__ void __launch_bounds__(1024) f({parameters}) {{\n{body}\n}}\n'


@dataclass(frozen=True)
class Shape:
    """An mma: its size, the elements a lane has of A, B and C, and where each of them is (row, column)."""

    m: int
    k: int
    counts: tuple[int, int, int]
    a: Place
    b: Place
    c: Place


def _tall(g: int, t: int, i: int) -> tuple[int, int]:
    return g + 8 * (i >= 2), 2 * t + i % 2


TF32_4 = Shape(16, 4, (2, 1, 4), lambda g, t, i: (g + 8 * i, t), lambda g, t, i: (t, g), _tall)
TF32_8 = Shape(
    16, 8, (4, 2, 4), lambda g, t, i: (g if i in (0, 2) else g + 8, t if i < 2 else t + 4),
    lambda g, t, i: (t + 4 * i, g), _tall,
)  # fmt: skip
F16_8 = Shape(
    16, 8, (4, 2, 4), lambda g, t, i: (g if i < 2 else g + 8, 2 * t + i % 2), lambda g, t, i: (2 * t + i, g), _tall
)
F16_16 = Shape(
    16, 16, (8, 4, 4), lambda g, t, i: (g if i in (0, 1, 4, 5) else g + 8, 2 * t + i % 2 + (8 if i >= 4 else 0)),
    lambda g, t, i: (2 * t + i % 2 + (8 if i >= 2 else 0), g), _tall,
)  # fmt: skip
S8_8 = Shape(
    8, 16, (4, 4, 2), lambda g, t, i: (g, 4 * t + i), lambda g, t, i: (4 * t + i, g), lambda g, t, i: (g, 2 * t + i)
)
S8_16 = Shape(
    16, 16, (8, 4, 4), lambda g, t, i: (g if i < 4 else g + 8, 4 * t + i % 4), lambda g, t, i: (4 * t + i, g), _tall
)
S8_32 = Shape(
    16, 32, (16, 8, 4), lambda g, t, i: (g if i // 4 in (0, 2) else g + 8, 4 * t + i % 4 + (16 if i >= 8 else 0)),
    lambda g, t, i: (4 * t + i % 4 + (16 if i >= 4 else 0), g), _tall,
)  # fmt: skip

F16, BF16, F32, S32 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32), np.dtype(np.int32)
S8, U8 = np.dtype(np.int8), np.dtype(np.uint8)
MMA: dict[str, tuple[Shape, np.dtype, np.dtype, np.dtype]] = {
    "m16n8k16.row.col.f32.f16.f16.f32": (F16_16, F16, F16, F32),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (F16_16, BF16, BF16, F32),
    "m16n8k16.row.col.f16.f16.f16.f16": (F16_16, F16, F16, F16),
    "m16n8k8.row.col.f32.f16.f16.f32": (F16_8, F16, F16, F32),
    "m16n8k8.row.col.f16.f16.f16.f16": (F16_8, F16, F16, F16),
    "m16n8k8.row.col.f32.bf16.bf16.f32": (F16_8, BF16, BF16, F32),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (TF32_8, F32, F32, F32),
    "m16n8k4.row.col.f32.tf32.tf32.f32": (TF32_4, F32, F32, F32),
    "m8n8k16.row.col.s32.s8.s8.s32": (S8_8, S8, S8, S32),
    "m16n8k16.row.col.s32.s8.s8.s32": (S8_16, S8, S8, S32),
    "m16n8k16.row.col.s32.u8.s8.s32": (S8_16, U8, S8, S32),
    "m16n8k32.row.col.s32.s8.s8.s32": (S8_32, S8, S8, S32),
    "m16n8k32.row.col.s32.u8.s8.s32": (S8_32, U8, S8, S32),
    "m16n8k32.row.col.s32.s8.u8.s32": (S8_32, S8, U8, S32),
    "m16n8k32.row.col.s32.u8.u8.s32": (S8_32, U8, U8, S32),
}


def fragments(matrix: Array, place: Place, count: int) -> Array:
    """Registers of 32 bits, [lane, register]."""
    elements = np.array([[matrix[place(g, t, i)] for i in range(count)] for g, t in LANES], matrix.dtype)
    return elements.view(np.uint32)


def whole(registers: Array, place: Place, count: int, shape: tuple[int, int], dtype: np.dtype) -> Array:
    elements, matrix = registers.view(dtype), np.empty(shape, dtype)
    for lane, (g, t) in enumerate(LANES):
        for i in range(count):
            matrix[place(g, t, i)] = elements[lane, i]
    return matrix


def braces(first: int, count: int) -> str:
    return "{" + ", ".join(f"%{first + i}" for i in range(count)) + "}"


def mma(name: str, a: Array, b: Array, c: Array, shape: Shape) -> Array:
    """D of one instruction."""
    places = (shape.a, shape.b, shape.c)
    packed = [fragments(x, p, n) for x, p, n in zip((a, b, c), places, shape.counts, strict=True)]
    na, nb, nc = (each.shape[1] for each in packed)
    outs = ", ".join(f'"=r"(d[t * {nc} + {i}])' for i in range(nc))
    ins = ", ".join(f'"r"({v}[t * {n} + {i}])' for v, n in (("a", na), ("b", nb), ("c", nc)) for i in range(n))
    operands = ", ".join([braces(0, nc), braces(nc, na), braces(nc + na, nb), braces(nc + na + nb, nc)])
    body = f"""const int t = threadIdx.x;
      asm volatile("mma.sync.aligned.{name} "
        "{operands};\\n" : {outs} : {ins});"""
    text = kernel("unsigned* a, unsigned* b, unsigned* c, unsigned* d", body)
    *_, d = run(text, *packed, np.zeros_like(packed[2]), block=(32, 1, 1))
    return whole(d, shape.c, shape.counts[2], (shape.m, 8), c.dtype)


@pytest.mark.parametrize("name", MMA)
def test_mma_multiplies_matrices_in_the_layout_of_the_isa(name: str) -> None:
    shape, a_type, b_type, c_type = MMA[name]
    rng = np.random.default_rng(0)

    def matrix(dtype: np.dtype, *extents: int) -> Array:
        low, high = (0, 256) if dtype == U8 else (-2, 3) if c_type == F16 else (-128, 128)  # sums stay exact
        return rng.integers(low, high, extents).astype(dtype)

    a, b = matrix(a_type, shape.m, shape.k), matrix(b_type, shape.k, 8)
    c = rng.integers(-500, 500, (shape.m, 8)).astype(c_type)
    exact = a.astype(np.int64) @ b.astype(np.int64) + c.astype(np.int64)
    assert np.array_equal(mma(name, a, b, c, shape).astype(np.int64), exact)


def test_the_matrix_unit_sees_ten_bits_of_a_tf32() -> None:
    a, b = np.zeros((16, 4), np.float32), np.zeros((4, 8), np.float32)
    a[0, 0] = np.float32(1 + 2**-10 + 2**-11 + 2**-23)
    b[0, 0] = 1
    d = mma("m16n8k4.row.col.f32.tf32.tf32.f32", a, b, np.zeros((16, 8), np.float32), TF32_4)
    assert d[0, 0] == np.float32(1 + 2**-10)


def test_integer_sums_wrap_and_saturate_only_on_request() -> None:
    a, b = np.full((16, 16), 127, np.int8), np.full((16, 8), 127, np.int8)
    c = np.full((16, 8), 2**31 - 1, np.int32)
    plain = mma("m16n8k16.row.col.s32.s8.s8.s32", a, b, c, S8_16)
    assert (plain == np.int32(2**31 - 1 + 16 * 127 * 127 - 2**32)).all()
    assert (mma("m16n8k16.row.col.satfinite.s32.s8.s8.s32", a, b, c, S8_16) == 2**31 - 1).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_deals_out_rows(count: int, transposed: bool) -> None:
    matrices = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    outs = ", ".join(f'"=r"(y[{count} * t + {i}])' for i in range(count))
    body = f"""__shared__ alignas(16) unsigned short s[4 * 64 * 2];
      const int t = threadIdx.x;  // rows are 32 bytes apart
      for (int i = 0; i < 8; ++i) s[t * 16 + i] = x[t * 8 + i];
      __syncthreads();
      unsigned at = __cvta_generic_to_shared(s + t * 16);
      __asm__ __volatile__("ldmatrix.sync.aligned.m8n8.x{count}{".trans" * transposed}.shared.b16"
        "{braces(0, count)}, [%{count}];\\n" : {outs} : "r"(at));"""
    text = kernel("unsigned short* x, unsigned* y", body)
    _, y = run(text, matrices, np.zeros((32, count), np.uint32), block=(32, 1, 1))
    for i, matrix in enumerate(matrices[:count]):
        wanted = np.array([(matrix.T if transposed else matrix)[g, 2 * t : 2 * t + 2] for g, t in LANES], np.uint16)
        assert np.array_equal(y[:, i], wanted.view(np.uint32)[:, 0])


@pytest.mark.parametrize(("size", "given"), [(4, 4), (4, 0), (8, 4), (8, 8), (16, 0), (16, 4), (16, 12), (16, 16)])
def test_cp_async_fills_the_rest_with_zeros(size: int, given: int) -> None:
    body = f"""__shared__ alignas(16) unsigned char s[32 * {size}];
      const int t = threadIdx.x;
      unsigned at = __cvta_generic_to_shared(s + t * {size});
      int given = t % 2 ? {given} : {size};
      asm volatile("cp.async.{'cg' if size == 16 else 'ca'}.shared.global [%0], [%1], %2, %3;\\n"
                   :: "r"(at), "l"(x + t * {size}), "n"({size}), "r"(given));
      asm volatile("cp.async.wait_all;\\n" ::: "memory");
      for (int i = 0; i < {size}; ++i) y[t * {size} + i] = s[t * {size} + i];"""
    x = np.arange(1, 32 * size + 1, dtype=np.int64).astype(np.uint8).reshape(32, size)
    _, y = run(kernel("unsigned char* x, unsigned char* y", body), x, np.zeros_like(x), block=(32, 1, 1))
    wanted = x.copy()
    wanted[1::2, given:] = 0
    assert np.array_equal(y, wanted)


def test_a_predicate_chooses_between_a_copy_and_zeros() -> None:
    body = """__shared__ alignas(16) int s[128];
      const int t = threadIdx.x;
      unsigned at = __cvta_generic_to_shared(s + 4 * t);
      __asm__ __volatile__(
        "{\\n"
        " .reg .pred p;\\n"
        " setp.eq.u32 p, %3, 1;\\n"
        " @p cp.async.cg.shared.global [%0], [%1], %2;\\n"
        " @!p st.shared.v4.u32 [%0], {%4, %4, %4, %4};\\n"
        "}\\n"
        :: "r"(at), "l"(x + 4 * t), "n"(16), "r"((int)(t % 3 == 0)), "r"(0));
      asm volatile("cp.async.commit_group;" ::);
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      for (int i = 0; i < 4; ++i) y[4 * t + i] = s[4 * t + i];"""
    x = np.arange(1, 129, dtype=np.int32).reshape(32, 4)
    _, y = run(kernel("int* x, int* y", body), x, np.full_like(x, -1), block=(32, 1, 1))
    assert np.array_equal(y, np.where(np.arange(32)[:, None] % 3 == 0, x, 0))


LANE = np.arange(32)
SHUFFLES: Sequence[tuple[str, Array]] = (
    ("__shfl_xor_sync(0xffffffff, x[t], 5)", LANE ^ 5),
    ("__shfl_sync(0xffffffff, x[t], 7)", np.full(32, 7)),
    ("__shfl_sync(0xffffffff, x[t], 9, 8)", LANE // 8 * 8 + 1),
    ("__shfl_up_sync(0xffffffff, x[t], 3)", np.where(LANE >= 3, LANE - 3, LANE)),
    ("__shfl_down_sync(0xffffffff, x[t], 3)", np.where(LANE + 3 < 32, LANE + 3, LANE)),
    ("__shfl_down_sync(__activemask(), x[t], 4, 16)", np.where(LANE % 16 < 12, LANE + 4, LANE)),
    ("__shfl_up_sync(0xffffffff, x[t], 4, 16)", np.where(LANE % 16 >= 4, LANE - 4, LANE)),
)


@pytest.mark.parametrize(("call", "sources"), SHUFFLES)
def test_shuffles_move_values_between_lanes(call: str, sources: Array) -> None:
    x = np.random.default_rng(0).standard_normal(32)
    _, y = run(kernel("double* x, double* y", f"const int t = threadIdx.x; y[t] = {call};"), x, x, block=(32, 1, 1))
    assert np.array_equal(y, x[sources])


def test_votes_and_reductions_are_of_the_lanes_of_the_mask() -> None:
    body = """const int t = threadIdx.x;
      if (t < 16) {
        y[t] = __ballot_sync(0xffff, x[t] > 7);
        y[t + 16] = __reduce_add_sync(0xffffu, x[t]);
        y[t + 32] = 100 * __any_sync(0xffff, x[t] == 3) + 10 * __all_sync(0xffff, x[t] < 16) + __all_sync(0xffff, x[t]);
      }"""
    x = np.arange(64, dtype=np.int32)
    _, y = run(kernel("int* x, int* y", body), x, np.zeros_like(x), block=(32, 1, 1))
    assert (y[:16] == 0xFF00).all() and (y[16:32] == 120).all() and (y[32:48] == 110).all()


def test_blocks_and_threads_are_numbered_x_first() -> None:
    body = """int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
      int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
      y[b * 24 + t] = 24 * b + t + (int)(__shfl_sync(~0u, t, 5) == 5) + 100000 * (int)__syncthreads_count(t % 2);"""
    y = np.zeros((24, 24), np.int32)
    found = run(kernel("int* y", body), y, grid=(2, 3, 4), block=(4, 3, 2))[0]
    assert np.array_equal(found.ravel(), np.arange(576) + 1 + 12 * 100000)


def test_atomics_of_all_blocks_add_up() -> None:
    body = """__shared__ int s[1];
      if (threadIdx.x == 0) s[0] = 0;
      __syncthreads();
      atomicAdd(s, 1);
      __syncthreads();
      if (threadIdx.x == 0) atomicAdd(y, s[0]);
      atomicMax(y + 1, (int)(blockIdx.x * 64 + threadIdx.x));"""
    assert run(kernel("int* y", body), np.zeros(2, np.int32), grid=(5, 1, 1))[0].tolist() == [320, 319]


SHORT = {"half": (np.float16, "__half", "half"), "bfloat16": (ml_dtypes.bfloat16, "__nv_bfloat16", "bfloat16")}


def every(dtype: type) -> Array:
    """All values of a 16-bit type that are numbers."""
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    return values[np.isfinite(values.astype(np.float32))]


@pytest.mark.parametrize("kind", SHORT)
def test_conversions_round_to_nearest_even(kind: str) -> None:
    dtype, c_type, word = SHORT[kind]
    exact = np.sort(every(dtype).astype(np.float32))
    middles = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    hard = np.concatenate([exact, middles, [65519.0, 65520, 3.39e38, 3.4e38, 1e-8, 2**-25, np.inf, -np.inf]])
    hard = hard.astype(np.float32)
    hard = np.concatenate([np.nextafter(hard, np.float32(-np.inf)), hard, np.nextafter(hard, np.float32(np.inf))])
    hard = np.resize(hard, (len(hard) + 1023) // 1024 * 1024)
    body = f"""const int i = blockIdx.x * 1024 + threadIdx.x;
      y[i] = __float2{word}_rn(x[i]);
      z[i] = __{word}2float(y[i]);"""
    text = kernel(f"float* x, {c_type}* y, float* z", body)
    _, y, z = run(text, hard, np.zeros(len(hard), dtype), hard, grid=(len(hard) // 1024, 1, 1), block=(1024, 1, 1))
    with np.errstate(over="ignore"):
        wanted = hard.astype(dtype)
    assert np.array_equal(y.view(np.uint16), wanted.view(np.uint16))
    assert np.array_equal(z, wanted.astype(np.float32))


def nearest(bits: int, exact: Fraction, dtype: type) -> bool:
    """Whether the value with these bits is the one nearest to `exact`, an even one where two are."""

    def value(b: int) -> Fraction | None:
        number = float(np.array([b], np.uint16).view(dtype)[0])
        return Fraction(number) if np.isfinite(number) else None

    own = value(bits)
    if own is None:
        return False
    others = [value(b) for b in (bits - 1, bits + 1) if 0 <= b < 1 << 16 and b != 0x7FFF]
    far = [abs(other - exact) for other in others if other is not None]
    return all(abs(own - exact) < d or (abs(own - exact) == d and bits % 2 == 0) for d in far)


@pytest.mark.parametrize("kind", SHORT)
def test_arithmetic_rounds_once(kind: str) -> None:
    dtype, c_type, _ = SHORT[kind]
    rng = np.random.default_rng(0)
    a, b, c = (rng.uniform(1, 2, 1024) * 2.0 ** rng.integers(-6, 6, 1024) for _ in range(3))
    ulp = float(ml_dtypes.finfo(dtype).eps)
    # Just below a tie from which even would be up: rounding to float32 first would make it a tie.
    a[0], b[0], c[0] = 0.5 * (1 + ulp), 1 - ulp, 1 / ulp + 1
    # A product that is a tie, and a sum that even float64 would take for one.
    a[1], b[1], c[1] = (3, 683 / 2048, -(2.0**-24)) if kind == "half" else (7, 37 / 256, -(2.0**-100))
    a, b, c = (each.astype(dtype) for each in (a, b, c))
    body = """const int i = threadIdx.x;
      y[i] = __hadd(a[i], b[i]);
      y[i + 1024] = a[i] * b[i];
      y[i + 2048] = a[i] / b[i];
      y[i + 3072] = __hfma(a[i], b[i], c[i]);
      y[i + 4096] = a[i] - b[i];"""
    text = kernel(f"{c_type}* a, {c_type}* b, {c_type}* c, {c_type}* y", body)
    *_, y = run(text, a, b, c, np.zeros(5 * 1024, dtype), block=(1024, 1, 1))
    found = y.view(np.uint16).reshape(5, 1024)
    for i in range(1024):
        p, q, r = (Fraction(float(each[i])) for each in (a, b, c))
        for bits, exact in zip(found[:, i], (p + q, p * q, p / q, p * q + r, p - q), strict=True):
            assert exact == 0 or nearest(int(bits), exact, dtype), (i, p, q, r)


def test_cvt_rounds_to_tf32_away_from_zero_at_ties() -> None:
    x = np.float32([1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-23, 1 + 2**-10, 3e38, np.inf])
    body = """unsigned r;
      asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x[threadIdx.x]));
      y[threadIdx.x] = __uint_as_float(r);"""
    _, y = run(kernel("float* x, float* y", body), x, x, block=(6, 1, 1))
    assert y[:4].tolist() == [1 + 2**-10, -1 - 2**-10, 1, 1 + 2**-10] and y[5] == np.inf


def test_dp4a_multiplies_bytes_of_either_sign() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (64, 4)).astype(np.uint8) for _ in range(2))
    body = """const int t = threadIdx.x;
      y[t] = __dp4a((int)a[t], (int)b[t], t);
      y[t + 64] = (int)__dp4a(a[t], b[t], (unsigned)t);
      asm volatile("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(y[t + 128]) : "r"(a[t]), "r"(b[t]), "r"(t));"""
    words = [each.view(np.uint32) for each in (a, b)]
    *_, y = run(kernel("unsigned* a, unsigned* b, int* y", body), *words, np.zeros(192, np.int32))
    signed, plain = (tuple(each.view(kind).astype(int) for each in (a, b)) for kind in (np.int8, np.uint8))
    pairs = ((signed[0], signed[1]), (plain[0], plain[1]), (plain[0], signed[1]))
    assert np.array_equal(y.reshape(3, 64), [(p * q).sum(1) + np.arange(64) for p, q in pairs])


def test_an_instruction_without_a_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"no model of the PTX instruction 'griddepcontrol\.wait'"):
        run(kernel("int* x", 'asm volatile("griddepcontrol.wait;" ::);'), np.zeros(1, np.int32))
