// Every exported function and argument struct of libdsengine. Plain C ABI: no Python.h, no torch headers.
// Functions return DSE_OK or one of the codes below and never throw; dse_message gives the words.
#pragma once
#include <stdint.h>

#define DSE_API extern "C" __attribute__((visibility("default")))

enum { DSE_MAX_SOURCES = 8, DSE_MAX_BANDS = 64, DSE_MAX_CHANNELS = 80, DSE_MAX_STREAM_SOURCES = 32 };

enum dse_status {
  DSE_OK = 0,
  DSE_BAD_ARGUMENT = 1,  // a count or size is out of range
  DSE_BAD_BAND = 2,      // a row of the band table names no source or channel, or sources differ in extent
  DSE_BAD_OFFSET = 3,    // a crop leaves the patch
  DSE_BAD_CODE = 4,      // a dihedral code is not 0..7
  DSE_NO_CUDA = 5,       // built without nvcc
  DSE_BAD_ISA = 6,       // not an instruction set of this CPU
  DSE_NO_MEMORY = 7,
  DSE_BAD_BLOCK = 8,     // a block or one of its streams leaves its buffer
  DSE_BAD_CHUNK = 9,     // a chunk could not be read, fails its crc32c or does not decode
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

// What byte-wise filters of a compressor left, undone: chunks of `chunk_bytes`, each in blocks of `block_bytes` (the last may be
// shorter) that were filtered on their own. in and out do not overlap. See unfilter/unfilter.h.
typedef struct {
  const uint8_t* in;
  uint8_t* out;
  int64_t num_chunks, chunk_bytes;
  int32_t block_bytes, typesize;
  int32_t filter;  // dse_filter
} dse_unfilter_args;

enum dse_filter { DSE_FILTER_NONE = 0, DSE_FILTER_SHUFFLE = 1, DSE_FILTER_BITSHUFFLE = 2 };

DSE_API int dse_unfilter_cpu(const dse_unfilter_args* args, int32_t num_threads);
DSE_API int dse_unfilter_cuda(const dse_unfilter_args* args, void* stream);

// The same for blocks whose streams lie anywhere in several buffers, each block going to its own place. See unfilter/streams.h.
// A block that leaves a buffer is refused on the CPU and skipped on a GPU, where it cannot be reported without waiting.
typedef struct {
  const uint8_t* source[DSE_MAX_STREAM_SOURCES];
  int64_t source_bytes[DSE_MAX_STREAM_SOURCES];
  uint8_t* out;
  const int64_t* blocks;   // (num_blocks, 6): offset in out, bytes, first stream, streams (1 or typesize), typesize, dse_filter
  const int64_t* streams;  // (num_streams, 2): source, offset in it
  int64_t out_bytes, num_blocks, num_streams;
  int64_t block_bytes;  // of the usual block: how many threads one gets on a GPU
  int32_t num_sources;
} dse_unfilter_streams_args;

DSE_API int dse_unfilter_streams_cpu(const dse_unfilter_streams_args* args, int32_t num_threads);
DSE_API int dse_unfilter_streams_cuda(const dse_unfilter_streams_args* args, void* stream);

// Windows of chunks of the fixed-width codec: pixels of 1 or 2 bytes, all chunks of one size. See bitpack/bitpack.h.
typedef struct {
  const uint8_t* in;
  uint8_t* out;           // of each chunk its window, (planes, window_height, window_width)
  const int64_t* chunks;  // (num_chunks, 5): offset in `in`, bytes, offset in `out`, first row, first column
  int64_t in_bytes, out_bytes, num_chunks, planes;
  int32_t height, width, itemsize, window_height, window_width;
} dse_bitpack_args;

// A row that leaves a buffer or its chunk is refused, and so is damage, after all other chunks are decoded. On a GPU such a row is
// skipped, and of a damaged chunk the tiles that cannot be found are 0 or left as they were.
DSE_API int dse_bitpack_cpu(const dse_bitpack_args* args, int32_t num_threads, int32_t isa);
DSE_API int dse_bitpack_cuda(const dse_bitpack_args* args, void* stream);

// One chunk of (planes, height, width) pixels; predict: tiles may be coded by what their neighbours in it say. nodata: a value whose
// pixels are masked where that is cheaper, or one that no pixel has. Returns its bytes in `out`, which has dse_bitpack_bound of them;
// both return -1 for sizes that are out of range.
DSE_API int64_t dse_bitpack_encode(const void* in, uint8_t* out, int64_t planes, int64_t height, int64_t width, int32_t itemsize, int32_t is_signed,
                                   int32_t predict, int32_t nodata, int32_t isa);
DSE_API int64_t dse_bitpack_bound(int64_t planes, int64_t height, int64_t width, int32_t itemsize);

// Chunks of shard files, or of memory, to patches: read, crc32c compared, decoded. See decode/read_cpu.cpp.
enum dse_compressor {
  DSE_STORED = 0,
  DSE_BLOSC = 1,   // Blosc 1 frames of LZ4
  DSE_RAW = 2,     // left compressed, crc32c included
  DSE_BITPACK = 3  // the fixed-width codec
};
enum { DSE_READ_SLACK = 64 };  // bytes after a chunk in memory that may be read; what they are does not matter

typedef struct {
  const char *prefix, *suffix;  // around a shard's number in decimal: its path
  const uint8_t* data;          // not null: chunks lie here, and nothing is read
  uint8_t* out;                 // (num_patches, patch_bytes)
  int64_t data_bytes, num_patches, patch_bytes;
  int32_t compressor;  // dse_compressor; DSE_RAW: patch_bytes is 1, and a chunk begins at its row
  int32_t checked;     // a crc32c closes each chunk
  int32_t fill;        // int16 value of patches that are not stored
  int32_t height, width;  // DSE_BITPACK: of a patch of int16
} dse_read_array;

typedef struct {
  const dse_read_array* arrays;
  const int64_t* chunks;  // (num_chunks, 5): array, shard, offset in it or in data, bytes (0: not stored), row of out; best in file order
  int32_t* status;        // (num_chunks,): DSE_OK or DSE_BAD_CHUNK
  uint8_t* scratch;       // (num_threads, scratch_bytes)
  int64_t num_arrays, num_chunks;
  int64_t scratch_bytes;  // dse_read_scratch of the largest chunk and patch
} dse_read_args;

DSE_API int dse_read_cpu(const dse_read_args* args, int32_t num_threads, int32_t isa);
DSE_API int64_t dse_read_scratch(int64_t chunk_bytes, int64_t patch_bytes);

// Geometric views and blur of channels-last images, in and out of type `type`; arithmetic in float. See warp/warp.h.
typedef struct {
  const void* in;      // (num_samples, height, width, channels)
  void* out;           // (num_samples, out_height, out_width, channels)
  const float* theta;  // (num_samples, 2, 3): input row and column of output pixel (y, x) are theta (y, x, 1)
  int64_t num_samples;
  int32_t height, width, out_height, out_width, channels;
  int32_t border;  // dse_border
  int32_t type;    // dse_type
} dse_warp_args;

typedef struct {
  const void* in;      // (num_samples, height, width, channels)
  void* out;           // the same; may be `in` itself
  const float* sigma;  // (num_samples,) pixels; 0 and below: the image as it is
  float* scratch;      // CUDA: (num_samples, height, width, channels) float32; CPU: not used
  int64_t num_samples;
  int32_t height, width, channels;
  int32_t radius;  // taps on each side, at most DSE_MAX_RADIUS and below height and width
  int32_t type;    // dse_type
} dse_blur_args;

enum { DSE_MAX_RADIUS = 64 };
enum dse_border { DSE_BORDER_ZEROS = 0, DSE_BORDER_EDGE = 1, DSE_BORDER_MIRROR = 2 };

DSE_API int dse_warp_cpu(const dse_warp_args* args, int32_t num_threads, int32_t isa);
DSE_API int dse_warp_cuda(const dse_warp_args* args, void* stream);
DSE_API int dse_blur_cpu(const dse_blur_args* args, int32_t num_threads, int32_t isa);
DSE_API int dse_blur_cuda(const dse_blur_args* args, void* stream);

// Triplet margin loss of float32 rows, forward and gradients in one pass; kernels/triplet/reference.py is the definition.
typedef struct {
  const float *anchor, *positive, *negative;  // (rows, channels, cells), or (rows, cells, channels) when channels_last
  float *grad_anchor, *grad_positive;         // like them, each written whole; times `scale`
  float* grad_negative;                       // the same; rolled: not used, as its shares go into grad_positive
  float* hinge;                               // (rows, cells): d(a, p) - d(a, n) + margin
  int64_t rows, shift;                        // 0: negatives are given; else row i takes positive[(i - shift) mod rows], 0 < shift < rows
  int32_t channels, cells, channels_last;
  int32_t distance;  // dse_distance
  int32_t soft;      // gradient sigmoid(hinge) instead of [hinge > 0]
  float margin, scale;
} dse_triplet_args;

enum dse_distance { DSE_EUCLIDEAN = 0, DSE_L1 = 1, DSE_SQUARED = 2 };

DSE_API int dse_triplet_cpu(const dse_triplet_args* args, int32_t num_threads, int32_t isa);

DSE_API const char* dse_message(int status);
DSE_API int dse_best_isa(void);  // dse_isa in use on this CPU
DSE_API int dse_has_cuda(void);  // 1 when the CUDA half is compiled in
