// CUDA path of unfilter: a thread takes 8 elements. Neighbouring threads read neighbouring bytes of each plane and write
// neighbouring pieces of the output; two-byte elements go as one 16-byte store where addresses allow.
#include <cuda_runtime.h>

#include "unfilter/unfilter.h"

namespace {

constexpr int kThreads = 256;

// Eight elements of two bytes: low bytes `lo`, high bytes `hi`, interleaved.
__device__ void store_pairs(uint64_t lo, uint64_t hi, uint8_t* out) {
  uint64_t pair[2] = {0, 0};
  for (int i = 0; i < 8; ++i) pair[i / 4] |= ((lo >> (8 * i) & 0xFF) | (hi >> (8 * i) & 0xFF) << 8) << (16 * (i % 4));
  *(ulonglong2*)out = ulonglong2{pair[0], pair[1]};
}

__device__ bool aligned(const void* p, unsigned bytes) { return ((uintptr_t)p & (bytes - 1)) == 0; }

__global__ void unfilter_kernel(dse_unfilter_args a, int64_t blocks, int64_t groups, int64_t first, int64_t total) {
  const int64_t item = first + (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (item >= total) return;
  const int64_t group = item % groups, block = item / groups;
  const int64_t start = block % blocks * a.block_bytes, left = a.chunk_bytes - start;
  const int64_t m = left < a.block_bytes ? left : a.block_bytes, at = block / blocks * a.chunk_bytes + start, n = m / a.typesize;
  if (group >= dse::groups_of(m, a.typesize)) return;
  const uint8_t *in = a.in + at, *lo = in + 8 * group, *hi = lo + n;
  uint8_t* out = a.out + at;
  const bool whole = a.filter == DSE_FILTER_SHUFFLE && a.typesize == 2 && 8 * group + 8 <= n;
  if (whole && aligned(lo, 8) && aligned(hi, 8) && aligned(out + 16 * group, 16))
    store_pairs(*(const uint64_t*)lo, *(const uint64_t*)hi, out + 16 * group);
  else
    dse::unfilter_group(dse::Whole{in, n}, out, m, a.typesize, a.filter, group);
}

}  // namespace

int dse_unfilter_cuda(const dse_unfilter_args* args, void* stream) {
  dse_unfilter_args a = *args;
  if (!dse::counts_are_legal(a)) return DSE_BAD_ARGUMENT;
  if (a.chunk_bytes > 0 && a.chunk_bytes < a.block_bytes) a.block_bytes = (int32_t)a.chunk_bytes;
  int64_t blocks = (a.chunk_bytes + a.block_bytes - 1) / a.block_bytes, groups = dse::groups_of(a.block_bytes, a.typesize);
  int64_t total = a.num_chunks * blocks * groups;
  constexpr int64_t kStep = (int64_t)kThreads << 22;  // items of one launch, so that its grid is never too long
  for (int64_t first = 0; first < total; first += kStep) {
    const int64_t now = total - first < kStep ? total - first : kStep;
    void* parameters[] = {&a, &blocks, &groups, &first, &total};
    const cudaError_t error = cudaLaunchKernel(unfilter_kernel, dim3((unsigned)((now + kThreads - 1) / kThreads)), dim3(kThreads), parameters, 0,
                                               (cudaStream_t)stream);
    if (error != cudaSuccess) return DSE_CUDA_ERROR + (int)error;
  }
  return DSE_OK;
}
