// wgmma: products of a warpgroup from shared memory, in the layout without swizzle of matrices whose chunks of 16 bytes
// run along k (PTX ISA, "Shared memory matrix layout"). A product is done when its thread waits for its group, so that
// what overwrites its operands or reads its sums before shows in the numbers.
#include <string.h>

#include "memory.h"
#include "numbers.h"

namespace {

constexpr unsigned FULL = 0xffffffffu, GROUP = 128;

struct Matrix {
  uintptr_t at;
  unsigned next_chunk, next_eight;  // bytes to the second chunk of a row, and to the next 8 rows

  explicit Matrix(uint64_t descriptor) {
    at = (uintptr_t)cuda_from_shared(unsigned(descriptor & 0x3fff) << 4);
    next_chunk = unsigned(descriptor >> 16 & 0x3fff) << 4;
    next_eight = unsigned(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 49) fail("misaligned", at, 0, "a descriptor %016lx asks for a swizzle", long(descriptor));
  }

  // The 32 bytes of a row.
  void read(unsigned row, uint8_t* to) const {
    for (unsigned half = 0; half < 2; ++half) {
      const uintptr_t a = at + row / 8 * next_eight + row % 8 * 16 + half * next_chunk;
      check_warp_read(a, 16);
      if (checking) ordered(a);
      memcpy(to + 16 * half, (const void*)a, 16);
    }
  }

  // What threads wrote must be behind a fence of theirs for the async proxy; its barrier is looked at as for any read.
  static void ordered(uintptr_t a) {
    const uint32_t cell = wrote[a - (uintptr_t)shared], who = cell & 2047;
    if (who >= WARPS || threads[who].fenced >= cell >> 11) return;
    const Three& t = threads[who].at;
    fail("race", a, 0, "it multiplies %s, which thread (%u, %u, %u) wrote with no fence.proxy.async behind", place(a),
         t.x, t.y, t.z);
  }
};

// One product by the 16 rows of the current thread's warp. `T` are k's 32 bytes, `SUM` what they are summed in.
template <class T, class SUM, SUM (*ELEMENT)(int, T)>
void multiply(const Product& first, void* const* args, size_t number) {
  constexpr int K = 32 / sizeof(T);
  const Matrix a(first.a), b(first.b);
  T left[16][K], right[256][K];
  for (unsigned row = 0; row < 16; ++row) a.read(current % GROUP / 32 * 16 + row, (uint8_t*)left[row]);
  for (unsigned column = 0; column < first.n; ++column) b.read(column, (uint8_t*)right[column]);
  for (int lane = 0; lane < 32; ++lane) {
    const Product& p = ((Thread*)args[lane])->products[number];
    for (unsigned i = 0; i < first.n / 2; ++i) {
      const int row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      SUM sum;
      memcpy(&sum, p.sums[i], 4);
      if (!p.add) sum = 0;
      for (int k = 0; k < K; ++k) sum += ELEMENT(p.a_type, left[row][k]) * ELEMENT(p.b_type, right[column][k]);
      memcpy(p.sums[i], &sum, 4);
    }
  }
}

float half(int type, uint16_t bits) { return element(type, bits); }
unsigned byte(int type, uint8_t bits) { return unsigned(integer(type, bits)); }

void finish(void* const* args, unsigned mask) {
  const int warp = current & ~31;
  if (mask != FULL || thread_count % GROUP) fail("divergence", 0, 0, "it multiplies in a warpgroup that is not whole");
  const Thread& first = *(Thread*)args[0];
  size_t done = 0;
  for (; done < first.products.size() && first.products[done].group <= first.last_product; ++done) {
    const Product& p = first.products[done];
    for (int lane = 1; lane < 32; ++lane) {
      const Thread& t = *(Thread*)args[lane];
      if (t.products.size() <= done || t.products[done].a != p.a || t.products[done].b != p.b || t.products[done].n != p.n)
        fail("divergence", 0, 0, "the lanes of its warp multiply different matrices");
    }
    current = warp;
    if (p.a_type == CUDA_S8 || p.a_type == CUDA_U8) multiply<uint8_t, unsigned, byte>(p, args, done);
    else multiply<uint16_t, float, half>(p, args, done);
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto& products = ((Thread*)args[lane])->products;
    products.erase(products.begin(), products.begin() + done);
  }
}

}  // namespace

extern "C" {

void cuda_proxy_fence() { threads[current].fenced = now; }

void cuda_wgmma(int line, unsigned n, int a_type, int b_type, unsigned** sums, uint64_t a, uint64_t b, int add) {
  Thread& t = threads[current];
  cuda_fault.line = line;
  if (checking)
    for (unsigned i = 0; i < n / 2; ++i) check((uintptr_t)sums[i], 4, WRITE, 0);
  cuda_fault.line = 0;
  t.products.push_back({n, a_type, b_type, add, t.product_commits, line, a, b, {sums, sums + n / 2}});
}

void cuda_wgmma_commit() { ++threads[current].product_commits; }

void cuda_wgmma_wait(int line, int groups) {
  Thread& t = threads[current];
  t.last_product = t.product_commits - groups - 1;
  cuda_together(line, FULL, finish, &t);
}

}  // extern "C"
