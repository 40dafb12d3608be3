/* What the table of candidates and trial.c share. */
#include <stdint.h>

typedef void (*function)(void);

/* A candidate: its two kernels, how to call the second of `reads` + 1 parameters, and what they take in bytes. */
struct candidate {
  function pack, kernel;
  int (*invoke)(function kernel, void* const* args);
  int reads;
  uint64_t packed_bytes, workspace_bytes;
};

extern const struct candidate CANDIDATES[];
extern const int CANDIDATE_COUNT;
