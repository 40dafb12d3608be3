// float16 and bfloat16 as cuda_fp16.h and cuda_bf16.h have them: every operation rounds once, to nearest even.
// The NaN that an operation makes is 0x7fff, as on the device.
#pragma once
#include <stdint.h>
#include <string.h>

#include <type_traits>

namespace cuda_shim {

// `x` rounded to `MANTISSA` stored bits, exponents from LEAST (the least normal one) to MOST.
template <int MANTISSA, int LEAST, int MOST>
inline uint16_t round_short(double x) {
  uint64_t b;
  memcpy(&b, &x, 8);
  const uint16_t sign = b >> 63 << 15;
  const int exponent = int(b >> 52 & 2047) - 1023;
  const uint64_t mantissa = b & ((1ull << 52) - 1), infinite = uint64_t(MOST - LEAST + 2) << MANTISSA;
  if (exponent == 1024) return mantissa ? 0x7fff : sign | infinite;
  const bool small = exponent < LEAST;
  const int drop = 52 - MANTISSA + (small ? LEAST - exponent : 0);
  if (drop > 63) return sign;
  const uint64_t whole = mantissa | 1ull << 52, half = 1ull << (drop - 1), rest = whole & (2 * half - 1);
  uint64_t kept = whole >> drop;
  kept += rest > half || (rest == half && (kept & 1));
  const uint64_t result = small ? kept : (uint64_t(exponent - LEAST) << MANTISSA) + kept;
  return sign | (result < infinite ? result : infinite);
}

struct Half {
  static uint16_t round(double x) { return round_short<10, -14, 15>(x); }
  static float widen(uint16_t h) {
    const uint32_t magnitude = uint32_t(h & 0x7fff) << 13, sign = uint32_t(h & 0x8000) << 16;
    uint32_t b = magnitude | 0x7f800000;
    float f;
    if ((h & 0x7c00) != 0x7c00) {
      memcpy(&f, &magnitude, 4);
      f *= 0x1p112f;
      memcpy(&b, &f, 4);
    }
    b |= sign;
    memcpy(&f, &b, 4);
    return f;
  }
};

struct Bfloat {
  static uint16_t round(double x) { return round_short<7, -126, 127>(x); }
  static float widen(uint16_t h) {
    const uint32_t b = uint32_t(h) << 16;
    float f;
    memcpy(&f, &b, 4);
    return f;
  }
};

// a * b + c in double precision rounded to odd, so that a second rounding to half the bits is the only one that counts.
inline double fma_to_odd(double a, double b, double c) {
  const double p = a * b, s = p + c, q = s - p, error = (p - (s - q)) + (c - q);
  if (!(error != 0) || !(s - s == 0)) return s;
  uint64_t bits;
  memcpy(&bits, &s, 8);
  if (!(bits & 1)) bits += (error > 0) == (s > 0) ? 1 : -1;
  double odd;
  memcpy(&odd, &bits, 8);
  return odd;
}

template <class F>
struct alignas(2) Short {
  uint16_t __x;

  Short() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>>
  Short(T v) : __x(F::round(double(v))) {}
  operator float() const { return F::widen(__x); }
  float wide() const { return F::widen(__x); }
  static Short of_bits(uint16_t b) {
    Short s;
    s.__x = b;
    return s;
  }

  friend Short operator-(Short a) { return of_bits(a.__x ^ 0x8000); }
  friend Short operator+(Short a) { return a; }
#define CUDA_ARITHMETIC(NAME, OP)                                                    \
  friend Short NAME(Short a, Short b) { return Short(double(a.wide()) OP double(b.wide())); } \
  friend Short operator OP(Short a, Short b) { return NAME(a, b); }                  \
  friend Short& operator OP##=(Short & a, Short b) { return a = NAME(a, b); }
  CUDA_ARITHMETIC(__hadd, +)
  CUDA_ARITHMETIC(__hsub, -)
  CUDA_ARITHMETIC(__hmul, *)
  CUDA_ARITHMETIC(__hdiv, /)
#undef CUDA_ARITHMETIC
#define CUDA_COMPARE(NAME, OP)                                              \
  friend bool NAME(Short a, Short b) { return a.wide() OP b.wide(); }       \
  friend bool operator OP(Short a, Short b) { return a.wide() OP b.wide(); }
  CUDA_COMPARE(__heq, ==)
  CUDA_COMPARE(__hne, !=)
  CUDA_COMPARE(__hlt, <)
  CUDA_COMPARE(__hle, <=)
  CUDA_COMPARE(__hgt, >)
  CUDA_COMPARE(__hge, >=)
#undef CUDA_COMPARE
  friend Short __hadd_rn(Short a, Short b) { return __hadd(a, b); }
  friend Short __hsub_rn(Short a, Short b) { return __hsub(a, b); }
  friend Short __hmul_rn(Short a, Short b) { return __hmul(a, b); }
  friend Short __hfma(Short a, Short b, Short c) { return Short(fma_to_odd(a.wide(), b.wide(), c.wide())); }
  friend Short __hfma_relu(Short a, Short b, Short c) { return __hmax(__hfma(a, b, c), Short(0)); }
  friend Short __hneg(Short a) { return -a; }
  friend Short __habs(Short a) { return of_bits(a.__x & 0x7fff); }
  friend Short __hmax(Short a, Short b) { return Short(fmaxf(a.wide(), b.wide())); }
  friend Short __hmin(Short a, Short b) { return Short(fminf(a.wide(), b.wide())); }
  friend bool __hisnan(Short a) { return a.wide() != a.wide(); }
  friend int __hisinf(Short a) { return isinf(a.wide()) ? (a.wide() > 0 ? 1 : -1) : 0; }
#define CUDA_FUNCTION(NAME, EXPRESSION)  \
  friend Short NAME(Short a) {           \
    const double x = a.wide();           \
    return Short(EXPRESSION);            \
  }
  CUDA_FUNCTION(hexp, exp(x))
  CUDA_FUNCTION(hexp2, exp2(x))
  CUDA_FUNCTION(hexp10, pow(10.0, x))
  CUDA_FUNCTION(hlog, log(x))
  CUDA_FUNCTION(hlog2, log2(x))
  CUDA_FUNCTION(hlog10, log10(x))
  CUDA_FUNCTION(hsqrt, sqrt(x))
  CUDA_FUNCTION(hrsqrt, 1 / sqrt(x))
  CUDA_FUNCTION(hrcp, 1 / x)
  CUDA_FUNCTION(hsin, sin(x))
  CUDA_FUNCTION(hcos, cos(x))
  CUDA_FUNCTION(htanh, tanh(x))
  CUDA_FUNCTION(hfloor, floor(x))
  CUDA_FUNCTION(hceil, ceil(x))
  CUDA_FUNCTION(htrunc, trunc(x))
  CUDA_FUNCTION(hrint, nearbyint(x))
#undef CUDA_FUNCTION
};

template <class F>
struct alignas(4) Short2 {
  Short<F> x, y;
  Short2() = default;
  Short2(Short<F> x, Short<F> y) : x(x), y(y) {}
#define CUDA_PAIR(NAME, OP)                                                                    \
  friend Short2 NAME(Short2 a, Short2 b) { return {NAME(a.x, b.x), NAME(a.y, b.y)}; }          \
  friend Short2 operator OP(Short2 a, Short2 b) { return NAME(a, b); }                         \
  friend Short2& operator OP##=(Short2 & a, Short2 b) { return a = NAME(a, b); }
  CUDA_PAIR(__hadd, +)
  CUDA_PAIR(__hsub, -)
  CUDA_PAIR(__hmul, *)
  CUDA_PAIR(__hdiv, /)
#undef CUDA_PAIR
  friend Short2 __hadd2(Short2 a, Short2 b) { return a + b; }
  friend Short2 __hsub2(Short2 a, Short2 b) { return a - b; }
  friend Short2 __hmul2(Short2 a, Short2 b) { return a * b; }
  friend Short2 __h2div(Short2 a, Short2 b) { return a / b; }
  friend Short2 __hfma2(Short2 a, Short2 b, Short2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
  friend Short2 __hmax2(Short2 a, Short2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
  friend Short2 __hmin2(Short2 a, Short2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
  friend Short2 __hneg2(Short2 a) { return {-a.x, -a.y}; }
  friend Short2 __habs2(Short2 a) { return {__habs(a.x), __habs(a.y)}; }
  friend Short<F> __low2half(Short2 a) { return a.x; }
  friend Short<F> __high2half(Short2 a) { return a.y; }
  friend Short2 __lows2half2(Short2 a, Short2 b) { return {a.x, b.x}; }
  friend Short2 __highs2half2(Short2 a, Short2 b) { return {a.y, b.y}; }
  friend float __low2float(Short2 a) { return a.x.wide(); }
  friend float __high2float(Short2 a) { return a.y.wide(); }
};

}  // namespace cuda_shim

using __half = cuda_shim::Short<cuda_shim::Half>;
using half = __half;
using __half2 = cuda_shim::Short2<cuda_shim::Half>;
using half2 = __half2;
using __nv_bfloat16 = cuda_shim::Short<cuda_shim::Bfloat>;
using nv_bfloat16 = __nv_bfloat16;
using __nv_bfloat162 = cuda_shim::Short2<cuda_shim::Bfloat>;
using nv_bfloat162 = __nv_bfloat162;

#define CUDA_CONVERSIONS(T, T2, A, B, PAIR)                                           \
  inline T __float2##A(float x) { return T(x); }                                      \
  inline T __float2##A##_rn(float x) { return T(x); }                                 \
  inline T __double2##A(double x) { return T(x); }                                    \
  inline float __##B##2float(T x) { return x.wide(); }                                \
  inline T2 __float22##B##2_rn(float2 x) { return {T(x.x), T(x.y)}; }                 \
  inline T2 __floats2##B##2_rn(float x, float y) { return {T(x), T(y)}; }             \
  inline T2 __float2##B##2_rn(float x) { return {T(x), T(x)}; }                       \
  inline float2 __##B##22float2(T2 x) { return {x.x.wide(), x.y.wide()}; }            \
  inline T2 __##B##2##B##2(T x) { return {x, x}; }                                    \
  inline T2 PAIR(T x, T y) { return {x, y}; }                                         \
  inline T2 make_##B##2(T x, T y) { return {x, y}; }                                  \
  inline unsigned short __##B##_as_ushort(T x) { return x.__x; }                      \
  inline short __##B##_as_short(T x) { return short(x.__x); }                         \
  inline T __ushort_as_##B(unsigned short x) { return T::of_bits(x); }                \
  inline T __short_as_##B(short x) { return T::of_bits(x); }                          \
  inline T __int2##B##_rn(int x) { return T(x); }                                     \
  inline T __uint2##B##_rn(unsigned x) { return T(x); }                               \
  inline int __##B##2int_rn(T x) { return int(nearbyintf(x.wide())); }                \
  inline int __##B##2int_rz(T x) { return int(x.wide()); }
CUDA_CONVERSIONS(__half, __half2, half, half, __halves2half2)
CUDA_CONVERSIONS(__nv_bfloat16, __nv_bfloat162, bfloat16, bfloat16, __halves2bfloat162)
#undef CUDA_CONVERSIONS
