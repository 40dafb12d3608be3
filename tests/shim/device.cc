// Device memory: allocations, and the races between the blocks of a launch.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "memory.h"

char* device;
uint32_t *device_cells, *device_owner;
std::vector<Allocation> allocations(1);
uint32_t read_by_one, read_by_several;

char* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    perror("the shim's memory");
    abort();
  }
  return (char*)p;
}

namespace {

uintptr_t device_top;
enum Was { WAS_READ = 1, WAS_WRITTEN = 2, WAS_ATOMIC = 3 };
uint32_t device_cell(uint32_t was, uint32_t block) { return was << 30 | launch_number << 20 | block; }

void begin() {
  device = reserve(DEVICE);
  device_cells = (uint32_t*)reserve(DEVICE * 4);
  device_owner = (uint32_t*)reserve(DEVICE / ZONE * 4);
  device_top = (uintptr_t)device + ZONE;
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

uint32_t device_step(uint32_t cell, How how, uintptr_t a, uint64_t pc) {
  const uint32_t mine = block_number % SEVERAL, who = cell & SEVERAL, was = cell >> 30;
  const bool fresh = cell && (cell >> 20 & 1023) == launch_number;
  const bool alone = !fresh || who == mine;
  if (how == READ) {
    if (!fresh) return device_cell(WAS_READ, mine);
    if (was == WAS_READ) return alone ? cell : device_cell(WAS_READ, SEVERAL);
    if (alone) return cell;
  } else if (how == WRITE) {
    if (alone) return device_cell(WAS_WRITTEN, mine);
  } else {
    if (!fresh) return device_cell(WAS_ATOMIC, mine);
    if (was == WAS_ATOMIC) return alone ? cell : device_cell(WAS_ATOMIC, SEVERAL);
    if (alone) return was == WAS_WRITTEN ? cell : device_cell(WAS_ATOMIC, mine);
  }
  static const char* const verbs[] = {"reads", "writes", "updates"};
  static const char* const did[] = {"", "read", "wrote", "updated"};
  char other[80] = "other blocks";
  if (who != SEVERAL)
    snprintf(other, sizeof other, "block (%u, %u, %u)", who % grid_extent.x, who / grid_extent.x % grid_extent.y,
             who / grid_extent.x / grid_extent.y);
  fail("race between blocks", a, pc, "it %s %s, which %s %s in the same launch", verbs[how], place(a), other, did[was]);
}

}  // namespace

void device_access(uintptr_t a, unsigned n, How how, uint64_t pc) {
  const uint32_t owner = device_owner[(a - (uintptr_t)device) / ZONE];
  const Allocation& in = allocations[owner];
  if (!owner || a + n > in.end)
    fail("out of bounds", a, pc, "it %s %u bytes at %s", how == READ ? "reads" : "writes", n, place(a));
  if (in.freed)
    fail("out of bounds", a, pc, "it %s %u bytes of memory that has been freed", how == READ ? "reads" : "writes", n);
  uint32_t* c = device_cells + (a - (uintptr_t)device);
  while (n) {
    if (n >= 4) {
      uint64_t low, high;
      memcpy(&low, c, 8);
      memcpy(&high, c + 2, 8);
      if (low == high && uint32_t(low) == low >> 32) {
        const uint32_t next = device_step(c[0], how, a, pc);
        if (next != c[0]) c[0] = c[1] = c[2] = c[3] = next;
        c += 4, a += 4, n -= 4;
        continue;
      }
    }
    *c = device_step(*c, how, a, pc);
    ++c, ++a, --n;
  }
}

const char* place_in_device(uintptr_t a) {
  static char text[256];
  const Allocation* found = near(a);
  if (!found) return "an empty device";
  int n = snprintf(text, sizeof text, "byte %ld of an allocation of %ld bytes",
                   long(a - found->begin), long(found->end - found->begin));
  for (unsigned i = 0; i < argument_count; ++i)
    if (found->begin <= arguments[i] && arguments[i] < found->end && n < 200)
      n += snprintf(text + n, sizeof text - n, ", argument %u", i);
  return text;
}

void device_of_launch() {
  if (!device) begin();
  // The number in a cell has 10 bits; 0 is left out, so that a cell of no launch is 0.
  if (++launch_number > 1023) {
    launch_number = 1;
    madvise(device_cells, (device_top - (uintptr_t)device) * 4, MADV_DONTNEED);
  }
}

void device_of_block() {
  read_by_one = device_cell(WAS_READ, block_number % SEVERAL);
  read_by_several = device_cell(WAS_READ, SEVERAL);
}

extern "C" {

// `bytes` of device memory, aligned to 256 and filled with 0xff: NaN in every floating type. 0 where there is no more.
uintptr_t cuda_allocate(size_t bytes) {
  if (!device) begin();
  const uintptr_t begin = device_top, top = (begin + bytes + 2 * ZONE - 1) / ZONE * ZONE;
  if (top > (uintptr_t)device + DEVICE) return 0;
  allocations.push_back({begin, begin + bytes, false});
  for (uintptr_t a = begin; a < begin + (bytes ? bytes : 1); a += ZONE)
    device_owner[(a - (uintptr_t)device) / ZONE] = allocations.size() - 1;
  memset((void*)begin, 0xff, bytes);
  device_top = top;
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
      madvise(device_cells + (first - (uintptr_t)device), (last - first) * 4, MADV_DONTNEED);
    }
    return 0;
  }
  return 1;
}

// Whether [a, a + bytes) lies in one live allocation.
int cuda_holds(uintptr_t a, size_t bytes) {
  if (!device || a - (uintptr_t)device >= DEVICE) return 0;
  const Allocation& in = allocations[device_owner[(a - (uintptr_t)device) / ZONE]];
  return !in.freed && in.begin <= a && a + bytes <= in.end;
}

}  // extern "C"
