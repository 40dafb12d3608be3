/* @name@: a convolutional network as a C library. Made by convc; needs libc, libm and libpthread, nothing else.
 *
 * @version@
 *
@tensors@
 *
 * Every address given to these functions must be a multiple of 64; input and output tensors are row-major. Typical use:
 *
 *   weights = start of the file weights.safetensors in memory (read or mapped) + @NAME@_WEIGHTS_OFFSET
 *   packed = aligned_alloc(64, @name@_packed_bytes());          workspace = aligned_alloc(64, @name@_workspace_bytes());
 *   @name@_init(weights, packed);                               once
 *   @name@_run(in, out, packed, workspace);                     as often as you like
 *
 * All functions that return int return one of the @NAME@_STATUS_ values. Nothing prints, exits, or allocates in run.
 */
#ifndef @NAME@_MODEL_H
#define @NAME@_MODEL_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define @NAME@_STATUS_OK 0
#define @NAME@_STATUS_KERNEL 1    /* a kernel failed, or the caller's parallel_for did */
#define @NAME@_STATUS_ALIGNMENT 2 /* an address is null or not a multiple of 64 */
#define @NAME@_STATUS_INIT 3      /* `packed` was not written by this library's init */
#define @NAME@_STATUS_MEMORY 4    /* init found no memory for its temporaries */
#define @NAME@_STATUS_RANGE 5     /* a thread count or call number out of range */

@constants@

/* Bytes that init fills. */
size_t @name@_packed_bytes(void);

/* Bytes that run needs for the current number of threads: ask again after set_threads. Its contents need no
 * initial value and hold nothing from one run to the next. */
size_t @name@_workspace_bytes(void);

/* Packs the weights for the kernels. `weights` must stay as it is while `packed` is used: run reads the weights that
 * need no packing in place. */
int @name@_init(const void* weights, void* packed);

/* Computes all outputs. in[i] and out[i] hold @NAME@_INPUT_i_BYTES and @NAME@_OUTPUT_i_BYTES. May be called from
 * several threads at once, each with its own workspace. */
int @name@_run(const void* const* in, void* const* out, const void* packed, void* workspace);

/* Threads that one run uses, 1 to 256; at first 1. The result does not depend on it, not in one bit. The library makes
 * its threads at the first run that needs them, never sets their affinity, and makes new ones after fork().
 * Not while a run is in progress. */
int @name@_set_threads(int count);

/* A task of a kernel: call it once for each id in [0, num), in any order, on any threads. */
typedef int (*@name@_task)(void* arg, int id, int num);

/* Runs task(arg, id, num) for each id in [0, num) and returns when all are through: 0, or what a task returned. */
typedef int (*@name@_parallel_for)(void* pool, @name@_task task, void* arg, int num);

/* From now on kernels run on the caller's threads, as many tasks at a time as set_threads says; `pool` is handed
 * through. With null the library's own threads serve again. Not while a run is in progress. */
void @name@_set_parallel_for(@name@_parallel_for parallel_for, void* pool);

/* A run is the calls 0 to calls() - 1 in order, each of one kernel. For measuring and for looking between kernels. */
int @name@_calls(void);
int @name@_call(int index, const void* const* in, void* const* out, const void* packed, void* workspace);

/* Ends the library's threads; a later run makes new ones. Unloading the library does the same. */
void @name@_close(void);

const char* @name@_version(void);

#ifdef __cplusplus
}
#endif
#endif
