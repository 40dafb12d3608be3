// Memory of the device and of a block, and the check of every access.
//
// Device memory is one reserved range; each allocation is followed by a red zone. Each byte has a cell that says which
// block of which launch read or wrote it last. Shared memory is a second range with two cells a byte: who wrote it last
// and who has read it since, each a thread and a time.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <emmintrin.h>

#include "run.h"

namespace {

constexpr unsigned ZONE = 256;

// ---- device memory

struct Allocation {
  uintptr_t begin, end;
  bool freed;
};
char* global;
uint32_t *global_cells, *global_owner;  // a cell a byte; the allocation, from 1, of each 256 bytes
std::vector<Allocation> allocations(1);
uintptr_t global_top;

// A cell of device memory: 2 bits of what, 10 of the launch, 20 of the block, or SEVERAL.
constexpr uint32_t SEVERAL = 0xfffff;
enum Was { WAS_READ = 1, WAS_WRITTEN = 2, WAS_ATOMIC = 3 };
uint32_t read_by_one, read_by_several;  // of this block and launch
uint32_t global_cell(uint32_t was, uint32_t block) { return was << 30 | launch_number << 20 | block; }

template <class T>
T* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    perror("the shim's device memory");
    abort();
  }
  return (T*)p;
}

// The live allocation that is nearest to an address.
const Allocation* near(uintptr_t a) {
  const Allocation* found = nullptr;
  uintptr_t least = ~uintptr_t(0);
  for (const Allocation& each : allocations) {
    const uintptr_t distance = a < each.begin ? each.begin - a : a < each.end ? 0 : a - each.end + 1;
    if (!each.freed && each.begin && distance < least) found = &each, least = distance;
  }
  return found;
}

uint32_t global_step(uint32_t cell, How how, uintptr_t a, uint64_t pc) {
  const uint32_t mine = block_number % SEVERAL, who = cell & SEVERAL, was = cell >> 30;
  const bool fresh = cell && (cell >> 20 & 1023) == launch_number;
  const bool alone = !fresh || who == mine;
  if (how == READ) {
    if (!fresh) return global_cell(WAS_READ, mine);
    if (was == WAS_READ) return alone ? cell : global_cell(WAS_READ, SEVERAL);
    if (alone) return cell;
  } else if (how == WRITE) {
    if (alone) return global_cell(WAS_WRITTEN, mine);
  } else {
    if (!fresh) return global_cell(WAS_ATOMIC, mine);
    if (was == WAS_ATOMIC) return alone ? cell : global_cell(WAS_ATOMIC, SEVERAL);
    if (alone) return was == WAS_WRITTEN ? cell : global_cell(WAS_ATOMIC, mine);
  }
  static const char* const verbs[] = {"reads", "writes", "updates"};
  static const char* const did[] = {"", "read", "wrote", "updated"};
  char other[80] = "other blocks";
  if (who != SEVERAL)
    snprintf(other, sizeof other, "block (%u, %u, %u)", who % grid_extent.x, who / grid_extent.x % grid_extent.y,
             who / grid_extent.x / grid_extent.y);
  fail("race between blocks", a, pc, "it %s %s, which %s %s in the same launch", verbs[how], place(a), other, did[was]);
}

void global_access(uintptr_t a, unsigned n, How how, uint64_t pc) {
  const uint32_t owner = global_owner[(a - (uintptr_t)global) / ZONE];
  const Allocation& in = allocations[owner];
  if (!owner || a + n > in.end)
    fail("out of bounds", a, pc, "it %s %u bytes at %s", how == READ ? "reads" : "writes", n, place(a));
  if (in.freed) fail("out of bounds", a, pc, "it %s %u bytes at %s, which has been freed", how == READ ? "reads" : "writes", n, place(a));
  uint32_t* c = global_cells + (a - (uintptr_t)global);
  while (n) {
    if (n >= 4) {
      uint64_t low, high;
      memcpy(&low, c, 8);
      memcpy(&high, c + 2, 8);
      if (low == high && uint32_t(low) == low >> 32) {
        const uint32_t next = global_step(c[0], how, a, pc);
        if (next != c[0]) c[0] = c[1] = c[2] = c[3] = next;
        c += 4, a += 4, n -= 4;
        continue;
      }
    }
    *c = global_step(*c, how, a, pc);
    ++c, ++a, --n;
  }
}

// ---- shared memory

struct Array {
  uintptr_t begin, end;
  char name[64];
};
char* shared;
uint32_t wrote[SHARED], has_read[SHARED];  // time << 11 | who
uint8_t shared_owner[SHARED / 16];
Array arrays[256];
int array_count, dynamic_array;
unsigned dynamic_bytes;
uintptr_t shared_top;
unsigned shared_used;
struct Slot {
  uint64_t launch;
  void* array;
};
uint64_t launches;
Slot slots[1 << 14];

// Who: a thread, a whole warp from 1024, or one of these.
constexpr uint32_t ATOMICALLY = 2045, PENDING = 2046, WHOLE_BLOCK = 2047, WARPS = 1024;
uint32_t warp_of(uint32_t who) { return who < WARPS ? who >> 5 : who < WARPS + 32 ? who - WARPS : 64; }

bool clashes(uint32_t cell, uint32_t me) {
  const uint32_t time = cell >> 11, who = cell & 2047;
  if (time < barrier_time || who == me) return false;
  const uint32_t warp = warp_of(me);
  return !(warp_of(who) == warp && time < warp_time[warp]);
}

const char* name_of(uint32_t who) {
  static char text[64];
  if (who < WARPS) {
    const Three& t = threads[who].at;
    snprintf(text, sizeof text, "thread (%u, %u, %u)", t.x, t.y, t.z);
  } else if (who < WARPS + 32) {
    snprintf(text, sizeof text, "several threads of warp %u", who - WARPS);
  } else {
    snprintf(text, sizeof text, who == ATOMICALLY ? "an atomic operation" : "several threads");
  }
  return text;
}

// One access of `me` to bytes that share the cells `w` and `r`, which are brought up to date.
void shared_step(uint32_t& w, uint32_t& r, uint32_t me, How how, uintptr_t a, uint64_t pc) {
  if (w >> 11 >= birth && (w & 2047) == PENDING)
    fail("unfinished copy", a, pc, "it %s %s, to which a cp.async is under way", how == READ ? "reads" : "writes", place(a));
  if (how == READ) {
    if (w >> 11 < birth) fail("uninitialised", a, pc, "it reads %s, which no thread of the block has written", place(a));
    if (clashes(w, me))
      fail("race", a, pc, "it reads %s, which %s wrote with no barrier between", place(a), name_of(w & 2047));
    if (!clashes(r, me)) r = now << 11 | me;
    else if (warp_of(r & 2047) == warp_of(me)) r = now << 11 | (WARPS + warp_of(me));
    else if ((r & 2047) != WHOLE_BLOCK) r = now << 11 | WHOLE_BLOCK;
    return;
  }
  if (how == ATOMIC && w >> 11 < birth)
    fail("uninitialised", a, pc, "it updates %s, which no thread of the block has written", place(a));
  if (clashes(w, how == ATOMIC ? ATOMICALLY : me) && (how == WRITE || (w & 2047) != (me & 2047)))
    fail("race", a, pc, "it writes %s, which %s wrote with no barrier between", place(a), name_of(w & 2047));
  if (clashes(r, me))
    fail("race", a, pc, "it writes %s, which %s read with no barrier between", place(a), name_of(r & 2047));
  w = now << 11 | (how == ATOMIC ? ATOMICALLY : me);
}

void shared_bounds(uintptr_t a, unsigned n, How how, uint64_t pc) {
  const uint8_t owner = shared_owner[(a - (uintptr_t)shared) / 16];
  if (!owner || a < arrays[owner].begin || a + n > arrays[owner].end)
    fail("out of bounds", a, pc, "it %s %u bytes at %s", how == READ ? "reads" : "writes", n, place(a));
}

void shared_access(uintptr_t a, unsigned n, How how, uint64_t pc, uint32_t me) {
  shared_bounds(a, n, how, pc);
  uint32_t *w = wrote + (a - (uintptr_t)shared), *r = has_read + (a - (uintptr_t)shared);
  while (n) {
    if (n >= 4) {
      uint64_t x, y, p, q;
      memcpy(&x, w, 8);
      memcpy(&y, w + 2, 8);
      memcpy(&p, r, 8);
      memcpy(&q, r + 2, 8);
      if (x == y && uint32_t(x) == x >> 32 && p == q && uint32_t(p) == p >> 32) {
        shared_step(*w, *r, me, how, a, pc);
        w[1] = w[2] = w[3] = w[0];
        r[1] = r[2] = r[3] = r[0];
        w += 4, r += 4, a += 4, n -= 4;
        continue;
      }
    }
    shared_step(*w, *r, me, how, a, pc);
    ++w, ++r, ++a, --n;
  }
}

int new_array(const char* name, size_t bytes, size_t alignment) {
  // Aligned as was asked and not better, so that no access works by luck.
  const uintptr_t begin = (shared_top + 2 * alignment - 1) / (2 * alignment) * 2 * alignment + alignment;
  shared_used += (bytes + 15) / 16 * 16;
  if (shared_used > 232448 || begin + bytes + ZONE > (uintptr_t)shared + SHARED || array_count >= 255)
    fail("launch", 0, 0, "%u bytes of shared memory are more than a block can have", shared_used);
  Array& made = arrays[++array_count];
  made.begin = begin;
  made.end = begin + bytes;
  snprintf(made.name, sizeof made.name, "%s", name);
  for (uintptr_t g = begin / 16; g <= (made.end - 1) / 16; ++g) shared_owner[g - (uintptr_t)shared / 16] = array_count;
  shared_top = made.end + ZONE;
  memset((void*)begin, 0xff, bytes);
  return array_count;
}

uintptr_t image_begin, image_end;

}  // namespace

bool in_shared(uintptr_t a) { return a - (uintptr_t)shared < SHARED; }
unsigned shared_bytes() { return shared_used; }

const char* place(uintptr_t a) {
  static char text[256];
  if (in_shared(a)) {
    const Array* found = nullptr;
    for (int i = 1; i <= array_count; ++i)
      if (arrays[i].begin <= a) found = &arrays[i];
    if (found)
      snprintf(text, sizeof text, "byte %ld of the shared array %s of %ld bytes", long(a - found->begin), found->name,
               long(found->end - found->begin));
    else
      snprintf(text, sizeof text, "shared memory below all arrays");
    return text;
  }
  const bool device = global && a - (uintptr_t)global < GLOBAL;
  const Allocation* found = device ? near(a) : nullptr;
  if (!found) {
    snprintf(text, sizeof text, "0x%lx, which is no memory of the device", long(a));
    return text;
  }
  int n = snprintf(text, sizeof text, "byte %ld of an allocation of %ld bytes", long(a - found->begin), long(found->end - found->begin));
  for (unsigned i = 0; i < argument_count; ++i)
    if (found->begin <= arguments[i] && arguments[i] < found->end && n < 200)
      n += snprintf(text + n, sizeof text - n, ", argument %u", i);
  return text;
}

void check(uintptr_t a, unsigned n, How how, uint64_t pc) {
  if (a - (uintptr_t)stacks < THREADS * STRIDE) {
    if (a - (uintptr_t)own_stack >= STRIDE && !acting)
      fail("out of bounds", a, pc, "it %s %u bytes of the local memory of another thread", how == READ ? "reads" : "writes", n);
  } else if (in_shared(a)) {
    shared_access(a, n, how, pc, current);
  } else if (a - (uintptr_t)global < GLOBAL) {
    global_access(a, n, how, pc);
  } else if (a - image_begin >= image_end - image_begin && a - (uintptr_t)arguments >= sizeof arguments) {
    fail("out of bounds", a, pc, "it %s %u bytes at %s", how == READ ? "reads" : "writes", n, place(a));
  }
}

namespace {

bool all_are(const uint32_t* four, uint32_t value) {
  const __m128i same = _mm_cmpeq_epi32(_mm_loadu_si128((const __m128i*)four), _mm_set1_epi32(int(value)));
  return _mm_movemask_epi8(same) == 0xffff;
}

// The accesses that are most frequent and change no cell: true where this is one.
template <unsigned N, How HOW>
inline bool is_plain(uintptr_t a) {
  if (a - (uintptr_t)own_stack < STRIDE) return true;
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
  const uintptr_t at = a - (uintptr_t)global;
  if (at >= GLOBAL) return false;
  const Allocation& in = allocations[global_owner[at / ZONE]];
  if (in.freed || a + N > in.end) return false;
  for (unsigned i = 0; i < N; i += 4) {
    const uint32_t c = global_cells[at + i];
    if ((c != read_by_one && c != read_by_several) || !all_are(global_cells + at + i, c)) return false;
  }
  return true;
}

template <unsigned N, How HOW>
inline __attribute__((always_inline)) void access(uintptr_t a, uint64_t pc) {
  if (__builtin_expect(!is_plain<N, HOW>(a), 0)) check(a, N, HOW, pc);
}

}  // namespace

void check_warp_read(uintptr_t a, unsigned n) {
  if (checking) shared_access(a, n, READ, 0, WARPS + current / 32);
  else shared_bounds(a, n, READ, 0);
}

void memory_of_launch(unsigned dynamic_shared) {
  if (!shared) shared = reserve<char>(SHARED);
  if (!global) {
    global = reserve<char>(GLOBAL);
    global_cells = reserve<uint32_t>(GLOBAL * 4);
    global_owner = reserve<uint32_t>(GLOBAL / ZONE * 4);
    global_top = (uintptr_t)global + ZONE;
  }
  // The number in a cell has 10 bits; 0 is left out, so that a cell of no launch is 0.
  if (++launch_number > 1023) {
    launch_number = 1;
    madvise(global_cells, (global_top - (uintptr_t)global) * 4, MADV_DONTNEED);
  }
  ++launches;
  memset(shared_owner, 0, sizeof shared_owner);
  array_count = dynamic_array = 0;
  shared_used = 0;
  shared_top = (uintptr_t)shared + 1024;
  dynamic_bytes = dynamic_shared;
}

void memory_of_block() {
  if (now > (1 << 20)) {  // a time has 21 bits
    memset(wrote, 0, sizeof wrote);
    memset(has_read, 0, sizeof has_read);
    now = 0;
  }
  read_by_one = global_cell(WAS_READ, block_number % SEVERAL);
  read_by_several = global_cell(WAS_READ, SEVERAL);
  birth = barrier_time = ++now;
  for (uint32_t& t : warp_time) t = now;
  for (int i = 1; i <= array_count; ++i) memset((void*)arrays[i].begin, 0xff, arrays[i].end - arrays[i].begin);
}

extern "C" {

void cuda_image(uintptr_t begin, uintptr_t end) { image_begin = begin, image_end = end; }

// `bytes` of device memory, aligned to 256 and filled with 0xff: NaN in every floating type. 0 where there is no more.
uintptr_t cuda_allocate(size_t bytes) {
  if (!global) memory_of_launch(0);
  const uintptr_t begin = global_top, top = (begin + bytes + 2 * ZONE - 1) / ZONE * ZONE;
  if (top > (uintptr_t)global + GLOBAL) return 0;
  allocations.push_back({begin, begin + bytes, false});
  for (uintptr_t a = begin; a < begin + (bytes ? bytes : 1); a += ZONE)
    global_owner[(a - (uintptr_t)global) / ZONE] = allocations.size() - 1;
  memset((void*)begin, 0xff, bytes);
  global_top = top;
  return begin;
}

// 0, or 1 where no allocation begins there.
int cuda_free(uintptr_t begin) {
  for (size_t i = allocations.size(); i-- > 1;) {
    Allocation& a = allocations[i];
    if (a.begin != begin || a.freed) continue;
    a.freed = true;
    const uintptr_t first = (a.begin + 4095) & ~4095ull, last = a.end & ~4095ull;
    if (first < last) {
      madvise((void*)first, last - first, MADV_DONTNEED);
      madvise(global_cells + (first - (uintptr_t)global), (last - first) * 4, MADV_DONTNEED);
    }
    return 0;
  }
  return 1;
}

// Whether [a, a + bytes) lies in one live allocation.
int cuda_holds(uintptr_t a, size_t bytes) {
  if (!global || a - (uintptr_t)global >= GLOBAL) return 0;
  const Allocation& in = allocations[global_owner[(a - (uintptr_t)global) / ZONE]];
  return !in.freed && in.begin <= a && a + bytes <= in.end;
}

void* cuda_shared_array(int id, const char* name, size_t bytes, size_t alignment) {
  Slot& s = slots[id & ((1 << 14) - 1)];
  if (s.launch != launches) s = {launches, (void*)arrays[new_array(name, bytes, alignment)].begin};
  return s.array;
}

void* cuda_shared_dynamic(const char* name, size_t alignment) {
  if (!dynamic_array) dynamic_array = new_array(name, dynamic_bytes, alignment);
  return (void*)arrays[dynamic_array].begin;
}

unsigned cuda_to_shared(const void* p) {
  const uintptr_t a = (uintptr_t)p;
  if (!in_shared(a)) fail("out of bounds", a, (uint64_t)__builtin_return_address(0), "%s is not in shared memory", place(a));
  return a - (uintptr_t)shared;
}

void* cuda_from_shared(unsigned a) { return (void*)((uintptr_t)shared + a); }

void cuda_load(void* to, const void* from, unsigned n) {
  const uintptr_t a = (uintptr_t)from;
  if (a % n) fail("misaligned", a, (uint64_t)__builtin_return_address(0), "it reads %u bytes at once at %s", n, place(a));
  if (checking) check(a, n, READ, (uint64_t)__builtin_return_address(0));
  memcpy(to, from, n);
}

void cuda_store(void* to, const void* from, unsigned n) {
  const uintptr_t a = (uintptr_t)to;
  if (a % n) fail("misaligned", a, (uint64_t)__builtin_return_address(0), "it writes %u bytes at once at %s", n, place(a));
  if (checking) check(a, n, WRITE, (uint64_t)__builtin_return_address(0));
  memcpy(to, from, n);
}

uint64_t cuda_atomic_load(const void* from, unsigned n) {
  if (checking) check((uintptr_t)from, n, ATOMIC, (uint64_t)__builtin_return_address(0));
  uint64_t bits = 0;
  memcpy(&bits, from, n);
  return bits;
}

void cuda_atomic_store(void* to, uint64_t bits, unsigned n) { memcpy(to, &bits, n); }

void cuda_copy_async(unsigned to, const void* from, unsigned n, unsigned given) {
  const uint64_t pc = (uint64_t)__builtin_return_address(0);
  const uintptr_t a = (uintptr_t)cuda_from_shared(to), b = (uintptr_t)from;
  if (n != 4 && n != 8 && n != 16) fail("misaligned", a, pc, "a cp.async of %u bytes", n);
  if (given > n) fail("out of bounds", b, pc, "a cp.async of %u bytes is to read %u", n, given);
  if (a % n) fail("misaligned", a, pc, "a cp.async of %u bytes to %s", n, place(a));
  if (b % n) fail("misaligned", b, pc, "a cp.async of %u bytes from %s", n, place(b));
  Copy copy = {a, n, threads[current].commits, {}};
  if (checking) {
    if (given) check(b, given, READ, pc);
    shared_access(a, n, WRITE, pc, current);
    for (unsigned i = 0; i < n; ++i) wrote[a - (uintptr_t)shared + i] = now << 11 | PENDING;
  }
  memcpy(copy.data, from, given);
  threads[current].copies.push_back(copy);
}

void cuda_copy_commit() { ++threads[current].commits; }

void cuda_copy_wait(int groups) {
  Thread& t = threads[current];
  const int last = groups < 0 ? t.commits : t.commits - groups - 1;
  size_t kept = 0;
  for (const Copy& c : t.copies) {
    if (c.group > last) {
      t.copies[kept++] = c;
      continue;
    }
    memcpy((void*)c.to, c.data, c.bytes);
    if (checking)
      for (unsigned i = 0; i < c.bytes; ++i) wrote[c.to - (uintptr_t)shared + i] = now << 11 | current;
  }
  t.copies.resize(kept);
}

// ---- what g++ calls: before every access (-fsanitize=thread), and where it sees a fault (-fsanitize=undefined's parts)

#define PC (uint64_t)__builtin_return_address(0)
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

void __ubsan_handle_type_mismatch_v1(const void* data, uintptr_t a) {
  const uint8_t log = *((const uint8_t*)data + 24);
  cuda_fault.line = *((const int*)data + 2);
  const uintptr_t n = uintptr_t(1) << log;
  if (a % n) fail("misaligned", a, PC, "it uses %s as a type that is aligned to %lu bytes", place(a), (unsigned long)n);
  fail("out of bounds", a, PC, "it uses memory beyond the object that it belongs to");
}
void __ubsan_handle_out_of_bounds(const void* data, uintptr_t index) {
  const char* type = *((const char* const*)data + 2);  // after file, line and column: kind and info, then the name
  cuda_fault.line = *((const int*)data + 2);
  fail("out of bounds", 0, PC, "index %ld of an array %s", long(index), type + 4);
}

}  // extern "C"
