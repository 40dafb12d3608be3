// What the parts of the shim's run time share: the threads of the block that runs, the clock that orders their
// accesses, and the one fault that ends a launch.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

struct Three {
  unsigned x, y, z;
};

// `pc` is an address in the kernel's code, `line` a line of its text; 0 where they are not known.
struct Fault {
  const char* kind;
  Three block, thread;
  uint64_t address, pc;
  int line;
  char text[600];
};

enum State : uint8_t { READY, AT_BARRIER, AT_WARP, DONE };

// One cp.async that is still under way: its bytes arrive when the thread waits for its group.
struct Copy {
  uintptr_t to;
  unsigned bytes;
  int group;  // the number of commits before it
  uint8_t data[16];
};

// One wgmma that its thread has not waited for: where it adds its sums, and the descriptors of what it multiplies.
struct Product {
  unsigned n;  // columns
  int a_type, b_type, add;
  int group;  // the number of commits before it
  int line;
  uint64_t a, b;
  std::vector<unsigned*> sums;
};

// What the lanes of a warp do together: `args` are theirs, null where a lane is not of the mask.
typedef void (*Together)(void* const* args, unsigned mask);

struct Thread {
  void* stack_pointer;
  State state;
  int line, count;
  unsigned mask;
  Together together;
  void* args;
  Three at;
  int commits;
  std::vector<Copy> copies;
  uint32_t fenced;  // when it last put its writes in order for the async proxy
  int product_commits, last_product;
  std::vector<Product> products;
};

constexpr int THREADS = 1024;
constexpr size_t STACK = 256 << 10, SHARED = 512 << 10, DEVICE = 64ull << 30;

#pragma GCC visibility push(hidden)

extern Thread threads[THREADS];
extern int thread_count, current;  // `current` is the thread that runs, or in whose name a warp acts
extern Three block_at, block_extent, grid_extent;
extern uint32_t block_number, launch_number;
extern uint64_t arguments[256];  // of the kernel
extern unsigned argument_count;
extern bool checking;  // the kernels call the hooks
extern bool acting;  // a warp acts, on the scheduler's stack
extern char *stacks, *own_stack;
constexpr size_t GUARD = 4096, STRIDE = STACK + GUARD;  // of the stacks, each above a page that nobody may touch

// The clock advances at every barrier. An access at time T of this block is ordered before the running thread's if T is
// before `barrier_time`, or T is before `warp_time` of its warp and the same warp made it.
extern uint32_t now, birth, barrier_time, warp_time[THREADS / 32];

[[noreturn]] void fail(const char* kind, uint64_t address, uint64_t pc, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

// Waits at `line` of the text for the lanes of `mask`, which then act together.
extern "C" void cuda_together(int line, unsigned mask, Together together, void* args);

enum How { READ, WRITE, ATOMIC };
void check(uintptr_t address, unsigned bytes, How how, uint64_t pc);
// A read by all threads of the current one's warp at once.
void check_warp_read(uintptr_t address, unsigned bytes);

void memory_of_launch(unsigned dynamic_shared);
void memory_of_block();
const char* place(uintptr_t address);  // "byte 4 of the shared array A of 64 bytes", in a static buffer

#pragma GCC visibility pop

extern "C" Fault cuda_fault;
