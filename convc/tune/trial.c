/* Candidates under test: each kernel alone in guarded memory against its expected result, then timed in turns.
 *
 * Linked with the candidates' objects and a table of them (trial.h). Everything a trial needs is in this file, so
 * that it runs the same way in a process of this machine and behind a remote procedure call: it needs libc only.
 *
 * A kernel that touches memory beyond a buffer, or writes what it only reads, dies of SIGSEGV; what a check can see
 * without that is a verdict. */
#include "pool.c"

#include "trial.h"

#include <math.h>
#include <stdio.h>
#include <sys/mman.h>

#define ALIGNMENT 64
#define ROUND_UP(n, to) (((n) + (to) - 1) / (to) * (to))
#define GUARD (1 << 20) /* bytes on both sides that may not be touched: whole rows, or a panel too many, end there */
#define MAX_READS 16
#define MAX_LIVE 64
#define MAX_COPIES 64
#define MAX_RACERS 16
#define MAX_ROUNDS 401
#define SAMPLE_NS 50000 /* the least that one sample takes: runs of a few us are timed several at once */

enum verdict {
  RIGHT, WRONG_VALUE, UNWRITTEN, OUT_OF_BOUNDS, NOT_REPEATABLE, RACE, LEAK, FAILED, NO_MEMORY, BAD_REQUEST,
  NO_VALUE, DEPENDENT, OTHER_THREADS,
};

/* What a trial is given: x, the weights as the model has them and the epilogue's operands; what y has to be, element
 * by element as it lies in memory; by how much it may differ, below 0 where nothing is asked (lanes of padding). */
struct request {
  const void* read[MAX_READS];
  uint64_t read_bytes[MAX_READS];
  int32_t reads, threads;
  const double* expected;
  const float* tolerance;
  uint64_t elements; /* of y, float32 */
};

#pragma GCC visibility push(default)
int convc_check(int index, const struct request* r, double* worst);
int convc_time(const int* index, int count, const struct request* r, uint64_t rotate, double seconds, double* found);
void convc_close(void);
#pragma GCC visibility pop

/* -- memory whose ends are watched -- */

struct guarded {
  char *map, *data;
  uint64_t bytes, map_bytes;
};

/* What lies between a buffer and its guards. As float32 it is no number, so that results made of it show. */
static char canary(const char* at) { return (char)(0xFFA5A5A5u >> (uintptr_t)at % 4 * 8); }

static void guarded_give(struct guarded* g) {
  if (g->map) munmap(g->map, g->map_bytes);
  g->map = NULL;
}

/* `bytes` at a multiple of 64, as far to the right as that allows, between memory that may not be touched. */
static int guarded_take(struct guarded* g, uint64_t bytes, int fill) {
  const uint64_t rounded = ROUND_UP(bytes ? bytes : 1, ALIGNMENT);
  const uint64_t body = ROUND_UP(rounded, (uint64_t)sysconf(_SC_PAGESIZE));
  g->map = NULL, g->bytes = bytes, g->map_bytes = body + 2 * GUARD;
  if (bytes >> 48) return NO_MEMORY; /* beyond any address space, and the sums above may have overflowed */
  char* map = mmap(NULL, g->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return NO_MEMORY;
  g->map = map, g->data = map + GUARD + body - rounded;
  if (mprotect(map + GUARD, body, PROT_READ | PROT_WRITE)) {
    guarded_give(g);
    return NO_MEMORY;
  }
  for (char* p = map + GUARD; p < g->data; ++p) *p = canary(p);
  memset(g->data, fill, bytes);
  for (char* p = g->data + bytes; p < map + GUARD + body; ++p) *p = canary(p);
  return RIGHT;
}

static int is_canary(const char* from, const char* to) {
  for (; from < to; ++from)
    if (*from != canary(from)) return 0;
  return 1;
}

static int guarded_intact(const struct guarded* g) {
  return is_canary(g->map + GUARD, g->data) && is_canary(g->data + g->bytes, g->map + g->map_bytes - GUARD);
}

static void guarded_freeze(const struct guarded* g) { mprotect(g->map + GUARD, g->map_bytes - 2 * GUARD, PROT_READ); }

/* -- what kernels ask of their surroundings -- */

struct kernel_env {
  void* sync;
  int32_t num_task;
};
typedef int (*kernel_task)(int id, struct kernel_env*, void* closure);

/* How the tasks of a parallel loop run while checking: each on memory as it was before the loop, one after another on
 * the same memory, or all of the work as one task. */
enum tasks { APART, IN_ORDER, ALONE };

/* While checking, every buffer that a kernel can write: y first, then its live temporaries. */
static struct {
  int on, threads, verdict, inside, count;
  enum tasks tasks;
  struct guarded live[MAX_LIVE];
} watch;

static int timed_threads = 1;
static uint64_t arena_bytes; /* of temporaries, per thread, while timing */
static _Thread_local char* arena;
static _Thread_local uint64_t arena_size, arena_used;

static void verdict(int found) {
  if (!watch.verdict) watch.verdict = found;
}

static void* watched_alloc(uint64_t bytes) {
  const int code = watch.count == MAX_LIVE ? LEAK : guarded_take(&watch.live[watch.count], bytes, 0xFF);
  if (code) verdict(code);
  return code ? NULL : watch.live[watch.count++].data;
}

static void watched_free(void* p) {
  for (int i = 1; i < watch.count; ++i)
    if (watch.live[i].data == p) {
      if (!guarded_intact(&watch.live[i])) verdict(OUT_OF_BOUNDS);
      guarded_give(&watch.live[i]);
      watch.live[i] = watch.live[--watch.count];
      return;
    }
  verdict(FAILED);
}

static void* workspace_alloc(int device, int id, uint64_t bytes, int code, int bits) {
  (void)device, (void)id, (void)code, (void)bits;
  if (watch.on) return watched_alloc(bytes);
  if (arena_size < arena_bytes) {
    free(arena);
    arena = aligned_alloc(ALIGNMENT, ROUND_UP(arena_bytes, ALIGNMENT));
    arena_size = arena ? arena_bytes : 0, arena_used = 0;
  }
  const uint64_t rounded = ROUND_UP(bytes, ALIGNMENT);
  if (rounded > arena_size - arena_used) return NULL;
  arena_used += rounded;
  return arena + arena_used - rounded;
}

static int workspace_free(int device, int id, void* p) {
  (void)device, (void)id;
  if (watch.on) {
    watched_free(p);
    return 0;
  }
  arena_used = (uint64_t)((char*)p - arena);
  return 0;
}

/* The tasks of a parallel loop one by one, the last first, each on memory as it was before the loop: then no task can
 * see what another wrote, and two that write one byte are found out whatever the timing. */
static int launch_apart(kernel_task task, void* closure, int num) {
  const int count = watch.count;
  char *before[MAX_LIVE] = {0}, *merged[MAX_LIVE] = {0};
  int code = 0;
  for (int i = 0; i < count; ++i) {
    const struct guarded* g = &watch.live[i];
    before[i] = malloc(g->bytes + 1), merged[i] = malloc(g->bytes + 1);
    if (!before[i] || !merged[i]) code = 1;
    else memcpy(before[i], g->data, g->bytes), memcpy(merged[i], g->data, g->bytes);
  }
  for (int id = num - 1; id >= 0 && !code; --id) {
    struct kernel_env env = {NULL, num};
    code = task(id, &env, closure);
    if (watch.count != count) verdict(LEAK), code = 1; /* or it freed another's, which cannot be looked at now */
    for (int i = 0; i < count && !code; ++i) {
      const struct guarded* g = &watch.live[i];
      for (uint64_t b = 0; b < g->bytes; ++b) {
        if (g->data[b] == before[i][b]) continue;
        if (merged[i][b] != before[i][b]) verdict(RACE);
        merged[i][b] = g->data[b];
      }
      memcpy(g->data, before[i], g->bytes);
    }
  }
  for (int i = 0; i < count; ++i) {
    if (!code) memcpy(watch.live[i].data, merged[i], watch.live[i].bytes);
    free(before[i]), free(merged[i]);
  }
  return code;
}

static int launch_in_order(kernel_task task, void* closure, int num) {
  int code = 0;
  for (int id = 0; id < num && !code; ++id) {
    struct kernel_env env = {NULL, num};
    code = task(id, &env, closure);
  }
  return code;
}

struct job {
  kernel_task task;
  void* closure;
};

static int run_task(void* arg, int id, int num) {
  const struct job* job = arg;
  const uint64_t used = arena_used;
  struct kernel_env env = {NULL, num};
  const int code = job->task(id, &env, job->closure);
  arena_used = used;
  return code;
}

static int parallel_launch(kernel_task task, void* closure, int n) {
  const int most = watch.on ? watch.threads : timed_threads;
  const int num = n > 0 && n < most ? n : most;
  if (!watch.on) {
    struct job job = {task, closure};
    return pool_for(run_task, &job, num);
  }
  if (watch.inside || num < 2 || watch.tasks == ALONE) return launch_in_order(task, closure, 1);
  watch.inside = 1;
  const int code = (watch.tasks == APART ? launch_apart : launch_in_order)(task, closure, num);
  watch.inside = 0;
  return code;
}

/* Every object defines these weakly; these definitions win. */
int (*__TVMBackendParallelLaunch)(kernel_task, void*, int) = parallel_launch;
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = workspace_alloc;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = workspace_free;

/* -- checking -- */

static int holds(float value, int fill) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits == 0x01010101u * (uint32_t)fill;
}

/* The first element that is not as it was expected, or r->elements. */
static uint64_t first_wrong(const struct request* r, const float* y, double* worst) {
  for (uint64_t i = 0; i < r->elements; ++i) {
    if (r->tolerance[i] < 0) continue;
    const double off = fabs((double)y[i] - r->expected[i]);
    if (!(off <= *worst)) *worst = off;
    if (!(off <= r->tolerance[i])) return i;
  }
  return r->elements;
}

static int is_same(const struct request* r, const float* a, const float* b) {
  for (uint64_t i = 0; i < r->elements; ++i)
    if (r->tolerance[i] >= 0 && memcmp(&a[i], &b[i], sizeof *a)) return 0;
  return 1;
}

/* y is filled with a poison, so that what a kernel leaves out or reads before it writes shows. */
static int call_watched(const struct candidate* c, void** args, int fill, enum tasks tasks) {
  struct guarded* y = &watch.live[0];
  memset(y->data, fill, y->bytes);
  watch.count = 1, watch.verdict = RIGHT, watch.tasks = tasks;
  if (c->invoke(c->kernel, args)) verdict(FAILED);
  if (watch.count > 1) verdict(LEAK);
  while (watch.count > 1) guarded_give(&watch.live[--watch.count]);
  if (!guarded_intact(y)) verdict(OUT_OF_BOUNDS);
  return watch.verdict;
}

static int pack_watched(const struct candidate* c, const struct guarded* w, struct guarded* packed) {
  if (guarded_take(&watch.live[0], c->packed_bytes, 0xFF)) return NO_MEMORY;
  watch.count = 1, watch.verdict = RIGHT, watch.tasks = APART;
  if (((int32_t(*)(void*, void*))c->pack)(w->data, watch.live[0].data)) verdict(FAILED);
  if (watch.count > 1) verdict(LEAK);
  while (watch.count > 1) guarded_give(&watch.live[--watch.count]);
  if (!guarded_intact(&watch.live[0])) verdict(OUT_OF_BOUNDS);
  *packed = watch.live[0];
  guarded_freeze(packed);
  return watch.verdict;
}

/* Why element `i` of the `first` run is wrong, as far as other poison and tasks that see each other's writes tell. */
static int explain(const struct candidate* c, const struct request* r, void** args, const float* first, uint64_t i) {
  const float* y = (const float*)watch.live[0].data;
  double worst = 0;
  int found = call_watched(c, args, 0x41, APART);
  if (found) return found;
  if (holds(first[i], 0xFF) && holds(y[i], 0x41)) return UNWRITTEN;
  if (first_wrong(r, y, &worst) == r->elements) return NOT_REPEATABLE;
  found = call_watched(c, args, 0xFF, IN_ORDER);
  if (found) return found;
  if (first_wrong(r, y, &worst) == r->elements) return DEPENDENT;
  return isnan(first[i]) ? NO_VALUE : WRONG_VALUE;
}

static int check_runs(const struct candidate* c, const struct request* r, void** args, double* worst) {
  const float* y = (const float*)watch.live[0].data;
  int found = call_watched(c, args, 0xFF, APART);
  float* first = malloc(4 * r->elements + 1);
  if (!first) return NO_MEMORY;
  memcpy(first, y, 4 * r->elements);
  const uint64_t wrong = found ? r->elements : first_wrong(r, y, worst);
  if (wrong < r->elements) found = explain(c, r, args, first, wrong);
  if (!found) found = call_watched(c, args, 0x41, APART);
  if (!found && !is_same(r, first, y)) found = NOT_REPEATABLE;
  if (!found && r->threads > 1) found = call_watched(c, args, 0xFF, ALONE);
  if (!found && !is_same(r, first, y)) found = OTHER_THREADS;
  free(first);
  return found;
}

static int is_bad(int index, const struct request* r) {
  if (index < 0 || index >= CANDIDATE_COUNT) return 1;
  return r->reads < 2 || r->reads > MAX_READS || r->reads != CANDIDATES[index].reads || r->threads < 1;
}

/* The verdict on a candidate; `worst` gets its largest distance from what was expected. */
int convc_check(int index, const struct request* r, double* worst) {
  struct guarded reads[MAX_READS] = {0}, packed = {0};
  void* args[MAX_READS + 1];
  *worst = 0;
  if (is_bad(index, r)) return BAD_REQUEST;
  const struct candidate* c = &CANDIDATES[index];
  int found = RIGHT;
  for (int i = 0; i < r->reads && !found; ++i) {
    found = guarded_take(&reads[i], r->read_bytes[i], 0);
    if (found) break;
    memcpy(reads[i].data, r->read[i], r->read_bytes[i]);
    guarded_freeze(&reads[i]);
    args[i] = reads[i].data;
  }
  watch.on = 1, watch.threads = r->threads, watch.inside = 0;
  if (!found) found = pack_watched(c, &reads[1], &packed);
  if (!found) found = guarded_take(&watch.live[0], 4 * r->elements, 0xFF);
  if (!found) {
    args[1] = packed.data, args[r->reads] = watch.live[0].data;
    found = check_runs(c, r, args, worst);
    guarded_give(&watch.live[0]);
  }
  watch.on = 0;
  guarded_give(&packed);
  for (int i = 0; i < r->reads; ++i) guarded_give(&reads[i]);
  return found;
}

/* -- timing -- */

/* One candidate in ordinary memory. Its packed weights lie there several times and take turns, as in a network every
 * other layer's weights pass through the caches between two uses. */
struct racer {
  const struct candidate* candidate;
  char* packed[MAX_COPIES];
  int copies, next, batch;
  void* args[MAX_READS + 1];
  double us[MAX_ROUNDS];
};

static void* plain_take(uint64_t bytes) {
  const uint64_t to = bytes >= 2u << 20 ? 2u << 20 : ALIGNMENT;
  void* p = aligned_alloc(to, ROUND_UP(bytes ? bytes : 1, to));
  if (p && to > ALIGNMENT) madvise(p, ROUND_UP(bytes, to), MADV_HUGEPAGE);
  return p;
}

static int run_once(struct racer* m) {
  m->args[1] = m->packed[m->next];
  m->next = (m->next + 1) % m->copies;
  arena_bytes = m->candidate->workspace_bytes;
  return m->candidate->invoke(m->candidate->kernel, m->args);
}

static int sample(struct racer* m, double* us) {
  int code = 0;
  const int64_t start = now_ns();
  for (int i = 0; i < m->batch; ++i) code |= run_once(m);
  *us = (double)(now_ns() - start) / 1000 / m->batch;
  return code;
}

static int racer_ready(struct racer* m, const struct request* r, uint64_t rotate) {
  const uint64_t bytes = ROUND_UP(m->candidate->packed_bytes, ALIGNMENT);
  const uint64_t wanted = bytes ? ROUND_UP(rotate, bytes) / bytes : 1;
  arena_bytes = m->candidate->workspace_bytes;
  m->copies = wanted < 1 ? 1 : wanted > MAX_COPIES ? MAX_COPIES : (int)wanted;
  for (int i = 0; i < m->copies; ++i) {
    if (!(m->packed[i] = plain_take(bytes))) return NO_MEMORY;
    if (i) memcpy(m->packed[i], m->packed[0], bytes);
    else if (((int32_t(*)(const void*, void*))m->candidate->pack)(r->read[1], m->packed[0])) return FAILED;
  }
  m->batch = 1;
  double us;
  if (sample(m, &us) || sample(m, &us)) return FAILED;
  m->batch = us * 1000 >= SAMPLE_NS ? 1 : (int)(SAMPLE_NS / (us * 1000 + 1)) + 1;
  return RIGHT;
}

static int by_value(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static double median(double* values, int count) {
  qsort(values, (size_t)count, sizeof *values, by_value);
  return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* Median and median absolute deviation of the first `count` samples, us. */
static void summary(struct racer* m, int count, double* found) {
  found[0] = median(m->us, count);
  for (int i = 0; i < count; ++i) m->us[i] = fabs(m->us[i] - found[0]);
  found[1] = median(m->us, count);
}

static int race(struct racer* racers, int count, double seconds, int* rounds) {
  const int64_t end = now_ns() + (int64_t)(seconds * 1e9);
  uint32_t random = 12345;
  for (*rounds = 0; *rounds < MAX_ROUNDS - 1 && (*rounds < 5 || now_ns() < end); ++*rounds) {
    random = random * 1664525u + 1013904223u;
    for (int k = 0; k < count; ++k) { /* from a random one on, every other round backwards */
      const int step = *rounds % 2 ? count - k : k;
      struct racer* m = &racers[((random >> 8) + (uint32_t)step) % (uint32_t)count];
      double us;
      if ((count > 1 && sample(m, &us)) || sample(m, &m->us[*rounds])) return FAILED;
    }
  }
  return RIGHT;
}

/* Once more over poison, where the result has been and in fresh memory: a kernel that at some point stopped computing
 * left an earlier result, or another racer's, in the place where it was timed. */
static int still_right(struct racer* m, const struct request* r) {
  const uint64_t bytes = 4 * r->elements;
  void* places[2] = {m->args[r->reads], plain_take(bytes)};
  double worst = 0;
  int code = places[1] ? RIGHT : NO_MEMORY;
  for (int i = 0; i < 2 && !code; ++i) {
    const float* y = memset(places[i], 0xFF, bytes);
    m->args[r->reads] = places[i];
    if (run_once(m)) code = FAILED;
    const uint64_t wrong = code ? r->elements : first_wrong(r, y, &worst);
    if (wrong < r->elements) code = holds(y[wrong], 0xFF) ? UNWRITTEN : WRONG_VALUE;
  }
  m->args[r->reads] = places[0];
  free(places[1]);
  return code;
}

static int race_all(struct racer* racers, const struct request* r, int count, uint64_t rotate, double seconds,
                    double* found) {
  int rounds, code = RIGHT;
  for (int i = 0; i < count && !code; ++i) code = racer_ready(&racers[i], r, rotate);
  if (!code) code = race(racers, count, seconds, &rounds);
  for (int i = 0; i < count && !code; ++i) {
    summary(&racers[i], rounds, &found[4 * i]);
    found[4 * i + 3] = rounds;
    racers[i].copies = 1, racers[i].next = 0;
  }
  if (!code && count == 1) {
    code = race(racers, 1, seconds / 4, &rounds);
    const double kept[2] = {found[0], found[1]};
    if (!code) summary(racers, rounds, found);
    found[2] = found[0], found[0] = kept[0], found[1] = kept[1];
  }
  for (int i = 0; i < count && !code; ++i) code = still_right(&racers[i], r);
  return code;
}

/* Times candidates in turns for about `seconds`, their weights rotating through `rotate` bytes. Each gets four numbers
 * in `found`: median and spread in us, the median with its weights in cache (where it is alone), rounds. */
int convc_time(const int* index, int count, const struct request* r, uint64_t rotate, double seconds, double* found) {
  if (count < 1 || count > MAX_RACERS) return BAD_REQUEST;
  for (int i = 0; i < count; ++i)
    if (is_bad(index[i], r)) return BAD_REQUEST;
  struct racer* racers = calloc((size_t)count, sizeof *racers);
  void* reads[MAX_READS + 1] = {0};
  int code = racers ? RIGHT : NO_MEMORY;
  timed_threads = r->threads;
  for (int i = 0; i <= r->reads && !code; ++i) { /* the last is y */
    const uint64_t bytes = i < r->reads ? r->read_bytes[i] : 4 * r->elements;
    if (i == 1) continue; /* the weights as the model has them are only packed */
    if (!(reads[i] = plain_take(bytes))) code = NO_MEMORY;
    else if (i < r->reads) memcpy(reads[i], r->read[i], bytes);
    else memset(reads[i], 0xFF, bytes);
  }
  for (int i = 0; i < count && !code; ++i) {
    racers[i].candidate = &CANDIDATES[index[i]];
    memcpy(racers[i].args, reads, sizeof reads);
  }
  if (!code) code = race_all(racers, r, count, rotate, seconds, found);
  for (int i = 0; racers && i < count; ++i)
    for (int k = 0; k < MAX_COPIES; ++k) free(racers[i].packed[k]);
  for (int i = 0; i <= r->reads; ++i) free(reads[i]);
  free(racers);
  return code;
}

void convc_close(void) { pool_close(); }
