"""Does the shim catch every fault that it says it does, and let right code alone?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_shim import Fault, ShimDriver, Three, needs_shim

pytestmark = needs_shim

Array = np.ndarray
FLOATS = np.arange(128, dtype=np.float32)

BEFORE = """
#include <cuda_fp16.h>
__device__ void copy16(void* to, void* from) {
  unsigned int at = __cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], %2;" :: "r"(at), "l"(from), "n"(16));  // here
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::); }
template <int N> __device__ void wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
__device__ void ldmatrix(unsigned* r, void* p) {
  unsigned at = __cvta_generic_to_shared(p);
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(at));  // here
}
__device__ unsigned long long descriptor(const void* p) {  // 8 rows after 8, their second 16 bytes 1024 further on
  return 8ull << 32 | 64ull << 16 | (__cvta_generic_to_shared(p) >> 4);
}
__device__ void wgmma(float* c, const void* a, const void* b) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "  // here
               "{%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, 0; }"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "l"(descriptor(a)), "l"(descriptor(b)));
}
__device__ void order() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }  // here
"""
HEAD = 'extern "C" __global__ void __launch_bounds__(1024) f(float* __restrict__ x, float* __restrict__ y) {'


def run(
    text: str, *arrays: Array, grid: Three = (1, 1, 1), block: Three = (64, 1, 1), shared: int = 0, checked: bool = True
) -> list[Array]:
    """What the kernel `f` of a text makes of copies of these arrays, one a parameter."""
    driver = ShimDriver(checked=checked)
    function = driver.function(driver.load(text.encode()), "f", shared)
    pointers = [driver.allocate(array.nbytes) for array in arrays]
    try:
        for pointer, array in zip(pointers, arrays, strict=True):
            driver.copy_in(pointer, np.ascontiguousarray(array))
        driver.launch(function, grid, block, shared, pointers)
        found = [np.empty(array.shape, array.dtype) for array in arrays]
        for pointer, array in zip(pointers, found, strict=True):
            driver.copy_out(array, pointer)
        return found
    finally:
        for pointer in pointers:
            driver.free(pointer)


def body(text: str, **extents: Any) -> Array:
    """y after a kernel with this body, on x = 0, 1, ... 127."""
    return run(f"{BEFORE}{HEAD}{text}}}", FLOATS, np.zeros_like(FLOATS), **extents)[1]


def multiplied(
    *, size: int = 1024, before: str = "order(); __syncthreads();", left: str = "s",
    after: str = "wgmma_wait(); y[threadIdx.x] = c[0];",
) -> str:  # fmt: skip
    """A body whose warpgroup multiplies a shared array of ones by itself."""
    return f"""
        __shared__ alignas(64) half s[{size}];
        float c[4] = {{}};
        for (int i = threadIdx.x; i < {size}; i += blockDim.x) s[i] = half(1);
        {before}
        wgmma(c, {left}, s);
        wgmma_commit();
        {after}
        """


# A fault each: its kind, a part of the message, extents of the launch, and the body, whose faulty line says so.
FAULTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "missing barrier": (
        "race", "with no barrier between", {}, """
        __shared__ float s[64];
        const int t = threadIdx.x;
        s[t] = x[t];
        if (t >= 32)
          y[t] = s[t % 32];  // here
        """),
    "missing barrier of a warp": (
        "race", "with no barrier between", {}, """
        __shared__ float s[64];
        const int t = threadIdx.x;
        s[t] = x[t];
        __shfl_xor_sync(0xffffffff, x[t], 1);
        y[t] = s[t ^ 1];  // here
        """),
    "missing barrier before the next round": (
        "race", "wrote with no barrier between", {}, """
        __shared__ float s[64];
        const int t = threadIdx.x;
        for (int i = 0; i < 2; ++i) {
          s[t] = x[t] + i;
          __syncthreads();
          y[t] = s[63 - t];  // here
        }
        """),
    "two threads write": (
        "race", "wrote with no barrier between", {}, """
        __shared__ float s[64];
        const int t = threadIdx.x;
        s[t / 2] = x[t];  // here
        """),
    "two threads write one byte": (
        "race", "wrote with no barrier between", {}, """
        __shared__ signed char s[64];
        const int t = threadIdx.x;
        s[t / 2] = (char)t;  // here
        """),
    "shared array, index": (
        "out of bounds", "'float [64]'", {}, """
        __shared__ float s[64];
        const int t = threadIdx.x;
        s[t + 1] = x[t];  // here
        """),
    "shared array, pointer": (
        "out of bounds", "byte 256 of the shared array s of 256 bytes", {}, """
        __shared__ float s[64];
        __shared__ float other[64];
        const int t = threadIdx.x;
        other[t] = 0;
        float* p = s + (int)x[0];
        p[t + 1] = x[t];  // here
        """),
    "dynamic shared memory": (
        "out of bounds", "byte 256 of the shared array s of 256 bytes", {"shared": 256}, """
        extern __shared__ __align__(64) unsigned char s[];
        const int t = threadIdx.x;
        ((float*)s)[t + 1] = x[t];  // here
        """),
    "device memory, read": (
        "out of bounds", "byte 512 of an allocation of 512 bytes, of x", {}, """
        const int t = threadIdx.x;
        y[t] = x[t + 65];  // here
        """),
    "device memory, write": (
        "out of bounds", "byte -4 of an allocation of 512 bytes, of y", {}, """
        const int t = threadIdx.x;
        y[t - 1] = x[t];  // here
        """),
    "device memory, part of a vector": (
        "out of bounds", "byte 512 of", {"block": (33, 1, 1)}, """
        const int t = threadIdx.x;
        float4 v = *(float4*)(x);
        if (t % 2 == 0)
          *(float4*)(y + 2 * t + 64) = v;  // here
        """),
    "local array": (
        "out of bounds", "'float [8]'", {}, """
        const int t = threadIdx.x;
        float local[8];
        for (int i = 0; i < 8; ++i) local[i] = x[i];
        if (t < 9)
          local[(int)x[t]] = 1;  // here
        for (int i = 0; i < 8; ++i) y[t] += local[i];
        """),
    "local array, vector": (
        "out of bounds", "16 bytes from element 8 of a local array of 8", {}, """
        const int t = threadIdx.x;
        alignas(64) float local[8];
        for (int i = 0; i < 2; ++i) *(float4*)(local + (i * 4)) = *(float4*)(x + (i * 4));
        if (t % 4 == 0)
          y[t] = (*(float4*)(local + (int)x[t])).y;  // here
        """),
    "local array, misaligned vector": (
        "misaligned", "16 bytes from element 1 of a local array of 8", {}, """
        const int t = threadIdx.x;
        alignas(64) float local[8];
        for (int i = 0; i < 2; ++i) *(float4*)(local + (i * 4)) = *(float4*)(x + (i * 4));
        y[t] = (*(float4*)(local + (int)(x[t] + 1))).y;  // here
        """),
    "shared before any write": (
        "uninitialised", "no thread of the block has written", {}, """
        __shared__ float s[64];
        const int t = threadIdx.x;
        if (t != 40) s[t] = x[t];
        __syncthreads();
        y[t] = s[t];  // here
        """),
    "shared of the last block": (
        "uninitialised", "no thread of the block has written", {"grid": (2, 1, 1)}, """
        __shared__ float s[64];
        const int t = threadIdx.x;
        if (blockIdx.x == 0) s[t] = x[t];
        __syncthreads();
        if (blockIdx.x == 1)
          y[t] = s[t];  // here
        """),
    "misaligned vector": (
        "misaligned", "aligned to 16 bytes", {"block": (2, 1, 1)}, """
        const int t = threadIdx.x;
        *(float4*)(y + t) = *(float4*)x;  // here
        """),
    "misaligned vector of a float array": (
        "misaligned", "aligned to 16 bytes", {}, """
        __shared__ float s[256];
        const int t = threadIdx.x;
        *(float4*)(s + 4 * t) = *(float4*)x;  // here
        """),
    "misaligned copy": (
        "misaligned", "cp.async of 16 bytes from byte 4", {}, """
        __shared__ alignas(64) float s[4];
        if (threadIdx.x == 0)
          copy16(s, x + 1);
        """),
    "barrier in one warp": (
        "divergence", "has ended", {}, """
        if (threadIdx.x < 32)
          __syncthreads();  // here
        """),
    "two barriers": (
        "divergence", "waits at the barrier of line", {}, """
        if (threadIdx.x < 32)
          __syncthreads();  // here
        else
          __syncthreads();
        """),
    "lanes missing from a shuffle": (
        "divergence", "has ended", {}, """
        const int t = threadIdx.x;
        if (t % 4)
          y[t] = __shfl_xor_sync(0xffffffff, x[t], 1);  // here
        """),
    "lanes missing from ldmatrix": (
        "divergence", "waits at the barrier", {}, """
        __shared__ alignas(64) half s[64];
        unsigned r[1];
        s[threadIdx.x] = half(x[threadIdx.x]);
        __syncthreads();
        if (threadIdx.x % 32 != 5) ldmatrix(r, s + threadIdx.x % 8 * 8);
        __syncthreads();
        """),
    "a warp too small for ldmatrix": (
        "divergence", "only the lanes 000000ff exist", {"block": (8, 1, 1)}, """
        __shared__ alignas(64) half s[64];
        unsigned r[1];
        ldmatrix(r, s);
        """),
    "ldmatrix without a barrier": (
        "race", "with no barrier between", {}, """
        __shared__ alignas(64) half s[64];
        unsigned r[1];
        s[threadIdx.x] = half(x[threadIdx.x]);
        ldmatrix(r, s + threadIdx.x % 8 * 8);
        """),
    "copy not waited for": (
        "unfinished copy", "a cp.async is under way", {}, """
        __shared__ alignas(64) float s[256];
        const int t = threadIdx.x;
        copy16(s + 4 * t, x);
        commit();
        __syncthreads();
        y[t] = s[t];  // here
        """),
    "copy waited for too late": (
        "unfinished copy", "a cp.async is under way", {}, """
        __shared__ alignas(64) float s[512];
        const int t = threadIdx.x;
        copy16(s + 4 * t, x);
        commit();
        copy16(s + 256 + 4 * t, x);
        commit();
        wait<1>();
        __syncthreads();
        y[t] = s[t];
        y[t] = s[256 + t];  // here
        """),
    "copy of another thread, no barrier": (
        "race", "with no barrier between", {}, """
        __shared__ alignas(64) float s[256];
        const int t = threadIdx.x;
        copy16(s + 4 * t, x);
        commit();
        wait<0>();
        __syncwarp();
        y[t] = s[t / 32 * 128 + t % 32];
        y[t] = s[t / 2];  // here
        """),
    "copy over what others read": (
        "race", "read with no barrier between", {}, """
        __shared__ alignas(64) float s[256];
        const int t = threadIdx.x;
        s[t] = s[t + 64] = s[t + 128] = s[t + 192] = 0;
        __syncthreads();
        y[t] = s[255 - t];
        copy16(s + 4 * t, x);
        """),
    "two blocks write": (
        "race between blocks", "block (0, 0, 0) wrote", {"grid": (2, 1, 1)}, """
        const int t = threadIdx.x;
        y[t] = blockIdx.x;  // here
        """),
    "a block reads what another wrote": (
        "race between blocks", "block (0, 1, 0) wrote", {"grid": (1, 3, 1)}, """
        const int t = threadIdx.x;
        if (blockIdx.y == 1) y[t] = x[t];
        if (blockIdx.y == 2)
          y[t + 64] = y[t];  // here
        """),
    "a block writes what others read": (
        "race between blocks", "other blocks read", {"grid": (3, 1, 1)}, """
        const int t = threadIdx.x;
        if (blockIdx.x < 2) y[t + 64 * blockIdx.x] = x[t];
        if (blockIdx.x == 2)
          x[t] = 0;  // here
        """),
    "an atomic on what another block wrote": (
        "race between blocks", "block (0, 0, 0) wrote", {"grid": (2, 1, 1)}, """
        if (blockIdx.x == 0 && threadIdx.x == 0) y[0] = 0;
        if (blockIdx.x == 1)
          atomicAdd(y, 1.0f);  // here
        """),
    "wgmma of what was not put in order": (
        "race", "with no fence.proxy.async behind", {"block": (128, 1, 1)}, multiplied(before="__syncthreads();")),
    "wgmma before a barrier": (
        "race", "with no barrier between", {"block": (128, 1, 1)}, multiplied(before="order();")),
    "wgmma beyond an array": (
        "out of bounds", "reads 16 bytes", {"block": (128, 1, 1)}, multiplied(size=1000)),
    "wgmma of different matrices in a warp": (
        "divergence", "multiply different matrices", {"block": (128, 1, 1)},
        multiplied(size=2048, left="s + threadIdx.x % 2 * 8")),
    "wgmma by half of a warpgroup": (
        "divergence", "in a warpgroup that is not whole", {}, multiplied()),
    "wgmma not waited for": (
        "unfinished product", "it ends before a wgmma that it has begun", {"block": (128, 1, 1)},
        multiplied(after="")),
    "trap": (
        "trap", "trap", {}, """
        if (threadIdx.x == 3)
          __trap();  // here
        """),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_caught_where_it_is(name: str) -> None:
    kind, words, extents, text = FAULTS[name]
    with pytest.raises(Fault) as caught:
        body(text, **extents)
    assert (caught.value.kind, "// here" in caught.value.source) == (kind, True), str(caught.value)
    assert words in str(caught.value)
    assert "kernel f, block (" in str(caught.value)


def test_right_code_is_let_alone() -> None:
    """Barriers of blocks and warps, copies that are waited for, bytes side by side, reads by all of what one wrote."""
    y = body("""
        __shared__ float s[64];
        __shared__ alignas(16) float copied[2][256];
        __shared__ signed char bytes[64];
        const int t = threadIdx.x;
        copy16(copied[0] + 4 * t, x);
        commit();
        for (int i = 0; i < 3; ++i) {
          copy16(copied[(i + 1) % 2] + 4 * t, x + 4 * i);
          commit();
          wait<1>();
          __syncthreads();
          y[t] += copied[i % 2][255 - 4 * t];
          __syncthreads();
        }
        wait<0>();
        s[t] = x[t];
        bytes[t] = t;
        __syncwarp();
        float sum = s[t ^ 1] + bytes[t ^ 31];
        __syncwarp();
        s[t ^ 2] = sum;
        __syncthreads();
        if (t == 0) s[0] = 1;
        __syncthreads();
        y[t] += s[0];
        """)
    assert np.array_equal(y[:64], np.full(64, 3.0 + 3 + 7 + 1, np.float32))


MMA = """
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const unsigned *a = (const unsigned*)x, *b = a + 16 * 8;
  int* c = (int*)y;
  int sum[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1]};
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.KIND.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};" : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
               : "r"(a[g * 8 + t]), "r"(a[(g + 8) * 8 + t]), "r"(a[g * 8 + t + 4]), "r"(a[(g + 8) * 8 + t + 4]),
                 "r"(b[g * 8 + t]), "r"(b[g * 8 + t + 4]));
  for (int r = 0; r < 4; ++r) c[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = sum[r];
"""


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_products_of_bytes_are_exact_and_their_sums_wrap(dtype: str) -> None:
    """A's words by row, B's by column, four bytes of k each; without .satfinite a sum leaves int32 at the other end."""
    rng, span = np.random.default_rng(0), np.iinfo(dtype)
    a = rng.integers(span.min, span.max + 1, (16, 32)).astype(dtype)
    b = rng.integers(-128, 128, (8, 32)).astype(np.int8)
    a[0], b[0] = span.max, 127
    c = rng.integers(-1000, 1000, (16, 8)).astype(np.int32)
    c[0] = 2**31 - 1
    given = np.frombuffer(a.tobytes() + b.tobytes(), np.int32)
    found = run(f"{HEAD}{MMA.replace('KIND', {'int8': 's8', 'uint8': 'u8'}[dtype])}}}", given, c, block=(32, 1, 1))[1]
    exact = c + a.astype(np.int64) @ b.T.astype(np.int64)
    assert exact[0, 0] > 2**31
    assert np.array_equal(found, exact.astype(np.int32))


GROUP = """
  __shared__ alignas(64) half a[1024];
  __shared__ alignas(64) half b[576];
  const int t = threadIdx.x;
  const half *left = (const half*)x, *right = left + 64 * 16;
  for (int i = t; i < 1024; i += 128) a[i % 16 / 8 * 512 + i / 16 * 8 + i % 8] = left[i];
  if (t < 128) b[t % 16 / 8 * 512 + t / 16 * 8 + t % 8] = right[t];
  float c[4];
  for (int r = 0; r < 4; ++r) c[r] = y[(t / 32 * 16 + t % 32 / 4 + r / 2 * 8) * 8 + t % 4 * 2 + r % 2];
  order();
  __syncthreads();
  wgmma(c, a, b);
  wgmma_commit();
  BEFORE_WAIT
  wgmma_wait();
  for (int r = 0; r < 4; ++r) y[(t / 32 * 16 + t % 32 / 4 + r / 2 * 8) * 8 + t % 4 * 2 + r % 2] = c[r];
"""


@pytest.mark.parametrize("early", ["", "c[t % 4] += 1;", "__syncthreads(); a[t] = half(9); order(); __syncthreads();"])
def test_a_warpgroup_multiplies_when_it_is_waited_for(early: str) -> None:
    """64 x 16 by 16 x 8 whole numbers and a sum before: exact, and not what it is where sums or operands are touched
    before the wait."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-8, 9, shape).astype(np.float16) for shape in ((64, 16), (8, 16), (64, 8)))
    given = np.frombuffer(a.tobytes() + b.tobytes(), np.float32)
    text = f"{BEFORE}{HEAD}{GROUP.replace('BEFORE_WAIT', early)}}}"
    found = run(text, given, c.astype(np.float32), block=(128, 1, 1))[1]
    exact = c.astype(np.float32) + a.astype(np.float32) @ b.T.astype(np.float32)
    assert np.array_equal(found, exact) == (not early)


def test_fresh_memory_is_nan_and_freed_memory_is_out_of_bounds() -> None:
    driver = ShimDriver()
    function = driver.function(driver.load(f"{HEAD} y[threadIdx.x] = x[threadIdx.x]; }}".encode()), "f", 0)
    x, y = (driver.allocate(256) for _ in range(2))
    driver.launch(function, (1, 1, 1), (64, 1, 1), 0, [x, y])
    found = np.empty(64, np.float32)
    driver.copy_out(found, y)
    assert np.isnan(found).all()
    driver.free(x)
    with pytest.raises(Fault, match="freed"):
        driver.launch(function, (1, 1, 1), (64, 1, 1), 0, [x, y])
    with pytest.raises(ValueError, match="not in one allocation"):
        driver.copy_out(np.empty(65, np.float32), y)


def test_a_graph_runs_its_launches_and_copies_when_it_is_replayed() -> None:
    driver = ShimDriver()
    function = driver.function(driver.load(f"{HEAD} y[threadIdx.x] += x[threadIdx.x]; }}".encode()), "f", 0)
    x, y = (driver.allocate(256) for _ in range(2))
    driver.copy_in(x, FLOATS[:64])
    stream, other = driver.stream(), driver.stream()
    given, found = np.ones(64, np.float32), np.empty(64, np.float32)
    first, last = driver.event(timed=True), driver.event(timed=True)

    def enqueue() -> None:
        driver.record(first, stream, in_graph=True)
        driver.copy_in(y, given, stream)
        driver.launch(function, (1, 1, 1), (64, 1, 1), 0, [x, y], stream)
        driver.record(last, stream, in_graph=True)

    graph = driver.capture(stream, enqueue)
    assert driver.launches == 0
    driver.replay(graph, other)
    driver.replay(graph, other)
    driver.copy_out(found, y, other)
    assert driver.launches == 2 and np.array_equal(found, FLOATS[:64] + 1)
    assert driver.elapsed(first, last) > 0


@pytest.mark.parametrize(
    ("words", "extents"),
    [
        ("a block of", {"block": (512, 2, 2)}), ("a block of", {"block": (1, 1, 128)}),
        ("a grid of", {"grid": (1, 70000, 1)}), ("bytes of shared memory", {"shared": 164 << 10}),
    ],
)  # fmt: skip
def test_a_launch_beyond_the_device_is_refused(words: str, extents: dict[str, Any]) -> None:
    with pytest.raises(Fault, match=words) as caught:
        body("", **extents)
    assert caught.value.kind == "launch"


def test_shared_memory_must_be_asked_for_and_arguments_be_complete() -> None:
    driver = ShimDriver((9, 0))
    function = driver.function(driver.load(f"{HEAD}}}".encode()), "f", 227 << 10)
    driver.launch(function, (1, 1, 1), (1, 1, 1), 227 << 10, [0, 0])
    with pytest.raises(Fault, match="asked for"):
        driver.launch(driver.function(function.program, "f", 0), (1, 1, 1), (1, 1, 1), 49 << 10, [0, 0])
    with pytest.raises(Fault, match="1 arguments for the parameters x, y"):
        driver.launch(function, (1, 1, 1), (1, 1, 1), 0, [0])


def test_without_checks_values_are_the_same_and_a_missing_barrier_passes() -> None:
    text = f"{HEAD} __shared__ float s[64]; s[threadIdx.x] = x[threadIdx.x]; y[threadIdx.x] = s[threadIdx.x / 2]; }}"
    with pytest.raises(Fault):
        run(text, FLOATS, FLOATS)
    assert np.array_equal(run(text, FLOATS, FLOATS, checked=False)[1][:64], FLOATS[np.arange(64) // 2])
    with pytest.raises(Fault, match="misaligned"):
        run(f"{HEAD} *(float4*)(y + 1) = *(float4*)x; }}", FLOATS, FLOATS, checked=False)


def test_what_the_compiler_refuses_is_told_in_its_words() -> None:
    with pytest.raises(ValueError, match="unknown_function"):
        body("unknown_function(x);")
