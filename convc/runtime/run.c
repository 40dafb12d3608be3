/* Walks the plan: resolves the arguments of each kernel call and calls it. The tables come from plan.h. */
#include "pool.c"

#pragma GCC visibility push(default)
#include "model.h"
#pragma GCC visibility pop

enum space { SPACE_INPUT, SPACE_OUTPUT, SPACE_WEIGHTS, SPACE_PACKED, SPACE_ARENA, SPACES };

/* Where an argument lies: at `at` bytes in its space, or in the caller's input or output number `at`. */
struct argument {
  uint64_t at;
  enum space space;
};

/* A kernel, how to call one of so many parameters, and its arguments: `count` of them from number `first`. */
struct call {
  void (*kernel)(void);
  int (*invoke)(void (*kernel)(void), void* const* args);
  uint32_t first, count;
};

#include "plan.h"

#define ALIGNMENT 64
#define ROUND_UP(n) (((n) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)

/* The start of `packed`: what init leaves for run. */
struct packed_header {
  _Alignas(ALIGNMENT) uint64_t model;
  const void* weights;
};

/* Workspace of one task: a stack, because kernels free in the reverse order. */
struct region {
  _Alignas(ALIGNMENT) size_t used;
  _Alignas(ALIGNMENT) char bytes[];
};

/* What a kernel call may touch, beside its arguments. */
struct frame {
  char* scratch; /* regions, one per task */
  size_t scratch_bytes;
  int threads;
  struct region* region; /* the one of this task */
  int parallel;          /* this is one of several tasks */
};

struct spaces {
  const void* const* in;
  void* const* out;
  const char* base[SPACES]; /* by enum space; unset for SPACE_INPUT and SPACE_OUTPUT */
};

static int threads = 1;
static PREFIX(parallel_for) caller_for;
static void* caller_pool;
static _Thread_local struct frame frame;

static size_t region_stride(size_t scratch_bytes) { return sizeof(struct region) + ROUND_UP(scratch_bytes); }

static struct region* region_of(const struct frame* f, int id) {
  return (struct region*)(f->scratch + (size_t)id * region_stride(f->scratch_bytes));
}

static void* workspace_alloc(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  struct region* r = frame.region;
  const size_t left = frame.scratch_bytes - r->used;
  if (bytes > left || ROUND_UP(bytes) > left) return NULL;
  void* found = r->bytes + r->used;
  r->used += ROUND_UP(bytes);
  return found;
}

static int workspace_free(int device, int id, void* p) {
  (void)device, (void)id;
  frame.region->used = (size_t)((char*)p - frame.region->bytes);
  return 0;
}

struct kernel_env {
  void* sync;
  int32_t num_task;
};
typedef int (*kernel_task)(int id, struct kernel_env*, void* closure);
struct kernel_job {
  kernel_task task;
  void* closure;
  const struct frame* frame;
};

static int run_task(void* arg, int id, int num) {
  const struct kernel_job* job = arg;
  const struct frame before = frame;
  struct region* r = region_of(job->frame, id);
  const size_t used = r->used;
  frame = *job->frame;
  frame.region = r;
  frame.parallel = num > 1;
  struct kernel_env env = {NULL, num};
  const int code = job->task(id, &env, job->closure);
  r->used = used;
  frame = before;
  return code;
}

static int parallel_launch(kernel_task task, void* closure, int n) {
  if (frame.parallel || frame.threads < 2) { /* a loop within a task: this thread does it alone */
    struct kernel_env env = {NULL, 1};
    return task(0, &env, closure);
  }
  const struct frame shared = frame;
  struct kernel_job job = {task, closure, &shared};
  const int num = n > 0 && n < shared.threads ? n : shared.threads;
  return caller_for ? caller_for(caller_pool, run_task, &job, num) : pool_for(run_task, &job, num);
}

/* Every object defines these weakly; these definitions win. */
int (*__TVMBackendParallelLaunch)(kernel_task, void*, int) = parallel_launch;
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = workspace_alloc;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = workspace_free;

static void* address(const struct argument* a, const struct spaces* s) {
  if (a->space == SPACE_INPUT) return (void*)(uintptr_t)s->in[a->at];
  if (a->space == SPACE_OUTPUT) return s->out[a->at];
  return (void*)(uintptr_t)(s->base[a->space] + a->at);
}

static int call_kernel(const struct call* c, const struct spaces* s) {
  void* args[MAX_ARGUMENTS];
  for (uint32_t i = 0; i < c->count; ++i) args[i] = address(&ARGUMENTS[c->first + i], s);
  frame.region->used = 0;
  return c->invoke(c->kernel, args) ? CODE(KERNEL) : CODE(OK);
}

/* Calls first .. last - 1 with `scratch` for temporaries, on `num` threads. */
static int call_kernels(const struct call* calls, int first, int last, const struct spaces* s, char* scratch,
                        size_t scratch_bytes, int num) {
  const struct frame before = frame;
  struct frame now = {scratch, scratch_bytes, num, NULL, 0};
  for (int id = 0; id < num; ++id) region_of(&now, id)->used = 0;
  now.region = region_of(&now, 0);
  frame = now;
  int code = CODE(OK);
  for (int i = first; i < last && !code; ++i) code = call_kernel(&calls[i], s);
  frame = before;
  return code;
}

static int misaligned(const void* p) { return !p || (uintptr_t)p % ALIGNMENT; }

size_t PREFIX(packed_bytes)(void) { return sizeof(struct packed_header) + ROUND_UP((size_t)PACKED_BYTES); }

size_t PREFIX(workspace_bytes)(void) {
  return ROUND_UP((size_t)ARENA_BYTES) + (size_t)threads * region_stride(SCRATCH_BYTES);
}

int PREFIX(init)(const void* weights, void* packed) {
  if (misaligned(weights) || misaligned(packed)) return CODE(ALIGNMENT);
  struct packed_header* header = packed;
  const int num = threads;
  void* scratch;
  header->model = 0;
  if (posix_memalign(&scratch, ALIGNMENT, (size_t)num * region_stride(INIT_SCRATCH_BYTES))) return CODE(MEMORY);
  const struct spaces s = {.base = {[SPACE_WEIGHTS] = weights, [SPACE_PACKED] = (char*)(header + 1)}};
  const int code = call_kernels(INIT_CALLS, 0, INIT_COUNT, &s, scratch, INIT_SCRATCH_BYTES, num);
  free(scratch);
  if (code) return code;
  header->weights = weights;
  header->model = MODEL_ID;
  return CODE(OK);
}

static int any_misaligned(const void* const* p, int count) {
  for (int i = 0; i < count; ++i)
    if (misaligned(p[i])) return 1;
  return 0;
}

static int run_calls(int first, int last, const void* const* in, void* const* out, const void* packed,
                     void* workspace) {
  const struct packed_header* header = packed;
  if (any_misaligned(in, INPUTS) || any_misaligned((const void* const*)out, OUTPUTS)) return CODE(ALIGNMENT);
  if (misaligned(packed) || misaligned(workspace)) return CODE(ALIGNMENT);
  if (header->model != MODEL_ID) return CODE(INIT);
  const struct spaces s = {in, out, {
    [SPACE_WEIGHTS] = header->weights, [SPACE_PACKED] = (const char*)(header + 1), [SPACE_ARENA] = workspace}};
  char* scratch = (char*)workspace + ROUND_UP((size_t)ARENA_BYTES);
  return call_kernels(RUN_CALLS, first, last, &s, scratch, SCRATCH_BYTES, threads);
}

int PREFIX(run)(const void* const* in, void* const* out, const void* packed, void* workspace) {
  return run_calls(0, RUN_COUNT, in, out, packed, workspace);
}

int PREFIX(calls)(void) { return RUN_COUNT; }

int PREFIX(call)(int index, const void* const* in, void* const* out, const void* packed, void* workspace) {
  if (index < 0 || index >= RUN_COUNT) return CODE(RANGE);
  return run_calls(index, index + 1, in, out, packed, workspace);
}

int PREFIX(set_threads)(int count) {
  if (count < 1 || count > MAX_THREADS) return CODE(RANGE);
  if (count != threads) pool_close();
  threads = count;
  return CODE(OK);
}

void PREFIX(set_parallel_for)(PREFIX(parallel_for) parallel, void* caller) {
  caller_for = parallel;
  caller_pool = caller;
}

void PREFIX(close)(void) { pool_close(); }

const char* PREFIX(version)(void) { return VERSION; }

__attribute__((destructor)) static void unload(void) { pool_close(); }
