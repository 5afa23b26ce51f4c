// CPU path of warp and blur: one thread takes one image at a time. The loops run over channels, or over rows of pixels and
// channels together, and are compiled for three instruction sets, chosen at run time.
#include "warp/warp.h"

#include <atomic>
#include <new>
#include <vector>

#include "threads.h"

#define DSE_ALWAYS static inline __attribute__((always_inline))

namespace {

using namespace dse;

template <typename T>
DSE_ALWAYS void warp_image(const dse_warp_args& a, int64_t sample) {
  const int64_t in_size = (int64_t)a.height * a.width * a.channels, out_size = (int64_t)a.out_height * a.out_width * a.channels;
  const T* in = (const T*)a.in + sample * in_size;
  T* out = (T*)a.out + sample * out_size;
  for (int32_t y = 0; y < a.out_height; ++y)
    for (int32_t x = 0; x < a.out_width; ++x, out += a.channels) {
      const Mix m = mix_of(a, a.theta + 6 * sample, y, x);
      for (int32_t c = 0; c < a.channels; ++c) store_float(out + c, mixed(in, m, a.channels, c));
    }
}

// sum[j] = weights[0] middle[j] + sum over k of weights[k] (before[k][j] + after[k][j]), rows of n numbers.
DSE_ALWAYS void weighted_rows(const float* const* before, const float* const* after, const float* weights, int32_t radius, int64_t n, float* sum) {
  for (int64_t j = 0; j < n; ++j) sum[j] = weights[0] * before[0][j];
  for (int32_t k = 1; k <= radius; ++k) {
    const float *b = before[k], *c = after[k], w = weights[k];
    for (int64_t j = 0; j < n; ++j) sum[j] += w * (b[j] + c[j]);
  }
}

// Room for one image: rows blurred along x, a row with mirrored ends, a row of sums.
struct Scratch {
  std::vector<float> image, padded, sum;
};

template <typename T>
DSE_ALWAYS void blur_row(const dse_blur_args& a, const T* row, const float* weights, Scratch& s, float* out) {
  const int32_t r = a.radius, c = a.channels;
  for (int32_t x = -r; x < a.width + r; ++x)
    for (int32_t k = 0; k < c; ++k) s.padded[(int64_t)(x + r) * c + k] = load_as_float(row + mirrored(x, a.width) * c + k);
  const float *before[DSE_MAX_RADIUS + 1], *after[DSE_MAX_RADIUS + 1];
  for (int32_t k = 0; k <= r; ++k) {
    before[k] = s.padded.data() + (int64_t)(r - k) * c;
    after[k] = s.padded.data() + (int64_t)(r + k) * c;
  }
  weighted_rows(before, after, weights, r, (int64_t)a.width * c, out);
}

template <typename T>
DSE_ALWAYS void blur_image(const dse_blur_args& a, int64_t sample, Scratch& s) {
  const int64_t row_size = (int64_t)a.width * a.channels, size = row_size * a.height;
  const T* in = (const T*)a.in + sample * size;
  T* out = (T*)a.out + sample * size;
  const float sigma = a.sigma[sample];
  if (!(sigma > 0.0f)) {
    if (in != out) memcpy(out, in, size * sizeof(T));
    return;
  }
  float weights[DSE_MAX_RADIUS + 1];
  gaussian_weights(sigma, a.radius, weights);
  for (int32_t y = 0; y < a.height; ++y) blur_row(a, in + y * row_size, weights, s, s.image.data() + y * row_size);
  const float *before[DSE_MAX_RADIUS + 1], *after[DSE_MAX_RADIUS + 1];
  for (int32_t y = 0; y < a.height; ++y) {
    for (int32_t k = 0; k <= a.radius; ++k) {
      before[k] = s.image.data() + mirrored(y - k, a.height) * row_size;
      after[k] = s.image.data() + mirrored(y + k, a.height) * row_size;
    }
    weighted_rows(before, after, weights, a.radius, row_size, s.sum.data());
    for (int64_t j = 0; j < row_size; ++j) store_float(out + y * row_size + j, s.sum[j]);
  }
}

DSE_ALWAYS void warp_any(const dse_warp_args& a, int64_t sample) {
  if (a.type == DSE_FLOAT32) warp_image<float>(a, sample);
  else if (a.type == DSE_BFLOAT16) warp_image<BFloat16>(a, sample);
  else warp_image<Float16>(a, sample);
}

DSE_ALWAYS void blur_any(const dse_blur_args& a, int64_t sample, Scratch& s) {
  if (a.type == DSE_FLOAT32) blur_image<float>(a, sample, s);
  else if (a.type == DSE_BFLOAT16) blur_image<BFloat16>(a, sample, s);
  else blur_image<Float16>(a, sample, s);
}

void warp_portable(const dse_warp_args& a, int64_t sample) { warp_any(a, sample); }
void blur_portable(const dse_blur_args& a, int64_t sample, Scratch& s) { blur_any(a, sample, s); }
#if defined(__x86_64__)
#define DSE_AVX2 __attribute__((target("avx2,fma")))
#define DSE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")))
DSE_AVX2 void warp_avx2(const dse_warp_args& a, int64_t sample) { warp_any(a, sample); }
DSE_AVX2 void blur_avx2(const dse_blur_args& a, int64_t sample, Scratch& s) { blur_any(a, sample, s); }
DSE_AVX512 void warp_avx512(const dse_warp_args& a, int64_t sample) { warp_any(a, sample); }
DSE_AVX512 void blur_avx512(const dse_blur_args& a, int64_t sample, Scratch& s) { blur_any(a, sample, s); }
#endif

// The function of an instruction set; null where this CPU lacks it.
template <typename F>
F function_of(int32_t isa, F portable, F avx2, F avx512) {
  const int32_t best = dse_best_isa();
  if (isa == DSE_ISA_BEST) isa = best;
  if (isa > best || isa < DSE_ISA_PORTABLE) return nullptr;
  return isa == DSE_ISA_AVX512 ? avx512 : isa == DSE_ISA_AVX2 ? avx2 : portable;
}

}  // namespace

int dse_warp_cpu(const dse_warp_args* args, int32_t num_threads, int32_t isa) {
  if (!counts_are_legal(*args)) return DSE_BAD_ARGUMENT;
#if defined(__x86_64__)
  const auto image = function_of(isa, warp_portable, warp_avx2, warp_avx512);
#else
  const auto image = function_of(isa, warp_portable, warp_portable, warp_portable);
#endif
  if (!image) return DSE_BAD_ISA;
  std::atomic<int64_t> next{0};
  in_threads(num_threads < args->num_samples ? num_threads : args->num_samples, [&] {
    for (int64_t k = next++; k < args->num_samples; k = next++) image(*args, k);
  });
  return DSE_OK;
}

int dse_blur_cpu(const dse_blur_args* args, int32_t num_threads, int32_t isa) {
  const dse_blur_args& a = *args;
  if (!counts_are_legal(a)) return DSE_BAD_ARGUMENT;
#if defined(__x86_64__)
  const auto image = function_of(isa, blur_portable, blur_avx2, blur_avx512);
#else
  const auto image = function_of(isa, blur_portable, blur_portable, blur_portable);
#endif
  if (!image) return DSE_BAD_ISA;
  std::atomic<int64_t> next{0};
  std::atomic<bool> has_memory{true};
  in_threads(num_threads < a.num_samples ? num_threads : a.num_samples, [&] {
    try {
      const size_t row = (size_t)a.width * a.channels;
      Scratch s{std::vector<float>(row * a.height), std::vector<float>(row + 2 * (size_t)a.radius * a.channels), std::vector<float>(row)};
      for (int64_t k = next++; k < a.num_samples; k = next++) image(a, k, s);
    } catch (const std::bad_alloc&) {
      has_memory = false;
    }
  });
  return has_memory ? DSE_OK : DSE_NO_MEMORY;
}

#if !defined(DSENGINE_WITH_CUDA)
int dse_warp_cuda(const dse_warp_args*, void*) { return DSE_NO_CUDA; }
int dse_blur_cuda(const dse_blur_args*, void*) { return DSE_NO_CUDA; }
#endif
