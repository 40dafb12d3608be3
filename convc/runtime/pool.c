/* The thread pool: runs the tasks of one kernel at once. Linux, C11, no library but libc.
 *
 * The calling thread is task 0. Workers are made at the first call that wants them, spin between kernels for a while,
 * then sleep. They inherit the affinity of the thread that makes them and take no signals. The pool serves one caller
 * at a time; whoever finds it taken computes alone, so no caller ever waits for another one's kernels. After fork()
 * the child starts without workers and makes its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fenv.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 256
#define SPIN_NS 1000000 /* longer than what lies between two kernels; a sleeping thread comes back in 0.05 to 1 ms */

typedef int (*pool_task)(void* arg, int id, int num);

/* A number that threads wait on. */
struct event {
  _Alignas(64) _Atomic uint32_t value;
  _Atomic int sleepers;
};

static struct {
  struct event job;  /* changes when there is work, or the pool stops */
  struct event done; /* follows job when all workers are through */
  _Alignas(64) atomic_int pending;
  atomic_int error;
  atomic_flag taken;
  int workers, wanted, stop, num;
  uint32_t first; /* the value of job when the workers were made */
  pool_task task;
  void* arg;
  fenv_t rounding; /* the caller's, so that every task rounds alike */
  pthread_t caller, thread[MAX_THREADS];
  _Atomic int cpu[MAX_THREADS]; /* that each task was last seen on */
} pool = {.taken = ATOMIC_FLAG_INIT};

static void futex(_Atomic uint32_t* word, int operation, uint32_t value) {
  syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void event_set(struct event* e, uint32_t value) {
  atomic_store(&e->value, value);
  if (atomic_load(&e->sleepers)) futex(&e->value, FUTEX_WAKE_PRIVATE, INT_MAX);
}

/* Waits until the value is no longer `old`: spins, then sleeps. The order of `sleepers` and `value` here is the
 * reverse of event_set's, so that one of the two sees the other. */
static uint32_t event_wait(struct event* e, uint32_t old) {
  const int64_t end = now_ns() + SPIN_NS;
  do {
    for (int i = 0; i < 32; ++i) {
      const uint32_t value = atomic_load_explicit(&e->value, memory_order_acquire);
      if (value != old) return value;
      relax();
    }
    sched_yield(); /* to a thread of ours that was woken on this processor */
  } while (now_ns() < end);
  uint32_t value;
  atomic_fetch_add(&e->sleepers, 1);
  while ((value = atomic_load(&e->value)) == old) futex(&e->value, FUTEX_WAIT_PRIVATE, old);
  atomic_fetch_sub(&e->sleepers, 1);
  return value;
}

/* Bans the thread of task `id` from the processors of tasks before it where it shares one with them. Woken together,
 * threads do end up on one processor and stay there, as both sleep too often to be moved: 10 ms instead of 4 for
 * SqueezeNet on two. Moved and left free again, each wake may bring it back: 7 ms instead of 0.15 for a convolution. */
static void keep_apart(int id) {
  const int here = sched_getcpu();
  int crowded = 0;
  for (int i = 0; i < id; ++i) crowded |= atomic_load_explicit(&pool.cpu[i], memory_order_relaxed) == here;
  atomic_store_explicit(&pool.cpu[id], here, memory_order_relaxed);
  cpu_set_t may;
  if (!crowded || pthread_getaffinity_np(pool.caller, sizeof may, &may)) return;
  for (int i = 0; i < id; ++i) {
    const int cpu = atomic_load_explicit(&pool.cpu[i], memory_order_relaxed);
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_CLR(cpu, &may);
  }
  if (!CPU_COUNT(&may) || sched_setaffinity(0, sizeof may, &may)) return;
  atomic_store_explicit(&pool.cpu[id], sched_getcpu(), memory_order_relaxed);
}

static void take_part(int id) {
  keep_apart(id);
  fesetenv(&pool.rounding);
  const int code = pool.task(pool.arg, id, pool.num);
  if (code) atomic_store(&pool.error, code);
}

static void* worker(void* arg) {
  const int id = (int)(intptr_t)arg;
  uint32_t job = pool.first;
  for (;;) {
    job = event_wait(&pool.job, job);
    if (pool.stop) return NULL;
    if (id < pool.num) take_part(id);
    if (atomic_fetch_sub(&pool.pending, 1) == 1) event_set(&pool.done, job);
  }
}

static void forget_workers(void) { /* in the child of a fork */
  memset(&pool, 0, sizeof pool);
  atomic_flag_clear(&pool.taken);
}

static void pool_stop(void) {
  pool.stop = 1;
  event_set(&pool.job, atomic_load(&pool.job.value) + 1);
  for (int i = 0; i < pool.workers; ++i) pthread_join(pool.thread[i], NULL);
  pool.workers = pool.wanted = pool.stop = 0;
}

/* Workers for `threads` tasks, or as many as the system grants. */
static void pool_start(int threads) {
  static int watched;
  if (!watched) watched = !pthread_atfork(NULL, NULL, forget_workers);
  if (pool.workers) pool_stop();
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pool.first = atomic_load(&pool.job.value);
  pool.wanted = threads;
  while (pool.workers + 1 < threads) {
    void* id = (void*)(intptr_t)(pool.workers + 1);
    if (pthread_create(&pool.thread[pool.workers], NULL, worker, id)) break;
    ++pool.workers;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static int pool_share(pool_task task, void* arg, int num) {
  const uint32_t job = atomic_load(&pool.job.value) + 1;
  const uint32_t done = atomic_load(&pool.done.value);
  pool.task = task, pool.arg = arg;
  pool.num = num <= pool.workers ? num : pool.workers + 1;
  fegetenv(&pool.rounding);
  atomic_store(&pool.error, 0);
  atomic_store(&pool.pending, pool.workers);
  pool.caller = pthread_self();
  atomic_store_explicit(&pool.cpu[0], sched_getcpu(), memory_order_relaxed);
  event_set(&pool.job, job);
  const int code = task(arg, 0, pool.num);
  event_wait(&pool.done, done);
  return code ? code : atomic_load(&pool.error);
}

/* task(arg, id, num') for each id below num', at once, for some num' <= num. Returns 0, or a task's own code. */
static int pool_for(pool_task task, void* arg, int num) {
  if (num < 2 || atomic_flag_test_and_set(&pool.taken)) return task(arg, 0, 1);
  if (pool.wanted < num) pool_start(num);
  const int code = pool.workers ? pool_share(task, arg, num) : task(arg, 0, 1);
  atomic_flag_clear(&pool.taken);
  return code;
}

static void pool_close(void) {
  while (atomic_flag_test_and_set(&pool.taken)) sched_yield();
  if (pool.workers) pool_stop();
  atomic_flag_clear(&pool.taken);
}
