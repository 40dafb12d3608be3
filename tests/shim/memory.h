// Memory as the checks know it: what each byte's cells say.
//
// Device memory is one reserved range; each allocation is followed by a red zone. Each byte has a cell that says which
// block of which launch read or wrote it last. Shared memory is a second range with two cells a byte: who wrote it last
// and who has read it since, each a thread and a time.
#pragma once
#include "run.h"

constexpr unsigned ZONE = 256;

struct Allocation {
  uintptr_t begin, end;
  bool freed;
};

struct Array {
  uintptr_t begin, end;
  char name[64];
};

#pragma GCC visibility push(hidden)

extern char *device, *shared;
extern uint32_t *device_cells, *device_owner;  // a cell a byte; the allocation, from 1, of each 256 bytes
extern std::vector<Allocation> allocations;

// A cell of device memory: 2 bits of what, 10 of the launch, 20 of the block, or SEVERAL.
constexpr uint32_t SEVERAL = 0xfffff;
extern uint32_t read_by_one, read_by_several;  // by this block, and by several, in this launch

// A cell of shared memory: time << 11 | who. Who: a thread, a whole warp from WARPS, or one of these.
constexpr uint32_t ATOMICALLY = 2045, PENDING = 2046, WHOLE_BLOCK = 2047, WARPS = 1024;
extern uint32_t wrote[SHARED], has_read[SHARED];
extern uint8_t shared_owner[SHARED / 16];  // the array, from 1, of each 16 bytes
extern Array arrays[256];

char* reserve(size_t bytes);
inline bool in_shared(uintptr_t a) { return a - (uintptr_t)shared < SHARED; }
inline bool in_device(uintptr_t a) { return device && a - (uintptr_t)device < DEVICE; }
const char* place_in_device(uintptr_t a);
const char* place_in_shared(uintptr_t a);
void device_access(uintptr_t a, unsigned n, How how, uint64_t pc);
void shared_access(uintptr_t a, unsigned n, How how, uint64_t pc, uint32_t me);
void shared_bounds(uintptr_t a, unsigned n, How how, uint64_t pc);
void device_of_launch();
void device_of_block();
void shared_of_launch(unsigned dynamic_bytes);
void shared_of_block();

#pragma GCC visibility pop
