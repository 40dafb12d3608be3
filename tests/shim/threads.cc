// Threads of a block as coroutines. A thread runs until it waits or ends; the lanes of a warp run one after the other,
// then what they wait for together is done, until all of them wait at the block's barrier or have ended.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "memory.h"

Thread threads[THREADS];
int thread_count, current;
Three block_at, block_extent, grid_extent;
uint32_t block_number, launch_number;
uint64_t arguments[256];
unsigned argument_count;
bool checking, acting;
char *stacks, *own_stack;
uint32_t now, birth, barrier_time, warp_time[THREADS / 32];
extern "C" {
Fault cuda_fault;
}

extern "C" void cuda_switch(void** from, void* to);
asm(R"(
.text
.type cuda_switch, @function
cuda_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size cuda_switch, .-cuda_switch
)");

namespace {

struct Failed {};
void* scheduler;
bool failed;
int barrier_count;
void (*kernel)(const uint64_t*);

void to_scheduler() { cuda_switch(&threads[current].stack_pointer, scheduler); }

[[noreturn]] void thread_main() {
  kernel(arguments);
  if (const auto& begun = threads[current].products; !begun.empty()) {
    cuda_fault.line = begun[0].line;
    fail("unfinished product", 0, 0, "it ends before a wgmma that it has begun");
  }
  threads[current].state = DONE;
  to_scheduler();
  abort();
}

// The tops of the stacks are staggered: at a distance that is a power of two they would share a few sets of the caches.
void prepare(int i) {
  const uintptr_t top = (uintptr_t)stacks + (i + 1) * STRIDE - (size_t(i) * 1088 & 16383);
  uint64_t* s = (uint64_t*)(top & ~uintptr_t(63));
  *--s = 0;
  *--s = (uint64_t)&thread_main;
  for (int r = 0; r < 6; ++r) *--s = 0;
  Thread& t = threads[i];
  t.stack_pointer = s;
  t.state = READY;
  t.commits = 0;
  t.copies.clear();
  t.fenced = t.product_commits = 0;
  t.products.clear();
}

void resume(int i) {
  current = i;
  own_stack = stacks + i * STRIDE;
  cuda_switch(&scheduler, threads[i].stack_pointer);
  if (failed) throw Failed();
}

uint64_t packed(const Three& t) { return uint64_t(t.z) << 48 | uint64_t(t.y) << 32 | t.x; }

const char* doing(const Thread& t) {
  static char text[2][80];
  static int turn;
  char* out = text[turn ^= 1];
  if (t.state == DONE) return "has ended";
  const char* where = t.state == AT_BARRIER ? "at the barrier of" : "for its warp at";
  snprintf(out, sizeof text[0], "waits %s line %d", where, t.line);
  return out;
}

[[noreturn]] void diverged(int waits, int other) {
  current = waits;
  cuda_fault.line = threads[waits].line;
  const Thread &t = threads[waits], &o = threads[other];
  fail("divergence", 0, 0, "it %s, while thread (%u, %u, %u) %s", doing(t), o.at.x, o.at.y, o.at.z, doing(o));
}

// Whether `o` waits for the same operation of its warp as `t`.
bool together(const Thread& t, const Thread& o) {
  return o.state == AT_WARP && o.line == t.line && o.together == t.together && o.mask == t.mask;
}

// Does what some lanes of the warp wait for together; false where none can go on.
bool act(int first, int last) {
  bool any = false;
  for (int i = first; i < last; ++i) {
    Thread& t = threads[i];
    if (t.state != AT_WARP) continue;
    void* args[32] = {};
    bool all = true;
    unsigned present = 0;
    for (int j = first; j < last; ++j) {
      if (!(t.mask >> (j - first) & 1)) continue;
      const Thread& o = threads[j];
      if (!together(t, o)) {
        all = false;
        break;
      }
      args[j - first] = o.args;
      present |= 1u << (j - first);
    }
    if (!all) continue;
    current = i;
    acting = true;
    t.together(args, present);
    acting = false;
    for (int j = first; j < last; ++j)
      if (present >> (j - first) & 1) threads[j].state = READY;
    any = true;
  }
  return any;
}

void run_warp(int first, int last) {
  for (;;) {
    for (int i = first; i < last; ++i)
      if (threads[i].state == READY) resume(i);
    int waits = -1;
    for (int i = first; i < last && waits < 0; ++i)
      if (threads[i].state == AT_WARP) waits = i;
    if (waits < 0) return;
    if (act(first, last)) continue;
    const Thread& w = threads[waits];
    for (int i = first; i < last; ++i)
      if (w.mask >> (i - first) & 1 && !together(w, threads[i])) diverged(waits, i);
  }
}

void run_block() {
  memory_of_block();
  for (int i = 0; i < thread_count; ++i) prepare(i);
  for (;;) {
    for (int first = 0; first < thread_count; first += 32)
      run_warp(first, first + 32 < thread_count ? first + 32 : thread_count);
    int waits = -1, other = -1;
    barrier_count = 0;
    for (int i = 0; i < thread_count; ++i)
      if (threads[i].state == AT_BARRIER) {
        if (waits < 0) waits = i;
        barrier_count += threads[i].count;
      }
    if (waits < 0) return;
    for (int i = 0; i < thread_count && other < 0; ++i)
      if (threads[i].state != AT_BARRIER || threads[i].line != threads[waits].line) other = i;
    if (other >= 0) diverged(waits, other);
    barrier_time = ++now;
    for (int i = 0; i < thread_count; ++i) threads[i].state = READY;
  }
}

}  // namespace

void fail(const char* kind, uint64_t address, uint64_t pc, const char* format, ...) {
  cuda_fault.kind = kind;
  cuda_fault.block = block_at;
  cuda_fault.thread = threads[current].at;
  cuda_fault.address = address;
  cuda_fault.pc = pc;
  if (!cuda_fault.line && threads[current].state != READY) cuda_fault.line = threads[current].line;
  va_list list;
  va_start(list, format);
  vsnprintf(cuda_fault.text, sizeof cuda_fault.text, format, list);
  va_end(list);
  failed = true;
  if (acting || threads[current].state != READY) throw Failed();
  to_scheduler();
  abort();
}

extern "C" {

uint64_t cuda_thread_index() { return packed(threads[current].at); }
uint64_t cuda_block_index() { return packed(block_at); }
uint64_t cuda_block_extent() { return packed(block_extent); }
uint64_t cuda_grid_extent() { return packed(grid_extent); }
unsigned cuda_lane() { return current & 31; }

int cuda_barrier(int line, int count) {
  Thread& t = threads[current];
  t.state = AT_BARRIER;
  t.line = line;
  t.count = count;
  to_scheduler();
  return barrier_count;
}

// Waits at `line` for the lanes of `mask`, which then act together.
void cuda_together(int line, unsigned mask, Together together, void* args) {
  Thread& t = threads[current];
  if (!(mask >> (current & 31) & 1)) {
    cuda_fault.line = line;
    fail("divergence", 0, 0, "it takes part in an operation of a warp whose mask %08x leaves it out", mask);
  }
  t.state = AT_WARP;
  t.line = line;
  t.mask = mask;
  t.together = together;
  t.args = args;
  to_scheduler();
}

unsigned cuda_active_mask() {
  const int first = current & ~31;
  unsigned mask = 0;
  for (int i = first; i < first + 32 && i < thread_count; ++i)
    if (threads[i].state != DONE) mask |= 1u << (i - first);
  return mask;
}

void cuda_trap(int line) {
  cuda_fault.line = line;
  fail("trap", 0, 0, "it executed a trap");
}

// Runs one launch, blocks in the order of their numbers. 0, or 1 where `cuda_fault` says what went wrong.
int cuda_launch(void (*call)(const uint64_t*), const uint64_t* args, unsigned count, const unsigned* grid,
                const unsigned* block, unsigned shared, int checks) {
  if (!stacks) {
    stacks = reserve(THREADS * STRIDE);
    for (int i = 0; i < THREADS; ++i) mprotect(stacks + i * STRIDE, GUARD, PROT_NONE);
  }
  cuda_fault = Fault();
  failed = acting = false;
  kernel = call;
  argument_count = count;
  memcpy(arguments, args, count * sizeof *args);
  checking = checks;
  grid_extent = {grid[0], grid[1], grid[2]};
  block_extent = {block[0], block[1], block[2]};
  current = 0;
  thread_count = block[0] * block[1] * block[2];
  for (int i = 0; i < thread_count; ++i)
    threads[i].at = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
  try {
    acting = true;
    memory_of_launch(shared);
    acting = false;
    block_number = 0;
    for (unsigned z = 0; z < grid[2]; ++z)
      for (unsigned y = 0; y < grid[1]; ++y)
        for (unsigned x = 0; x < grid[0]; ++x, ++block_number) {
          block_at = {x, y, z};
          run_block();
        }
  } catch (Failed&) {
    acting = false;
    return 1;
  }
  return 0;
}

}  // extern "C"
