// Every exported function and argument struct of libdsengine. Plain C ABI: no Python.h, no torch headers.
// Functions return DSE_OK or one of the codes below and never throw; dse_message gives the words.
#pragma once
#include <stdint.h>

#define DSE_API extern "C" __attribute__((visibility("default")))

enum { DSE_MAX_SOURCES = 8, DSE_MAX_BANDS = 64, DSE_MAX_CHANNELS = 80 };

enum dse_status {
  DSE_OK = 0,
  DSE_BAD_ARGUMENT = 1,  // a count or size is out of range
  DSE_BAD_BAND = 2,      // a row of the band table names no source or channel, or sources differ in extent
  DSE_BAD_OFFSET = 3,    // a crop leaves the patch
  DSE_BAD_CODE = 4,      // a dihedral code is not 0..7
  DSE_NO_CUDA = 5,       // built without nvcc
  DSE_BAD_ISA = 6,       // not an instruction set of this CPU
  DSE_CUDA_ERROR = 1000  // 1000 + cudaError_t
};

enum dse_type { DSE_FLOAT32 = 0, DSE_BFLOAT16 = 1, DSE_FLOAT16 = 2 };

// One contiguous (num_samples, channels, height, width) int16 array.
typedef struct {
  const int16_t* data;
  int32_t channels, height, width;
} dse_source;

// y = A (r - center) + T mean(r - center) + b for every pixel r of a crop; see augment/augment.h for the details.
typedef struct {
  dse_source source[DSE_MAX_SOURCES];
  const int32_t* bands;   // (num_bands, 3): source, channel, pixels of the finest grid per pixel
  const float* center;    // (num_bands,) raw units
  const int32_t* offset;  // (num_views, num_samples, 2): y, x on the finest grid
  const int32_t* code;    // (num_views, num_samples): dihedral 0..7
  const float* A;         // (num_views, num_samples, num_bands, num_bands)
  const float* T;         // the same
  const float* b;         // (num_views, num_samples, num_bands)
  void* out;              // (num_views, num_samples, size, size, out_channels)
  int64_t num_views, num_samples;
  int32_t num_sources, num_bands, out_channels, size;
  int32_t nodata;    // this raw value has no data; any value outside int16 means that all pixels have
  int32_t out_type;  // dse_type
} dse_augment_args;

enum dse_isa { DSE_ISA_BEST = 0, DSE_ISA_PORTABLE = 1, DSE_ISA_AVX2 = 2, DSE_ISA_AVX512 = 3 };

// num_threads >= 1; the result does not depend on it. isa: DSE_ISA_BEST but in tests; one that this CPU lacks is refused.
DSE_API int dse_augment_cpu(const dse_augment_args* args, int32_t num_threads, int32_t isa);

// All pointers on the device; mean is scratch, (num_views, num_samples, num_bands) float64. Asynchronous on `stream`
// (a cudaStream_t). Offsets, codes and bands cannot be checked here without waiting for the device: the caller does.
DSE_API int dse_augment_cuda(const dse_augment_args* args, double* mean, void* stream);

DSE_API const char* dse_message(int status);
DSE_API int dse_best_isa(void);  // dse_isa in use on this CPU
DSE_API int dse_has_cuda(void);  // 1 when the CUDA half is compiled in
