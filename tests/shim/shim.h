// CUDA C++ on the host: what emitted kernels see in place of CUDA's own headers. It is included in front of a kernel's
// text by tests/cuda_shim.py, which has rewritten `__shared__` declarations and inline PTX into calls of the functions
// declared here. They live in the other files of this folder.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

// ---- vectors

#define CUDA_VECTORS(T, NAME, A1, A2, A4)                                                                        \
  struct alignas(A1) NAME##1 { T x; };                                                                           \
  struct alignas(A2) NAME##2 { T x, y; };                                                                        \
  struct alignas(A1) NAME##3 { T x, y, z; };                                                                     \
  struct alignas(A4) NAME##4 { T x, y, z, w; };                                                                  \
  inline NAME##1 make_##NAME##1(T x) { return {x}; }                                                             \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                                     \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                                             \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_VECTORS(signed char, char, 1, 2, 4)
CUDA_VECTORS(unsigned char, uchar, 1, 2, 4)
CUDA_VECTORS(short, short, 2, 4, 8)
CUDA_VECTORS(unsigned short, ushort, 2, 4, 8)
CUDA_VECTORS(int, int, 4, 8, 16)
CUDA_VECTORS(unsigned, uint, 4, 8, 16)
CUDA_VECTORS(long, long, 8, 16, 16)
CUDA_VECTORS(unsigned long, ulong, 8, 16, 16)
CUDA_VECTORS(long long, longlong, 8, 16, 16)
CUDA_VECTORS(unsigned long long, ulonglong, 8, 16, 16)
CUDA_VECTORS(float, float, 4, 8, 16)
CUDA_VECTORS(double, double, 8, 16, 16)
#undef CUDA_VECTORS

// ---- threads and blocks

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern "C" {
// A coroutine never changes its indices, so the compiler may keep them: hence `const`.
// x in the low 32 bits, then y and z with 16 each: a scalar, since g++ calls again and again for a structure.
uint64_t cuda_thread_index() __attribute__((const));
uint64_t cuda_block_index() __attribute__((const));
uint64_t cuda_block_extent() __attribute__((const));
uint64_t cuda_grid_extent() __attribute__((const));
unsigned cuda_lane() __attribute__((const));

int cuda_barrier(int line, int count);
void cuda_warp_barrier(int line, unsigned mask);
unsigned cuda_active_mask();
uint64_t cuda_shuffle(int line, unsigned mask, uint64_t bits, int by, int width, int mode);
unsigned cuda_ballot(int line, unsigned mask, int predicate);
int cuda_reduce(int line, unsigned mask, int value, int operation);

void* cuda_shared_array(int id, const char* name, size_t bytes, size_t alignment);
void* cuda_shared_dynamic(const char* name, size_t alignment);
unsigned cuda_to_shared(const void* pointer);
void* cuda_from_shared(unsigned address);

// Loads and stores that are checked by the callee, of 1, 2, 4, 8 or 16 bytes.
void cuda_load(void* to, const void* from, unsigned bytes);
void cuda_store(void* to, const void* from, unsigned bytes);
uint64_t cuda_atomic_load(const void* from, unsigned bytes);
void cuda_atomic_store(void* to, uint64_t bits, unsigned bytes);

// cp.async of `bytes`, of which `given` are copied and the rest are zeros.
void cuda_copy_async(unsigned to, const void* from, unsigned bytes, unsigned given);
void cuda_copy_commit();
void cuda_copy_wait(int groups);  // negative: all, committed or not

void cuda_ldmatrix(int line, unsigned count, int transposed, unsigned* out, unsigned address);
enum CudaType { CUDA_F16, CUDA_BF16, CUDA_TF32, CUDA_S8, CUDA_U8, CUDA_F32, CUDA_S32 };
void cuda_mma(int line, int m, int k, int a_type, int b_type, int d_type, int saturate, unsigned* d, const unsigned* a,
              const unsigned* b, const unsigned* c);

// wgmma of `n` columns that adds to n / 2 sums (or, without `add`, sets them); the descriptors are PTX's.
void cuda_wgmma(int line, unsigned n, int a_type, int b_type, unsigned** sums, uint64_t a, uint64_t b, int add);
void cuda_wgmma_commit();
void cuda_wgmma_wait(int line, int groups);
void cuda_proxy_fence();
}

inline uint3 cuda_three(uint64_t packed) {
  return {unsigned(packed), unsigned(packed >> 32 & 0xffff), unsigned(packed >> 48)};
}
#define threadIdx (cuda_three(cuda_thread_index()))
#define blockIdx (cuda_three(cuda_block_index()))
#define blockDim (cuda_three(cuda_block_extent()))
#define gridDim (cuda_three(cuda_grid_extent()))
static const int warpSize = 32;

#define __syncthreads() ((void)cuda_barrier(__LINE__, 0))
#define __syncthreads_count(p) cuda_barrier(__LINE__, (p) != 0)
#define CUDA_FIRST(a, ...) a
#define __syncwarp(...) cuda_warp_barrier(__LINE__, CUDA_FIRST(__VA_ARGS__ __VA_OPT__(, ) 0xffffffffu))
#define __activemask() cuda_active_mask()
#define __ballot_sync(mask, p) cuda_ballot(__LINE__, mask, (p) != 0)
#define __any_sync(mask, p) (cuda_ballot(__LINE__, mask, (p) != 0) != 0)
#define __all_sync(mask, p) (cuda_ballot(__LINE__, mask, (p) == 0) == 0)
#define __reduce_add_sync(mask, v) cuda_reduce(__LINE__, mask, v, 0)
#define __reduce_max_sync(mask, v) cuda_reduce(__LINE__, mask, v, 1)
#define __reduce_min_sync(mask, v) cuda_reduce(__LINE__, mask, v, 2)
#define __shfl_sync(...) cuda_shim::shuffle(__LINE__, 0, __VA_ARGS__)
#define __shfl_up_sync(...) cuda_shim::shuffle(__LINE__, 1, __VA_ARGS__)
#define __shfl_down_sync(...) cuda_shim::shuffle(__LINE__, 2, __VA_ARGS__)
#define __shfl_xor_sync(...) cuda_shim::shuffle(__LINE__, 3, __VA_ARGS__)
#define __cvta_generic_to_shared(p) ((size_t)cuda_to_shared((const void*)(p)))
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}
#define __trap() cuda_trap(__LINE__)
extern "C" {
void cuda_trap(int line);
[[noreturn]] void cuda_bad_index(int outside, long index, unsigned bytes, unsigned count);
}

namespace cuda_shim {

template <class T>
inline uint64_t bits(const T& value) {
  static_assert(sizeof(T) <= 8, "at most 64 bits");
  uint64_t b = 0;
  memcpy(&b, &value, sizeof(T));
  return b;
}
template <class T>
inline T from_bits(uint64_t b) {
  T value;
  memcpy(&value, &b, sizeof(T));
  return value;
}
template <class T>
inline void set(T& to, uint64_t b) {
  to = from_bits<T>(b);
}

template <class T>
inline T shuffle(int line, int mode, unsigned mask, T value, int by, int width = 32) {
  return from_bits<T>(cuda_shuffle(line, mask, bits(value), by, width, mode));
}

// An operand of an instruction as a value of T: bits where the sizes agree, else converted.
template <class T, class V>
inline T as(V v) {
  if constexpr (std::is_pointer<V>::value) return T(uintptr_t(v));
  else if constexpr (sizeof(T) == sizeof(V)) return from_bits<T>(bits(v));
  else return T(v);
}
template <class V>
inline V offset(V base, long long bytes) {
  return (V)(uintptr_t(base) + bytes);
}
// Rounded to 10 bits of mantissa, halves away from zero.
inline unsigned to_tf32(float x) {
  const unsigned b = from_bits<unsigned>(bits(x));
  return x - x == 0 ? (b + 0x1000) & ~0x1fffu : b;
}

template <class T, size_t ALIGNMENT, int ID>
inline T& shared_array(const char* name) {
  return *(T*)cuda_shared_array(ID, name, sizeof(T), ALIGNMENT ? ALIGNMENT : alignof(T));
}

// *(V*)(array + i), within the array. The address goes nowhere else, so that the array may live in registers.
template <class V, class A>
inline V& local_at(A& array, long i) {
  if constexpr (std::is_array<A>::value) {
    constexpr size_t size = sizeof(array[0]), least = alignof(V) / size;
    const bool outside = i < 0 || i * size + sizeof(V) > sizeof(A);
    if (outside || (least && i % least)) cuda_bad_index(outside, i, sizeof(V), sizeof(A) / size);
    return *(V*)__builtin_assume_aligned(array + i, alignof(V));
  } else {
    return *(V*)(array + i);
  }
}

template <class... P, size_t... I>
inline void call(void (*kernel)(P...), const uint64_t* args, std::index_sequence<I...>) {
  kernel(from_bits<P>(args[I])...);
}
template <class... P>
inline void call(void (*kernel)(P...), const uint64_t* args) {
  call(kernel, args, std::index_sequence_for<P...>());
}
template <class... P>
constexpr int arity(void (*)(P...)) {
  return sizeof...(P);
}

// The loaded image of this text: its constants are readable memory.
extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

}  // namespace cuda_shim

#include "half.h"
#include "arithmetic.h"
