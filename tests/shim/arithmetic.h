// The device functions of one thread: arithmetic, casts, integer instructions and atomics.
#pragma once
#include <math.h>
#include <stdint.h>

#include <limits>

// glibc declares some of the fast functions' names itself, so these are macros.
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __tanhf tanhf

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return float(1.0 / sqrt(double(a))); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __saturatef(float a) { return a != a ? 0.0f : fminf(fmaxf(a, 0.0f), 1.0f); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }

template <class A, class B, class = std::enable_if_t<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value>>
inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<T>::value) return fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
template <class A, class B, class = std::enable_if_t<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value>>
inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point<T>::value) return fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}

inline int __float_as_int(float x) { return cuda_shim::from_bits<int>(cuda_shim::bits(x)); }
inline unsigned __float_as_uint(float x) { return cuda_shim::from_bits<unsigned>(cuda_shim::bits(x)); }
inline float __int_as_float(int x) { return cuda_shim::from_bits<float>(cuda_shim::bits(x)); }
inline float __uint_as_float(unsigned x) { return cuda_shim::from_bits<float>(cuda_shim::bits(x)); }
inline long long __double_as_longlong(double x) { return cuda_shim::from_bits<long long>(cuda_shim::bits(x)); }
inline double __longlong_as_double(long long x) { return cuda_shim::from_bits<double>(cuda_shim::bits(x)); }

// Conversions of floating point saturate and turn NaN into 0.
template <class T>
inline T cuda_saturate(double x) {
  using limits = std::numeric_limits<T>;
  if (x != x) return 0;
  if (x <= double(limits::min())) return limits::min();
  return x >= ldexp(1.0, limits::digits) ? limits::max() : T(x);
}
#define CUDA_CASTS(FROM, TO, T)                                                             \
  inline T __##FROM##2##TO##_rn(FROM x) { return cuda_saturate<T>(nearbyint(x)); }          \
  inline T __##FROM##2##TO##_rz(FROM x) { return cuda_saturate<T>(trunc(x)); }              \
  inline T __##FROM##2##TO##_rd(FROM x) { return cuda_saturate<T>(floor(x)); }              \
  inline T __##FROM##2##TO##_ru(FROM x) { return cuda_saturate<T>(ceil(x)); }
CUDA_CASTS(float, int, int)
CUDA_CASTS(float, uint, unsigned)
CUDA_CASTS(float, ll, long long)
CUDA_CASTS(double, int, int)
CUDA_CASTS(double, uint, unsigned)
CUDA_CASTS(double, ll, long long)
#undef CUDA_CASTS
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline double __int2double_rn(int x) { return double(x); }
inline float __double2float_rn(double x) { return float(x); }

inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline long long __mul64hi(long long a, long long b) { return (long long)(((__int128)a * b) >> 64); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline int __mul24(int a, int b) { return ((a << 8) >> 8) * ((b << 8) >> 8); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned how) {
  const uint64_t both = uint64_t(b) << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = how >> (4 * i);
    const unsigned byte = both >> (8 * (pick & 7)) & 255;
    r |= (pick & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * i);
  }
  return r;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) {
  return unsigned((uint64_t(hi) << 32 | lo) << (s & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned s) {
  return unsigned((uint64_t(hi) << 32 | lo) >> (s & 31));
}

// Four products of bytes, of type A and B, added to c; modulo 2^32.
template <class A, class B>
inline unsigned cuda_dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += unsigned(int(A(a >> (8 * i))) * int(B(b >> (8 * i))));
  return c;
}
inline int __dp4a(int a, int b, int c) { return int(cuda_dp4a<int8_t, int8_t>(a, b, c)); }
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) { return cuda_dp4a<uint8_t, uint8_t>(a, b, c); }

#define CUDA_CACHED(NAME)     \
  template <class T>          \
  inline T NAME(const T* p) { \
    return *p;                \
  }
CUDA_CACHED(__ldg)
CUDA_CACHED(__ldcg)
CUDA_CACHED(__ldca)
CUDA_CACHED(__ldcs)
#undef CUDA_CACHED
template <class T>
inline void __stcs(T* p, T v) {
  *p = v;
}

template <class T, class F>
inline T cuda_atomic(T* p, F change) {
  const T old = cuda_shim::from_bits<T>(cuda_atomic_load(p, sizeof(T)));
  cuda_atomic_store(p, cuda_shim::bits(T(change(old))), sizeof(T));
  return old;
}
#define CUDA_ATOMIC(NAME, EXPRESSION)                         \
  template <class T, class V>                                 \
  inline T NAME(T* p, V value) {                              \
    const T v = T(value);                                     \
    return cuda_atomic(p, [&](T old) { return EXPRESSION; }); \
  }
CUDA_ATOMIC(atomicAdd, old + v)
CUDA_ATOMIC(atomicSub, old - v)
CUDA_ATOMIC(atomicMax, v > old ? v : old)
CUDA_ATOMIC(atomicMin, v < old ? v : old)
CUDA_ATOMIC(atomicAnd, old & v)
CUDA_ATOMIC(atomicOr, old | v)
CUDA_ATOMIC(atomicXor, old ^ v)
CUDA_ATOMIC(atomicExch, v)
#undef CUDA_ATOMIC
template <class T>
inline T atomicCAS(T* p, T expected, T value) {
  return cuda_atomic(p, [&](T old) { return old == expected ? value : old; });
}

#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")
