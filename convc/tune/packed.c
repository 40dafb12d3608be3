/* The trial as TVM's runtime calls it: functions with its packed calling convention, written without its headers, in
 * processes of their own.
 *
 * A server of TVM 0.27 gives each session a process, and stops listening for good when one ends by a signal. So a
 * session's process never runs a candidate itself: a child of it does, within a deadline, and what became of that child
 * is the answer. A session that is lost all the same was lost with its device. */
#include "trial.c"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { KIND_INT = 1, KIND_FLOAT = 3, KIND_TENSOR = 7 }; /* kTVMFFIInt, kTVMFFIFloat, kTVMFFIDLTensorPtr */
enum { CODE_INT, CODE_UINT, CODE_FLOAT };               /* kDLInt, kDLUInt, kDLFloat */
enum { LATE = -1, NO_PROCESS = -2, BAD_ARGUMENTS = -3, EXITED = 256 };

/* TVMFFIAny */
struct any {
  int32_t kind;
  uint32_t zero;
  union {
    int64_t whole;
    double real;
    const void* pointer;
  } as;
};

/* DLTensor */
struct tensor {
  void* data;
  int32_t device_kind, device;
  int32_t axes;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t offset;
};

/* A call of convc_check or convc_time on its way. `found` is shared with the process that makes it. */
struct call {
  struct request request;
  int index[MAX_RACERS], count;
  uint64_t rotate;
  double seconds, deadline;
  struct answer {
    double verdict, numbers[4 * MAX_RACERS];
    int complete;
  }* found;
};

#pragma GCC visibility push(default)
int32_t __tvm_ffi_convc_check(void* self, const struct any* args, int32_t count, struct any* result);
int32_t __tvm_ffi_convc_time(void* self, const struct any* args, int32_t count, struct any* result);
int32_t __tvm_ffi_convc_processors(void* self, const struct any* args, int32_t count, struct any* result);
#pragma GCC visibility pop

/* -- arguments -- */

static const struct tensor* tensor_of(const struct any* a, int code, int bits) {
  const struct tensor* t = a->as.pointer;
  return a->kind == KIND_TENSOR && t->code == code && t->bits == bits && t->lanes == 1 ? t : NULL;
}

static void* data_of(const struct tensor* t) { return (char*)t->data + t->offset; }

static uint64_t elements_of(const struct tensor* t) {
  uint64_t found = 1;
  for (int i = 0; i < t->axes; ++i) found *= (uint64_t)t->shape[i];
  return found;
}

static int is_whole(const struct any* a) { return a->kind == KIND_INT; }

static int is_real(const struct any* a) { return a->kind == KIND_FLOAT; }

static int32_t answer(struct any* result, int64_t value) {
  result->kind = KIND_INT, result->zero = 0, result->as.whole = value;
  return 0;
}

/* Expected (float64), tolerance (float32) and one array for each read, as whatever type. */
static int take_data(struct request* r, const struct any* args, int count) {
  const int reads = count - 2;
  if (reads < 0 || reads > MAX_READS) return BAD_ARGUMENTS;
  const struct tensor *expected = tensor_of(&args[0], CODE_FLOAT, 64), *tolerance = tensor_of(&args[1], CODE_FLOAT, 32);
  if (!expected || !tolerance || elements_of(expected) != elements_of(tolerance)) return BAD_ARGUMENTS;
  r->expected = data_of(expected), r->tolerance = data_of(tolerance), r->elements = elements_of(expected);
  r->reads = reads;
  for (int i = 0; i < reads; ++i) {
    if (args[2 + i].kind != KIND_TENSOR) return BAD_ARGUMENTS;
    const struct tensor* t = args[2 + i].as.pointer;
    r->read[i] = data_of(t), r->read_bytes[i] = elements_of(t) * t->bits / 8;
  }
  return 0;
}

/* -- a process for each call -- */

static void check_now(struct call* c) {
  c->found->verdict = convc_check(c->index[0], &c->request, c->found->numbers);
}

static void time_now(struct call* c) {
  c->found->verdict = convc_time(c->index, c->count, &c->request, c->rotate, c->seconds, c->found->numbers);
}

/* In the child: nothing of it outlives the session, and it is what goes first where memory runs out. */
static void make_expendable(pid_t parent) {
  static const char most[] = "1000";
  const struct rlimit none = {0, 0};
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  setrlimit(RLIMIT_CORE, &none);
  for (int i = 1; i < NSIG; ++i) signal(i, SIG_DFL); /* TVM's own handler would print a backtrace of the session */
  FILE* file = fopen("/proc/self/oom_score_adj", "w");
  if (!file) return;
  fputs(most, file);
  fclose(file);
}

/* Whether the other end of the pipe is closed within `seconds`. */
static int ends_within(int pipe, double seconds) {
  const int64_t by = now_ns() + (int64_t)(seconds * 1e9);
  struct pollfd end = {pipe, POLLIN, 0};
  for (;;) {
    const int64_t left = (by - now_ns()) / 1000000;
    const int ready = poll(&end, 1, left < 0 ? 0 : left > 3600000 ? 3600000 : (int)left);
    if (ready > 0) return 1;
    if (ready == 0 || errno != EINTR) return 0;
  }
}

/* How the process that made the call ended: 0 with its answer in `found`, the number of a signal, EXITED and a code,
 * or LATE. */
static int64_t apart(void (*run)(struct call*), struct call* c) {
  int pipes[2], status = 0;
  if (pipe(pipes)) return NO_PROCESS;
  const pid_t parent = getpid(), child = fork();
  if (!child) {
    close(pipes[0]);
    make_expendable(parent);
    run(c);
    c->found->complete = 1;
    _exit(0);
  }
  close(pipes[1]);
  const int in_time = child < 0 || ends_within(pipes[0], c->deadline);
  close(pipes[0]);
  if (child < 0) return NO_PROCESS;
  if (!in_time) kill(child, SIGKILL);
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  if (!in_time) return LATE;
  if (WIFSIGNALED(status)) return WTERMSIG(status);
  return c->found->complete ? 0 : EXITED + WEXITSTATUS(status);
}

/* The call, its verdict and numbers put into `into` (float64). */
static int64_t answered(void (*run)(struct call*), struct call* c, const struct tensor* into) {
  const uint64_t room = elements_of(into), most = 1 + 4 * MAX_RACERS;
  c->found = mmap(NULL, sizeof *c->found, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (c->found == MAP_FAILED) return NO_PROCESS;
  const int64_t ended = apart(run, c);
  double* out = data_of(into);
  if (room) out[0] = c->found->verdict;
  for (uint64_t i = 1; i < room && i < most; ++i) out[i] = c->found->numbers[i - 1];
  munmap(c->found, sizeof *c->found);
  return ended;
}

/* -- what the session calls; each returns what `apart` does, BAD_ARGUMENTS, or NO_PROCESS where there is none -- */

/* (index, threads, deadline in s, into, expected, tolerance, reads...) */
int32_t __tvm_ffi_convc_check(void* self, const struct any* args, int32_t count, struct any* result) {
  (void)self;
  struct call c = {0};
  const struct tensor* into = count > 3 ? tensor_of(&args[3], CODE_FLOAT, 64) : NULL;
  if (!into || !is_whole(&args[0]) || !is_whole(&args[1]) || !is_real(&args[2])) return answer(result, BAD_ARGUMENTS);
  if (take_data(&c.request, args + 4, count - 4)) return answer(result, BAD_ARGUMENTS);
  c.index[0] = (int)args[0].as.whole, c.count = 1;
  c.request.threads = (int32_t)args[1].as.whole, c.deadline = args[2].as.real;
  return answer(result, answered(check_now, &c, into));
}

/* (indices as int32, threads, deadline in s, into, rotate in bytes, seconds, expected, tolerance, reads...) */
int32_t __tvm_ffi_convc_time(void* self, const struct any* args, int32_t count, struct any* result) {
  (void)self;
  struct call c = {0};
  const struct tensor* indices = count > 5 ? tensor_of(&args[0], CODE_INT, 32) : NULL;
  const struct tensor* into = indices ? tensor_of(&args[3], CODE_FLOAT, 64) : NULL;
  if (!into || !is_whole(&args[1]) || !is_real(&args[2]) || !is_whole(&args[4]) || !is_real(&args[5]))
    return answer(result, BAD_ARGUMENTS);
  const uint64_t racers = elements_of(indices);
  if (racers > MAX_RACERS || take_data(&c.request, args + 6, count - 6)) return answer(result, BAD_ARGUMENTS);
  memcpy(c.index, data_of(indices), racers * sizeof *c.index);
  c.count = (int)racers, c.request.threads = (int32_t)args[1].as.whole, c.deadline = args[2].as.real;
  c.rotate = (uint64_t)args[4].as.whole, c.seconds = args[5].as.real;
  return answer(result, answered(time_now, &c, into));
}

/* (text as uint8): as much of /proc/cpuinfo as fits, then zeros. Returns how many processors the session may use. */
int32_t __tvm_ffi_convc_processors(void* self, const struct any* args, int32_t count, struct any* result) {
  (void)self;
  const struct tensor* text = count == 1 ? tensor_of(&args[0], CODE_UINT, 8) : NULL;
  if (!text) return answer(result, BAD_ARGUMENTS);
  const uint64_t room = elements_of(text);
  memset(data_of(text), 0, room);
  FILE* file = fopen("/proc/cpuinfo", "r");
  if (file) {
    const size_t read = fread(data_of(text), 1, room, file);
    (void)read; /* less than there is room for, mostly */
    fclose(file);
  }
  cpu_set_t usable;
  return answer(result, sched_getaffinity(0, sizeof usable, &usable) ? 1 : CPU_COUNT(&usable));
}
