// Shared memory: its arrays, the races within a block, and copies into it that are under way.
#include <stdio.h>
#include <string.h>

#include "memory.h"

char* shared;
uint32_t wrote[SHARED], has_read[SHARED];
uint8_t shared_owner[SHARED / 16];
Array arrays[256];

namespace {

int array_count, dynamic_array;
unsigned dynamic_bytes;
uintptr_t shared_top;
unsigned shared_used;

// The array of a declaration, if this launch has made it.
struct Slot {
  uint64_t launch;
  void* array;
};
uint64_t launches;
Slot slots[1 << 14];


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
    fail("unfinished copy", a, pc, "it %s %s, to which a cp.async is under way", how == READ ? "reads" : "writes",
         place(a));
  if (how == READ) {
    if (w >> 11 < birth)
      fail("uninitialised", a, pc, "it reads %s, which no thread of the block has written", place(a));
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

}  // namespace

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

const char* place_in_shared(uintptr_t a) {
  static char text[160];
  const Array* found = nullptr;
  for (int i = 1; i <= array_count; ++i)
    if (arrays[i].begin <= a) found = &arrays[i];
  if (!found) return "shared memory below all arrays";
  snprintf(text, sizeof text, "byte %ld of the shared array %s of %ld bytes", long(a - found->begin), found->name,
           long(found->end - found->begin));
  return text;
}

void shared_of_launch(unsigned bytes) {
  if (!shared) shared = reserve(SHARED);
  ++launches;
  memset(shared_owner, 0, sizeof shared_owner);
  array_count = dynamic_array = 0;
  shared_used = 0;
  shared_top = (uintptr_t)shared + 1024;
  dynamic_bytes = bytes;
}

void shared_of_block() {
  if (now > (1 << 20)) {  // a time has 21 bits
    memset(wrote, 0, sizeof wrote);
    memset(has_read, 0, sizeof has_read);
    now = 0;
  }
  birth = barrier_time = ++now;
  for (uint32_t& t : warp_time) t = now;
  for (int i = 1; i <= array_count; ++i) memset((void*)arrays[i].begin, 0xff, arrays[i].end - arrays[i].begin);
}

extern "C" {

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
  if (!in_shared(a))
    fail("out of bounds", a, (uint64_t)__builtin_return_address(0), "%s is not in shared memory", place(a));
  return a - (uintptr_t)shared;
}

void* cuda_from_shared(unsigned a) { return (void*)((uintptr_t)shared + a); }

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

}  // extern "C"
