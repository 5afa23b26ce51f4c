// CUDA path of unfilter_streams: a thread takes 8 elements of a block, then goes on by the number of threads of the block, so that
// blocks of any size and type are done whatever the grid. Streams begin at any byte; eight bytes are read as two aligned words.
#include <cuda_runtime.h>

#include "unfilter/streams.h"

namespace {

constexpr int kThreads = 256;

// The eight bytes at `p`. The words read hold bytes of [p, p + 8) each, so none beyond the allocation's last word is touched.
__device__ uint64_t load_eight(const uint8_t* p) {
  const uint64_t* word = (const uint64_t*)((uintptr_t)p & ~(uintptr_t)7);
  const int shift = 8 * (int)((uintptr_t)p & 7);
  return shift ? word[0] >> shift | word[1] << (64 - shift) : word[0];
}

// Bytes 0 to 3 of `lo` and `hi`, interleaved.
__device__ uint64_t interleaved(uint64_t lo, uint64_t hi) {
  uint64_t pairs = 0;
  for (int i = 0; i < 4; ++i) pairs |= ((lo >> (8 * i) & 0xFF) | (hi >> (8 * i) & 0xFF) << 8) << (16 * i);
  return pairs;
}

__device__ void store_sixteen(uint8_t* out, uint64_t first, uint64_t second) { *(ulonglong2*)out = ulonglong2{first, second}; }

// One group of two-byte elements that is whole and goes to a 16-byte boundary.
__device__ void unfilter_pairs(const dse::Streams& plane, uint8_t* out, int64_t n, int32_t filter, int64_t group) {
  const int64_t at = 8 * group;
  if (filter == DSE_FILTER_NONE) {
    const uint8_t* in = plane(0) + 2 * at;
    return store_sixteen(out + 2 * at, load_eight(in), load_eight(in + 8));
  }
  uint64_t lo, hi;
  if (filter == DSE_FILTER_SHUFFLE) {
    lo = load_eight(plane(0) + at);
    hi = load_eight(plane(1) + at);
  } else {
    lo = dse::gathered_bits(plane(0) + group, n / 8);
    hi = dse::gathered_bits(plane(1) + group, n / 8);
  }
  store_sixteen(out + 2 * at, interleaved(lo, hi), interleaved(lo >> 32, hi >> 32));
}

__global__ void streams_kernel(dse_unfilter_streams_args a, int64_t lanes, int64_t first, int64_t total) {
  const int64_t item = first + (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (item >= total) return;
  const dse::BlockRow r = dse::block_row(a, item / lanes);
  if (!dse::block_is_legal(a, r)) return;
  const int32_t typesize = (int32_t)r.typesize;
  const int64_t n = r.bytes / typesize;
  const int32_t filter = dse::is_filtered((int32_t)r.filter, n) ? (int32_t)r.filter : (int32_t)DSE_FILTER_NONE;
  const dse::Streams plane{&a, r.first, r.count, n};
  uint8_t* out = a.out + r.target;
  const bool pairs = typesize == 2 && ((uintptr_t)out & 15) == 0;
  for (int64_t group = item % lanes; group < dse::groups_of(r.bytes, typesize); group += lanes) {
    if (pairs && 8 * group + 8 <= n)
      unfilter_pairs(plane, out, n, filter, group);
    else
      dse::unfilter_group(plane, out, r.bytes, typesize, filter, group);
  }
}

}  // namespace

int dse_unfilter_streams_cuda(const dse_unfilter_streams_args* args, void* stream) {
  dse_unfilter_streams_args a = *args;
  if (!dse::counts_are_legal(a)) return DSE_BAD_ARGUMENT;
  int64_t lanes = dse::groups_of(a.block_bytes, 2), total = a.num_blocks * lanes;
  constexpr int64_t kStep = (int64_t)kThreads << 22;  // items of one launch, so that its grid is never too long
  for (int64_t first = 0; first < total; first += kStep) {
    const int64_t now = total - first < kStep ? total - first : kStep;
    void* parameters[] = {&a, &lanes, &first, &total};
    const cudaError_t error = cudaLaunchKernel(streams_kernel, dim3((unsigned)((now + kThreads - 1) / kThreads)), dim3(kThreads), parameters, 0,
                                               (cudaStream_t)stream);
    if (error != cudaSuccess) return DSE_CUDA_ERROR + (int)error;
  }
  return DSE_OK;
}
