// Operations of a warp. Each lane waits with its arguments until all lanes of the mask have come; one call then does
// the work of all. The layouts of fragments are those of the PTX ISA ("Matrix Fragments for mma").
#include "numbers.h"
#include "run.h"

namespace {

constexpr unsigned FULL = 0xffffffffu;

struct Shuffle {
  uint64_t bits;
  int by, width, mode;
  uint64_t result;
};

// A lane whose source is outside its segment keeps its own value; a source that takes no part gives 0xff...
void shuffle(void* const* args, unsigned mask) {
  for (int lane = 0; lane < 32; ++lane) {
    Shuffle* s = (Shuffle*)args[lane];
    if (!s) continue;
    const int start = lane & ~(s->width - 1), end = start + s->width;
    const int sources[] = {start + (s->by & (s->width - 1)), lane - s->by, lane + s->by, lane ^ s->by};
    int from = sources[s->mode];
    if (from < start && s->mode == 1) from = lane;
    if (from >= end) from = lane;
    s->result = mask >> from & 1 ? ((Shuffle*)args[from])->bits : ~0ull;
  }
}

struct Vote {
  int value, operation;
  unsigned result;
};

void ballot(void* const* args, unsigned) {
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (args[lane] && ((Vote*)args[lane])->value) result |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (args[lane]) ((Vote*)args[lane])->result = result;
}

void reduce(void* const* args, unsigned mask) {
  int result = 0;
  const int first = __builtin_ctz(mask);
  for (int lane = first; lane < 32; ++lane) {
    const Vote* v = (Vote*)args[lane];
    if (!v) continue;
    if (lane == first) result = v->value;
    else if (v->operation == 0) result = int(unsigned(result) + unsigned(v->value));
    else if (v->operation == 1 ? v->value > result : v->value < result) result = v->value;
  }
  for (int lane = 0; lane < 32; ++lane)
    if (args[lane]) ((Vote*)args[lane])->result = unsigned(result);
}

// Only this orders the accesses of a warp's lanes, and only where all of them take part.
void order(void* const*, unsigned mask) {
  const int first = current & ~31, lanes = thread_count - first < 32 ? thread_count - first : 32;
  if (mask == (lanes == 32 ? FULL : (1u << lanes) - 1)) warp_time[first / 32] = ++now;
}

void all_lanes(unsigned mask) {
  if (mask != FULL) fail("divergence", 0, 0, "it works on matrices in a warp of which only the lanes %08x exist", mask);
}

struct Matrices {
  unsigned count;
  int transposed;
  unsigned* out;
  unsigned address;
};

void ldmatrix(void* const* args, unsigned mask) {
  all_lanes(mask);
  const Matrices first = *(Matrices*)args[0];
  uint16_t m[4][8][8];
  const int warp = current & ~31;
  for (unsigned row = 0; row < 8 * first.count; ++row) {
    current = warp + row;
    const unsigned address = ((Matrices*)args[row])->address;
    const void* from = cuda_from_shared(address);
    if (address % 16)
      fail("misaligned", (uint64_t)from, 0, "it reads a row of ldmatrix at %s", place((uintptr_t)from));
    check_warp_read((uintptr_t)from, 16);
    memcpy(m[row / 8][row % 8], from, 16);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (unsigned i = 0; i < first.count; ++i) {
      const int r = lane / 4, c = lane % 4 * 2;
      const unsigned low = first.transposed ? m[i][c][r] : m[i][r][c];
      const unsigned high = first.transposed ? m[i][c + 1][r] : m[i][r][c + 1];
      ((Matrices*)args[lane])->out[i] = low | high << 16;
    }
}

struct Mma {
  int m, k, a_type, b_type, d_type, saturate;
  unsigned* d;
  const unsigned *a, *b, *c;
};

// d = a b + c. The sum begins with c and takes the products in the order of k, each step rounded to float32 (the
// hardware's order is not documented); float16 accumulators are rounded once, at the end. Integers are exact.
// `PER` elements of `T` are in a register: of A, register r of lane 4 g + t holds row g + 8 (r % 2) and columns from
// t PER + 4 PER (r / 2), of B column g and the rows that these columns meet.
template <class T, class SUM, T (*ELEMENT)(int, unsigned), int PER>
void multiply(void* const* args) {
  const Mma f = *(Mma*)args[0];
  T a[16][32], b[32][8];
  SUM sum[16][8];
  const int rows = f.m / 8;
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& l = *(Mma*)args[lane];
    const int g = lane / 4, t = lane % 4;
    for (int k = 0; k < f.k / (4 * PER); ++k)
      for (int e = 0; e < PER; ++e) {
        const int column = k * 4 * PER + t * PER + e, shift = e * (32 / PER) % 32;
        for (int r = 0; r < rows; ++r) a[g + 8 * r][column] = ELEMENT(f.a_type, l.a[k * rows + r] >> shift);
        b[column][g] = ELEMENT(f.b_type, l.b[k] >> shift);
      }
    for (int r = 0; r < rows; ++r)
      for (int e = 0; e < 2; ++e) {
        SUM& s = sum[g + 8 * r][2 * t + e];
        if (f.d_type == CUDA_F16) s = SUM(element(CUDA_F16, l.c[r] >> (16 * e)));
        else if (f.d_type == CUDA_F32) s = SUM(__uint_as_float(l.c[2 * r + e]));
        else s = SUM(int(l.c[2 * r + e]));
      }
  }
  for (int i = 0; i < f.m; ++i)
    for (int k = 0; k < f.k; ++k)
      for (int j = 0; j < 8; ++j) sum[i][j] += SUM(a[i][k]) * SUM(b[k][j]);
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& l = *(Mma*)args[lane];
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < rows; ++r) {
      const SUM *s = &sum[g + 8 * r][2 * t];
      if (f.d_type == CUDA_F16) {
        l.d[r] = cuda_shim::Half::round(s[0]) | unsigned(cuda_shim::Half::round(s[1])) << 16;
      } else {
        for (int e = 0; e < 2; ++e)
          l.d[2 * r + e] =
              f.d_type == CUDA_F32 ? __float_as_uint(float(s[e])) : unsigned(to_s32(int64_t(s[e]), f.saturate));
      }
    }
  }
}

void mma(void* const* args, unsigned mask) {
  all_lanes(mask);
  switch (((Mma*)args[0])->a_type) {
    case CUDA_TF32: return multiply<float, float, element, 1>(args);
    case CUDA_F16:
    case CUDA_BF16: return multiply<float, float, element, 2>(args);
    default: return multiply<int, int64_t, integer, 4>(args);
  }
}

}  // namespace

extern "C" {

uint64_t cuda_shuffle(int line, unsigned mask, uint64_t bits, int by, int width, int mode) {
  Shuffle s = {bits, by, width, mode, 0};
  cuda_together(line, mask, shuffle, &s);
  return s.result;
}

unsigned cuda_ballot(int line, unsigned mask, int predicate) {
  Vote v = {predicate, 0, 0};
  cuda_together(line, mask, ballot, &v);
  return v.result;
}

int cuda_reduce(int line, unsigned mask, int value, int operation) {
  Vote v = {value, operation, 0};
  cuda_together(line, mask, reduce, &v);
  return int(v.result);
}

void cuda_warp_barrier(int line, unsigned mask) { cuda_together(line, mask, order, nullptr); }

void cuda_ldmatrix(int line, unsigned count, int transposed, unsigned* out, unsigned address) {
  Matrices m = {count, transposed, out, address};
  cuda_together(line, FULL, ldmatrix, &m);
}

void cuda_mma(int line, int m, int k, int a_type, int b_type, int d_type, int saturate, unsigned* d, const unsigned* a,
              const unsigned* b, const unsigned* c) {
  Mma all = {m, k, a_type, b_type, d_type, saturate, d, a, b, c};
  cuda_together(line, FULL, mma, &all);
}

}  // extern "C"
