// A libcuda of host memory, for tests of what the runtime asks the driver: it does what it is asked at once, and writes a
// line about it to stderr. Its only kernel, "add", adds floats: add(a, b, y) of grid x block elements.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Code;
typedef uintptr_t Handle;
enum { NOT_FOUND = 500, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_BINARY = 209, NOT_SUPPORTED = 801 };

struct launch {
  unsigned grid, block;
  float *a, *b, *y;
};
static struct launch captured[16];
static int count, capturing, contexts;

#define SAY(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr))
#define INSIDE(name) \
  if (!contexts) { SAY(name " without a context"); return 201; }

static Code cuInit(unsigned flags) { return SAY("init %u", flags), getenv("FAKE_INIT") ? atoi(getenv("FAKE_INIT")) : 0; }
static Code cuDeviceGetCount(int* n) { return *n = 2, 0; }
static Code cuDeviceGet(int* device, int ordinal) { return *device = ordinal + 40, 0; }
static Code cuDeviceGetName(char* name, int length, int device) {
  return snprintf(name, length, "Fake %d", device), 0;
}
static Code cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  return *value = attribute == 75 ? 8 : attribute == 76 ? 6 : -1, 0;
}
static Code cuDevicePrimaryCtxRetain(Handle* context, int device) { return *context = device, SAY("retain"), 0; }
static Code cuDevicePrimaryCtxRelease(int device) { return SAY("release %d", device), 0; }
static Code cuCtxPushCurrent(Handle context) { return ++contexts, context == 41 ? 0 : INVALID_VALUE; }
static Code cuCtxPopCurrent(Handle* context) { return *context = 41, --contexts, 0; }
static Code cuCtxSynchronize(void) { return SAY("settle"), 0; }
static Code cuMemAlloc(uintptr_t* pointer, size_t size) {
  INSIDE("cuMemAlloc");
  SAY("allocate %zu", size);
  if (size > 1 << 20) return OUT_OF_MEMORY;
  return *pointer = (uintptr_t)aligned_alloc(256, (size + 255) / 256 * 256), 0;
}
static Code cuMemFree(uintptr_t pointer) {
  INSIDE("cuMemFree");
  return SAY("free"), free((void*)pointer), 0;
}
static Code cuMemcpyHtoDAsync(uintptr_t to, const void* from, size_t size, Handle stream) {
  return SAY("in %zu on %d", size, (int)stream), memcpy((void*)to, from, size), 0;
}
static Code cuMemcpyDtoHAsync(void* to, uintptr_t from, size_t size, Handle stream) {
  return SAY("out %zu on %d", size, (int)stream), memcpy(to, (void*)from, size), 0;
}
static Code cuMemcpyDtoDAsync(uintptr_t to, uintptr_t from, size_t size, Handle stream) {
  return SAY("copy %zu on %d", size, (int)stream), memcpy((void*)to, (void*)from, size), 0;
}
static Code cuModuleLoadData(Handle* module, const void* image) {
  if (strcmp(image, "fat")) return NO_BINARY;
  return SAY("load"), *module = 7, 0;
}
static Code cuModuleUnload(Handle module) { return SAY("unload %d", (int)module), 0; }
static Code cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  if (strcmp(name, "add")) return NOT_FOUND;
  return *function = module * 100, 0;
}
static Code cuFuncSetAttribute(Handle function, int attribute, int value) {
  SAY("attribute %d of %d is %d", attribute, (int)function, value);
  return value > 100 << 10 ? INVALID_VALUE : 0;
}
static void run(const struct launch* one) {
  for (unsigned i = 0; i < one->grid * one->block; ++i) one->y[i] = one->a[i] + one->b[i];
}
static Code cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                           unsigned shared, Handle stream, void** parameters, void** extra) {
  INSIDE("cuLaunchKernel");
  SAY("launch %d %u %u %u, %u %u %u, %u on %d%s", (int)function, gx, gy, gz, bx, by, bz, shared, (int)stream,
      extra ? " with extra" : "");
  const struct launch one = {gx * gy * gz, bx * by * bz, *(float**)parameters[0], *(float**)parameters[1],
                             *(float**)parameters[2]};
  if (capturing) captured[count++] = one;
  else run(&one);
  return 0;
}
static Code cuStreamCreate(Handle* stream, unsigned flags) { return SAY("stream %u", flags), *stream = 11, 0; }
static Code cuStreamDestroy(Handle stream) { return SAY("close %d", (int)stream), 0; }
static Code cuStreamSynchronize(Handle stream) { return SAY("synchronize %d", (int)stream), stream == 99 ? 700 : 0; }
static Code cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) {
  return SAY("%d waits for %d, %u", (int)stream, (int)event, flags), 0;
}
static Code cuStreamBeginCapture(Handle stream, int mode) {
  return SAY("begin on %d, %d", (int)stream, mode), capturing = 1, count = 0, 0;
}
static Code cuStreamEndCapture(Handle stream, Handle* graph) {
  return SAY("end on %d", (int)stream), capturing = 0, *graph = 21, 0;
}
static Code cuGraphInstantiateWithFlags(Handle* replayed, Handle graph, unsigned long long flags) {
  return SAY("instantiate %d, %llu", (int)graph, flags), *replayed = 22, 0;
}
static Code cuGraphDestroy(Handle graph) { return SAY("destroy %d", (int)graph), 0; }
static Code cuGraphExecDestroy(Handle graph) { return SAY("forget %d", (int)graph), 0; }
static Code cuGraphLaunch(Handle graph, Handle stream) {
  SAY("replay %d on %d", (int)graph, (int)stream);
  for (int i = 0; i < count; ++i) run(&captured[i]);
  return 0;
}
static Code cuEventCreate(Handle* event, unsigned flags) { return SAY("event %u", flags), *event = 31, 0; }
static Code cuEventDestroy(Handle event) { return SAY("drop %d", (int)event), 0; }
static Code cuEventRecord(Handle event, Handle stream) {
  return SAY("record %d on %d", (int)event, (int)stream), 0;
}
static Code cuEventRecordWithFlags(Handle event, Handle stream, unsigned flags) {
  return SAY("record %d on %d, %u", (int)event, (int)stream, flags), 0;
}
static Code cuEventSynchronize(Handle event) { return SAY("wait for %d", (int)event), 0; }
static Code cuEventElapsedTime(float* ms, Handle start, Handle stop) { return (void)start, (void)stop, *ms = 0.25f, 0; }
static Code cuGetErrorName(Code code, const char** name) {
  return *name = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_FAKE", 0;
}
static Code cuGetErrorString(Code code, const char** text) {
  return *text = code == 700 ? "an illegal memory access" : "a fake one", 0;
}
static Code missing(void) { return NOT_SUPPORTED; }

#define ROW(name) {#name, (void (*)(void))name}
static const struct { const char* name; void (*function)(void); } TABLE[] = {
    ROW(cuInit), ROW(cuDeviceGetCount), ROW(cuDeviceGet), ROW(cuDeviceGetName), ROW(cuDeviceGetAttribute),
    ROW(cuDevicePrimaryCtxRetain), ROW(cuDevicePrimaryCtxRelease), ROW(cuCtxPushCurrent), ROW(cuCtxPopCurrent), ROW(cuCtxSynchronize),
    ROW(cuMemAlloc), ROW(cuMemFree), ROW(cuMemcpyHtoDAsync), ROW(cuMemcpyDtoHAsync), ROW(cuMemcpyDtoDAsync),
    ROW(cuModuleLoadData), ROW(cuModuleUnload), ROW(cuModuleGetFunction), ROW(cuFuncSetAttribute), ROW(cuLaunchKernel),
    ROW(cuStreamCreate), ROW(cuStreamDestroy), ROW(cuStreamSynchronize), ROW(cuStreamWaitEvent),
    ROW(cuStreamBeginCapture), ROW(cuStreamEndCapture), ROW(cuGraphInstantiateWithFlags), ROW(cuGraphDestroy),
    ROW(cuGraphExecDestroy), ROW(cuGraphLaunch), ROW(cuEventCreate), ROW(cuEventDestroy), ROW(cuEventRecord),
    ROW(cuEventRecordWithFlags), ROW(cuEventSynchronize), ROW(cuEventElapsedTime), ROW(cuGetErrorName),
    ROW(cuGetErrorString),
};

Code cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* status) {
  (void)version, (void)flags;
  if (status) *status = 0;
  for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; ++i)
    if (!strcmp(name, TABLE[i].name)) return *function = (void*)TABLE[i].function, 0;
  return *function = (void*)missing, 0;
}
Code cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
