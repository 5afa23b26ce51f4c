// CUDA path of the augmentation, in three launches: a block a (view, sample, band) for the band means, a thread a
// (view, sample, band) for T m + b, then a thread an output pixel.
#include <cuda_runtime.h>

#include "augment/augment.h"

namespace {

constexpr int kThreads = 256;

// mean[item * num_bands + band] of the crop's centered pixels.
__global__ void mean_kernel(dse_augment_args a, float* mean) {
  __shared__ long long total[kThreads], count[kThreads];
  const int64_t item = blockIdx.x / a.num_bands;
  const int32_t band = (int32_t)(blockIdx.x % a.num_bands);
  const dse::Plane p = dse::plane_of(a, item % a.num_samples, band);
  const int64_t area = (int64_t)a.size * a.size;
  long long sum = 0, present = 0;
  for (int64_t k = threadIdx.x; k < area; k += kThreads) {
    const int32_t y = a.offset[2 * item] + (int32_t)(k / a.size), x = a.offset[2 * item + 1] + (int32_t)(k % a.size);
    const int32_t raw = p.data[(int64_t)(y / p.factor) * p.width + x / p.factor];
    sum += raw == a.nodata ? 0 : raw;
    present += raw != a.nodata;
  }
  total[threadIdx.x] = sum;
  count[threadIdx.x] = present;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      total[threadIdx.x] += total[threadIdx.x + half];
      count[threadIdx.x] += count[threadIdx.x + half];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) mean[blockIdx.x] = (float)dse::centered_mean(total[0], count[0], a.center[band]);
}
