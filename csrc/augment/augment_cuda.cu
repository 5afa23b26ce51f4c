// CUDA path of the augmentation in two launches: a block a (view, sample, band) for the band means, then a block for
// every kPixels output pixels of a (view, sample). Simple and coalesced; the crop is read from memory or L2 twice.
#include <cuda_runtime.h>

#include "augment/augment.h"

// The block's shared memory, of the size given at launch.
extern __shared__ long long dse_shared[];

namespace {

constexpr int kReducers = 256;  // threads of a block of means
constexpr int kPixels = 64;     // threads of a block of pixels, and its pixels

// mean[item * num_bands + band] of the crop's centered pixels. The integer sums make it independent of thread order.
__global__ void mean_kernel(dse_augment_args a, double* mean) {
  long long *total = dse_shared, *count = dse_shared + kReducers;
  const int64_t item = blockIdx.x / a.num_bands;
  const int32_t band = (int32_t)(blockIdx.x % a.num_bands);
  const dse::Plane p = dse::plane_of(a, item % a.num_samples, band);
  const int64_t area = (int64_t)a.size * a.size;
  const int thread = (int)threadIdx.x;
  long long sum = 0, present = 0;
  for (int64_t k = thread; k < area; k += kReducers) {
    const int32_t y = a.offset[2 * item] + (int32_t)(k / a.size), x = a.offset[2 * item + 1] + (int32_t)(k % a.size);
    const int32_t raw = p.data[(int64_t)(y / p.factor) * p.width + x / p.factor];
    sum += raw == a.nodata ? 0 : raw;
    present += raw != a.nodata;
  }
  total[thread] = sum;
  count[thread] = present;
  __syncthreads();
  for (int half = kReducers / 2; half > 0; half /= 2) {
    if (thread < half) {
      total[thread] += total[thread + half];
      count[thread] += count[thread + half];
    }
    __syncthreads();
  }
  if (thread == 0) mean[blockIdx.x] = dse::centered_mean(total[0], count[0], a.center[band]);
}

// Shared memory of pixel_kernel, for C bands: A's columns and T m + b, then kPixels centered values and flags a band.
struct Shared {
  float *columns, *shift, *x;
  unsigned char* absent;
};

__device__ Shared shared_of(float* memory, int32_t num_bands) {
  float* shift = memory + num_bands * num_bands;
  float* x = shift + num_bands;
  return Shared{memory, shift, x, (unsigned char*)(x + num_bands * kPixels)};
}

size_t shared_bytes(int32_t num_bands) {
  return sizeof(float) * num_bands * (num_bands + 1 + kPixels) + num_bands * kPixels;
}

__device__ void load_operator(const dse_augment_args& a, const double* mean, int64_t item, const Shared& s) {
  const int32_t n = a.num_bands;
  for (int32_t k = threadIdx.x; k < n * n; k += kPixels) s.columns[(k % n) * n + k / n] = a.A[item * n * n + k];
  for (int32_t i = threadIdx.x; i < n; i += kPixels)
    s.shift[i] = dse::shift_of(a.T + (item * n + i) * n, mean + item * n, a.b[item * n + i], n);
}

// The thread's own pixel, all bands.
__device__ void load_pixel(const dse_augment_args& a, int64_t item, int64_t pixel, const Shared& s) {
  const dse::Walk w = dse::walk_of(a.code[item], a.size);
  const int32_t y = (int32_t)(pixel / a.size), x = (int32_t)(pixel % a.size);
  const int32_t row = a.offset[2 * item] + w.row0 + y * w.row_dy + x * w.row_dx;
  const int32_t col = a.offset[2 * item + 1] + w.col0 + y * w.col_dy + x * w.col_dx;
  for (int32_t j = 0; j < a.num_bands; ++j) {
    const dse::Plane p = dse::plane_of(a, item % a.num_samples, j);
    const int32_t raw = p.data[(int64_t)(row / p.factor) * p.width + col / p.factor];
    s.x[j * kPixels + threadIdx.x] = raw == a.nodata ? 0.0f : (float)raw - a.center[j];
    s.absent[j * kPixels + threadIdx.x] = raw == a.nodata;
  }
}

__device__ float value_of(const dse_augment_args& a, const Shared& s, int32_t pixel, int32_t channel) {
  if (channel >= a.num_bands || s.absent[channel * kPixels + pixel]) return 0.0f;
  float sum = s.shift[channel];
  for (int32_t j = 0; j < a.num_bands; ++j) sum += s.columns[j * a.num_bands + channel] * s.x[j * kPixels + pixel];
  return sum;
}

__device__ void store(const dse_augment_args& a, int64_t at, float y) {
  if (a.out_type == DSE_FLOAT32) ((float*)a.out)[at] = y;
  else if (a.out_type == DSE_BFLOAT16) ((uint16_t*)a.out)[at] = dse::to_bfloat16(y);
  else ((uint16_t*)a.out)[at] = dse::to_float16(y);
}

__global__ void pixel_kernel(dse_augment_args a, const double* mean, int64_t blocks_per_item) {
  const Shared s = shared_of((float*)dse_shared, a.num_bands);
  const int64_t item = blockIdx.x / blocks_per_item, area = (int64_t)a.size * a.size;
  const int64_t first = (blockIdx.x % blocks_per_item) * kPixels;
  const int32_t num = area - first < kPixels ? (int32_t)(area - first) : kPixels;
  load_operator(a, mean, item, s);
  if ((int32_t)threadIdx.x < num) load_pixel(a, item, first + threadIdx.x, s);
  __syncthreads();
  // Neighbouring threads write neighbouring elements.
  for (int32_t k = threadIdx.x; k < num * a.out_channels; k += kPixels)
    store(a, (item * area + first) * a.out_channels + k, value_of(a, s, k / a.out_channels, k % a.out_channels));
}

}  // namespace

int dse_augment_cuda(const dse_augment_args* args, double* mean, void* stream) {
  dse_augment_args a = *args;
  const int64_t items = a.num_views * a.num_samples, area = (int64_t)a.size * a.size;
  int64_t blocks_per_item = (area + kPixels - 1) / kPixels;
  if (!dse::counts_are_legal(a) || items * blocks_per_item > INT32_MAX || items * a.num_bands > INT32_MAX) return DSE_BAD_ARGUMENT;
  if (items == 0) return DSE_OK;
  void* mean_args[] = {&a, &mean};
  cudaError_t error = cudaLaunchKernel(mean_kernel, dim3((unsigned)(items * a.num_bands)), dim3(kReducers), mean_args,
                                       2 * kReducers * sizeof(long long), (cudaStream_t)stream);
  if (error != cudaSuccess) return DSE_CUDA_ERROR + (int)error;
  const double* means = mean;
  void* pixel_args[] = {&a, &means, &blocks_per_item};
  error = cudaLaunchKernel(pixel_kernel, dim3((unsigned)(items * blocks_per_item)), dim3(kPixels), pixel_args,
                           shared_bytes(a.num_bands), (cudaStream_t)stream);
  return error == cudaSuccess ? DSE_OK : DSE_CUDA_ERROR + (int)error;
}

int dse_has_cuda(void) { return 1; }
