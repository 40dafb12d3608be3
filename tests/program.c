/* What a user of the C library writes: reads the weights and an input, prints nothing, writes the output. */
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

static void* block(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

static void* read_file(const char* path, size_t* bytes) {
  FILE* file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) exit(10);
  *bytes = (size_t)ftell(file);
  rewind(file);
  void* data = block(*bytes);
  if (!data || fread(data, 1, *bytes, file) != *bytes || fclose(file)) exit(11);
  return data;
}

int main(int argc, char** argv) {
  if (argc != 5) return 12; /* weights.safetensors, input, output, threads */
  size_t bytes;
  const char* weights = read_file(argv[1], &bytes);
  if (bytes != MODEL_WEIGHTS_OFFSET + MODEL_WEIGHTS_BYTES) return 13;
  const void* in[MODEL_INPUTS] = {read_file(argv[2], &bytes)};
  if (bytes != MODEL_INPUT_0_BYTES) return 14;
  void* out[MODEL_OUTPUTS] = {block(MODEL_OUTPUT_0_BYTES)};

  if (model_set_threads(atoi(argv[4]))) return 15;
  void* packed = block(model_packed_bytes());
  void* workspace = block(model_workspace_bytes());
  if (model_init(weights + MODEL_WEIGHTS_OFFSET, packed)) return 16;
  for (int i = 0; i < 3; ++i)
    if (model_run(in, out, packed, workspace)) return 17;

  FILE* file = fopen(argv[3], "wb");
  if (!file || fwrite(out[0], 1, MODEL_OUTPUT_0_BYTES, file) != MODEL_OUTPUT_0_BYTES || fclose(file)) return 18;
  model_close();
  return 0;
}
