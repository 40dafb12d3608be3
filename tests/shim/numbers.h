// Elements of matrices as their bits in registers or memory.
#pragma once
#include "shim.h"

inline float element(int type, unsigned bits) {
  if (type == CUDA_F16) return cuda_shim::Half::widen(uint16_t(bits));
  if (type == CUDA_BF16) return cuda_shim::Bfloat::widen(uint16_t(bits));
  return __uint_as_float(bits & ~0x1fffu);  // tf32: the hardware ignores the low 13 bits
}

inline int integer(int type, unsigned bits) { return type == CUDA_S8 ? int8_t(bits) : uint8_t(bits); }

inline int to_s32(int64_t x, int saturate) {
  if (saturate) return int(x < INT32_MIN ? INT32_MIN : x > INT32_MAX ? INT32_MAX : x);
  return int(uint32_t(x));
}
