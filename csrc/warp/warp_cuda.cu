// CUDA path of warp and blur: a thread takes one output number; neighbouring threads are neighbouring channels, then pixels,
// so stores are coalesced and loads nearly so. Blur goes through float scratch, rows then columns.
#include <cuda_runtime.h>

#include "warp/warp.h"

extern __shared__ long long dse_shared[];

namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void warp_kernel(dse_warp_args a, int64_t blocks_per_sample) {
  const int64_t sample = blockIdx.x / blocks_per_sample, size = (int64_t)a.out_height * a.out_width * a.channels;
  const int64_t k = blockIdx.x % blocks_per_sample * kThreads + threadIdx.x;
  if (k >= size) return;
  const int64_t pixel = k / a.channels;
  const dse::Mix m = dse::mix_of(a, a.theta + 6 * sample, (int32_t)(pixel / a.out_width), (int32_t)(pixel % a.out_width));
  const T* in = (const T*)a.in + sample * a.height * a.width * a.channels;
  dse::store_float((T*)a.out + sample * size + k, dse::mixed(in, m, a.channels, (int32_t)(k % a.channels)));
}

// One pass along an axis of `n` pixels that are `step` numbers apart; `at` is the pixel's own number in its image.
template <typename T>
__device__ float blurred(const T* image, int64_t at, int64_t position, int64_t n, int64_t step, const float* weights, int32_t radius) {
  float sum = weights[0] * dse::load_as_float(image + at);
  for (int32_t k = 1; k <= radius; ++k) {
    const int64_t before = dse::mirrored(position - k, n) - position, after = dse::mirrored(position + k, n) - position;
    sum += weights[k] * (dse::load_as_float(image + at + before * step) + dse::load_as_float(image + at + after * step));
  }
  return sum;
}

// Pass 0 blurs along x from `in` to scratch, pass 1 along y from scratch to `out`.
template <typename T>
__global__ void blur_kernel(dse_blur_args a, int64_t blocks_per_sample, int32_t pass) {
  float* weights = (float*)dse_shared;
  const int64_t sample = blockIdx.x / blocks_per_sample, size = (int64_t)a.height * a.width * a.channels, row = (int64_t)a.width * a.channels;
  const float sigma = a.sigma[sample];
  if (threadIdx.x == 0 && sigma > 0.0f) dse::gaussian_weights(sigma, a.radius, weights);
  __syncthreads();
  const int64_t k = blockIdx.x % blocks_per_sample * kThreads + threadIdx.x;
  if (k >= size) return;
  const T* in = (const T*)a.in + sample * size;
  float* scratch = a.scratch + sample * size;
  if (pass == 0)
    scratch[k] = sigma > 0.0f ? blurred(in, k, k / a.channels % a.width, a.width, a.channels, weights, a.radius) : dse::load_as_float(in + k);
  else
    dse::store_float((T*)a.out + sample * size + k,
                     sigma > 0.0f ? blurred(scratch, k, k / row, a.height, row, weights, a.radius) : scratch[k]);
}

int status_of(cudaError_t error) { return error == cudaSuccess ? DSE_OK : DSE_CUDA_ERROR + (int)error; }

template <typename T>
int launch_warp(dse_warp_args a, int64_t blocks_per_sample, cudaStream_t stream) {
  void* parameters[] = {&a, &blocks_per_sample};
  return status_of(cudaLaunchKernel(warp_kernel<T>, dim3((unsigned)(a.num_samples * blocks_per_sample)), dim3(kThreads), parameters, 0, stream));
}

template <typename T>
int launch_blur(dse_blur_args a, int64_t blocks_per_sample, cudaStream_t stream) {
  for (int32_t pass = 0; pass < 2; ++pass) {
    void* parameters[] = {&a, &blocks_per_sample, &pass};
    const cudaError_t error = cudaLaunchKernel(blur_kernel<T>, dim3((unsigned)(a.num_samples * blocks_per_sample)), dim3(kThreads), parameters,
                                               (a.radius + 1) * sizeof(float), stream);
    if (error != cudaSuccess) return status_of(error);
  }
  return DSE_OK;
}

}  // namespace

int dse_warp_cuda(const dse_warp_args* args, void* stream) {
  const dse_warp_args& a = *args;
  if (!dse::counts_are_legal(a)) return DSE_BAD_ARGUMENT;
  const int64_t blocks = ((int64_t)a.out_height * a.out_width * a.channels + kThreads - 1) / kThreads;
  if (a.num_samples * blocks > INT32_MAX) return DSE_BAD_ARGUMENT;
  if (a.num_samples == 0) return DSE_OK;
  if (a.type == DSE_FLOAT32) return launch_warp<float>(a, blocks, (cudaStream_t)stream);
  if (a.type == DSE_BFLOAT16) return launch_warp<dse::BFloat16>(a, blocks, (cudaStream_t)stream);
  return launch_warp<dse::Float16>(a, blocks, (cudaStream_t)stream);
}

int dse_blur_cuda(const dse_blur_args* args, void* stream) {
  const dse_blur_args& a = *args;
  if (!dse::counts_are_legal(a)) return DSE_BAD_ARGUMENT;
  const int64_t blocks = ((int64_t)a.height * a.width * a.channels + kThreads - 1) / kThreads;
  if (a.num_samples * blocks > INT32_MAX) return DSE_BAD_ARGUMENT;
  if (a.num_samples == 0) return DSE_OK;
  if (a.type == DSE_FLOAT32) return launch_blur<float>(a, blocks, (cudaStream_t)stream);
  if (a.type == DSE_BFLOAT16) return launch_blur<dse::BFloat16>(a, blocks, (cudaStream_t)stream);
  return launch_blur<dse::Float16>(a, blocks, (cudaStream_t)stream);
}
