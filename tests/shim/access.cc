// Every access: what g++ calls before it, and which memory it is in.
#include <emmintrin.h>
#include <stdio.h>
#include <string.h>

#include "memory.h"

#define PC (uint64_t)__builtin_return_address(0)

namespace {

uintptr_t image_begin, image_end;

bool all_are(const uint32_t* four, uint32_t value) {
  const __m128i same = _mm_cmpeq_epi32(_mm_loadu_si128((const __m128i*)four), _mm_set1_epi32(int(value)));
  return _mm_movemask_epi8(same) == 0xffff;
}

// The accesses beyond a thread's own stack that are most frequent and change no cell: true where this is one.
template <unsigned N, How HOW>
inline bool is_plain(uintptr_t a) {
  if (N < 4 || HOW != READ) return false;
  if (const uintptr_t at = a - (uintptr_t)shared; at < SHARED) {
    const uint8_t owner = shared_owner[at / 16];
    if (!owner || a < arrays[owner].begin || a + N > arrays[owner].end) return false;
    for (unsigned i = 0; i < N; i += 4) {
      const uint32_t w = wrote[at + i], r = has_read[at + i];
      const bool ordered = (w >> 11) - birth < barrier_time - birth && (w & 2047) != PENDING;
      const uint32_t who = r & 2047, warp = uint32_t(current) / 32;
      const bool known = r >> 11 >= barrier_time && (who == WHOLE_BLOCK || who == uint32_t(current) ||
                                                     (who == WARPS + warp && r >> 11 >= warp_time[warp]));
      if (!ordered || !known || !all_are(wrote + at + i, w) || !all_are(has_read + at + i, r)) return false;
    }
    return true;
  }
  const uintptr_t at = a - (uintptr_t)device;
  if (at >= DEVICE) return false;
  const Allocation& in = allocations[device_owner[at / ZONE]];
  if (in.freed || a + N > in.end) return false;
  for (unsigned i = 0; i < N; i += 4) {
    const uint32_t c = device_cells[at + i];
    if ((c != read_by_one && c != read_by_several) || !all_are(device_cells + at + i, c)) return false;
  }
  return true;
}

template <unsigned N, How HOW>
__attribute__((noinline)) void beyond(uintptr_t a, uint64_t pc) {
  if (!is_plain<N, HOW>(a)) check(a, N, HOW, pc);
}

// A function of its own for all but the stack, so that the way out of the hooks is short.
template <unsigned N, How HOW>
inline __attribute__((always_inline)) void access(uintptr_t a, uint64_t pc) {
  if (a - (uintptr_t)own_stack >= STRIDE) beyond<N, HOW>(a, pc);
}

}  // namespace

const char* place(uintptr_t a) {
  static char text[64];
  if (in_shared(a)) return place_in_shared(a);
  if (in_device(a)) return place_in_device(a);
  snprintf(text, sizeof text, "0x%lx, which is no memory of the device", long(a));
  return text;
}

void check(uintptr_t a, unsigned n, How how, uint64_t pc) {
  if (a - (uintptr_t)stacks < THREADS * STRIDE) {
    if (a - (uintptr_t)own_stack >= STRIDE && !acting)
      fail("out of bounds", a, pc, "it %s %u bytes of the local memory of another thread",
           how == READ ? "reads" : "writes", n);
  } else if (in_shared(a)) {
    shared_access(a, n, how, pc, current);
  } else if (in_device(a)) {
    device_access(a, n, how, pc);
  } else if (a - image_begin >= image_end - image_begin && a - (uintptr_t)arguments >= sizeof arguments) {
    fail("out of bounds", a, pc, "it %s %u bytes at %s", how == READ ? "reads" : "writes", n, place(a));
  }
}

void check_warp_read(uintptr_t a, unsigned n) {
  if (checking) shared_access(a, n, READ, 0, WARPS + current / 32);
  else shared_bounds(a, n, READ, 0);
}

void memory_of_launch(unsigned dynamic_shared) {
  device_of_launch();
  shared_of_launch(dynamic_shared);
}

void memory_of_block() {
  device_of_block();
  shared_of_block();
}

extern "C" {

void cuda_image(uintptr_t begin, uintptr_t end) { image_begin = begin, image_end = end; }

void cuda_load(void* to, const void* from, unsigned n) {
  const uintptr_t a = (uintptr_t)from;
  if (a % n) fail("misaligned", a, PC, "it reads %u bytes at once at %s", n, place(a));
  if (checking) check(a, n, READ, PC);
  memcpy(to, from, n);
}

void cuda_store(void* to, const void* from, unsigned n) {
  const uintptr_t a = (uintptr_t)to;
  if (a % n) fail("misaligned", a, PC, "it writes %u bytes at once at %s", n, place(a));
  if (checking) check(a, n, WRITE, PC);
  memcpy(to, from, n);
}

uint64_t cuda_atomic_load(const void* from, unsigned n) {
  if (checking) check((uintptr_t)from, n, ATOMIC, PC);
  uint64_t bits = 0;
  memcpy(&bits, from, n);
  return bits;
}

void cuda_atomic_store(void* to, uint64_t bits, unsigned n) { memcpy(to, &bits, n); }

// What g++ calls before every access (-fsanitize=thread), and where it sees a fault (-fsanitize=undefined).

#define HOOK(NAME, N, HOW) \
  void __tsan_##NAME##N(void* p) { access<N, HOW>((uintptr_t)p, PC); }
#define HOOKS(N)                      \
  HOOK(read, N, READ)                 \
  HOOK(write, N, WRITE)               \
  HOOK(unaligned_read, N, READ)       \
  HOOK(unaligned_write, N, WRITE)     \
  HOOK(volatile_read, N, READ)        \
  HOOK(volatile_write, N, WRITE)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t n) { check((uintptr_t)p, n, READ, PC); }
void __tsan_write_range(void* p, size_t n) { check((uintptr_t)p, n, WRITE, PC); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

void cuda_bad_index(int outside, long index, unsigned bytes, unsigned count) {
  fail(outside ? "out of bounds" : "misaligned", 0, PC, "it uses %u bytes from element %ld of a local array of %u", bytes,
       index, count);
}

void __ubsan_handle_type_mismatch_v1(const void* data, uintptr_t a) {
  const uint8_t log = *((const uint8_t*)data + 24);
  cuda_fault.line = *((const int*)data + 2);
  const uintptr_t n = uintptr_t(1) << log;
  fail("misaligned", a, PC, "it uses %s as a type that is aligned to %lu bytes", place(a), (unsigned long)n);
}
void __ubsan_handle_out_of_bounds(const void* data, uintptr_t index) {
  const char* type = *((const char* const*)data + 2);  // after file, line and column: kind and info, then the name
  cuda_fault.line = *((const int*)data + 2);
  fail("out of bounds", 0, PC, "index %ld of an array %s", long(index), type + 4);
}

}  // extern "C"
