// CPU path of warp and blur: one thread takes one image at a time. The loops run over channels, or over rows of pixels and
// channels together, and are compiled for three instruction sets, chosen at run time.
#include "warp/warp.h"

#include <atomic>
#include <new>
#include <type_traits>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace {

using namespace dse;

// N channels of one output pixel; as `mixed`, channel by channel.
template <int N, typename T>
DSE_ALWAYS void mix_lanes(const T* sample, const Mix& m, int32_t channels, T* out) {
  float sum[N] = {};
  for (int k = 0; k < 4; ++k) {
    if (m.weight[k] == 0.0f) continue;
    const T* pixel = sample + m.pixel[k] * channels;
    for (int32_t c = 0; c < N; ++c) sum[c] += m.weight[k] * load_as_float(pixel + c);
  }
  for (int32_t c = 0; c < N; ++c) store_float(out + c, sum[c]);
}

// All channels, N at a time; the last N overlap those before them and give them the same values again.
template <int N, typename T>
DSE_ALWAYS void mix_in_lanes(const T* in, const Mix& m, int32_t channels, T* out) {
  for (int32_t c = 0; c + N < channels; c += N) mix_lanes<N>(in + c, m, channels, out + c);
  mix_lanes<N>(in + channels - N, m, channels, out + channels - N);
}

template <typename T>
DSE_ALWAYS void mix_pixel(const T* in, const Mix& m, int32_t channels, T* out) {
  if (channels >= 16) mix_in_lanes<16>(in, m, channels, out);
  else if (channels >= 8) mix_in_lanes<8>(in, m, channels, out);
  else if (channels >= 4) mix_in_lanes<4>(in, m, channels, out);
  else mix_in_lanes<1>(in, m, channels, out);
}

// Output columns of a row whose four pixels all lie in the image; it is one stretch, as positions run along a line.
struct Stretch {
  int32_t begin, end;
};

DSE_ALWAYS Stretch inside(const dse_warp_args& a, double v, double u, double v_step, double u_step) {
  const auto fits = [&](int32_t x) {
    const double row = v + v_step * x, col = u + u_step * x;
    return row >= 0.0 && col >= 0.0 && row < a.height - 1 && col < a.width - 1;
  };
  Stretch s = {0, a.out_width};
  while (s.begin < s.end && !fits(s.begin)) ++s.begin;
  while (s.begin < s.end && !fits(s.end - 1)) --s.end;
  return s;
}

DSE_ALWAYS float share(float weight, float x) { return weight != 0.0f ? weight * x : 0.0f; }

// Columns begin .. end - 1 of a row of single-channel pixels, none of which needs a border: no branches, so it is vectorised.
template <typename T>
DSE_ALWAYS void warp_stretch(const T* in, int32_t width, double v, double u, double v_step, double u_step, Stretch s, T* out) {
  for (int32_t x = s.begin; x < s.end; ++x) {
    const double row = v + v_step * x, col = u + u_step * x;
    const int32_t top = (int32_t)row, left = (int32_t)col;
    const float dv = (float)(row - top), du = (float)(col - left);
    const T* at = in + (top * width + left);
    const float upper = share(1.0f - du, load_as_float(at)) + share(du, load_as_float(at + 1));
    const float lower = share(1.0f - du, load_as_float(at + width)) + share(du, load_as_float(at + width + 1));
    store_float(out + x, share(1.0f - dv, upper) + share(dv, lower));
  }
}

template <typename T>
DSE_ALWAYS void warp_row(const dse_warp_args& a, const float* theta, const T* in, int32_t y, T* out) {
  const double v = (double)theta[0] * y + theta[2], u = (double)theta[3] * y + theta[5];
  const bool is_single = a.channels == 1 && (int64_t)a.height * a.width < INT32_MAX;
  const Stretch s = is_single ? inside(a, v, u, theta[1], theta[4]) : Stretch{0, 0};
  if (is_single) warp_stretch(in, a.width, v, u, theta[1], theta[4], s, out);
  for (int32_t x = 0; x < a.out_width; ++x) {
    if (x == s.begin) x = s.end;
    if (x < a.out_width) mix_pixel(in, mix_of(a, theta, y, x), a.channels, out + (int64_t)x * a.channels);
  }
}

// Room for one image of 16 bits in 32, and for a row of output: rows convert at the speed of memory, channels of a pixel one by one do not.
struct Wide {
  std::vector<float> image, row;
};

template <typename T>
DSE_ALWAYS void warp_image(const dse_warp_args& a, int64_t sample, Wide& wide) {
  const int64_t in_size = (int64_t)a.height * a.width * a.channels, row_size = (int64_t)a.out_width * a.channels;
  const float* theta = a.theta + 6 * sample;
  const T* in = (const T*)a.in + sample * in_size;
  T* out = (T*)a.out + sample * a.out_height * row_size;
  if constexpr (std::is_same_v<T, float>) {
    for (int32_t y = 0; y < a.out_height; ++y) warp_row(a, theta, in, y, out + y * row_size);
  } else {
    for (int64_t j = 0; j < in_size; ++j) wide.image[j] = load_as_float(in + j);
    for (int32_t y = 0; y < a.out_height; ++y) {
      warp_row(a, theta, (const float*)wide.image.data(), y, wide.row.data());
      for (int64_t j = 0; j < row_size; ++j) store_float(out + y * row_size + j, wide.row[j]);
    }
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

DSE_ALWAYS void warp_any(const dse_warp_args& a, int64_t sample, Wide& wide) {
  if (a.type == DSE_FLOAT32) warp_image<float>(a, sample, wide);
  else if (a.type == DSE_BFLOAT16) warp_image<BFloat16>(a, sample, wide);
  else warp_image<Float16>(a, sample, wide);
}

DSE_ALWAYS void blur_any(const dse_blur_args& a, int64_t sample, Scratch& s) {
  if (a.type == DSE_FLOAT32) blur_image<float>(a, sample, s);
  else if (a.type == DSE_BFLOAT16) blur_image<BFloat16>(a, sample, s);
  else blur_image<Float16>(a, sample, s);
}

void warp_portable(const dse_warp_args& a, int64_t sample, Wide& wide) { warp_any(a, sample, wide); }
void blur_portable(const dse_blur_args& a, int64_t sample, Scratch& s) { blur_any(a, sample, s); }
DSE_AVX2 void warp_avx2(const dse_warp_args& a, int64_t sample, Wide& wide) { warp_any(a, sample, wide); }
DSE_AVX2 void blur_avx2(const dse_blur_args& a, int64_t sample, Scratch& s) { blur_any(a, sample, s); }
DSE_AVX512 void warp_avx512(const dse_warp_args& a, int64_t sample, Wide& wide) { warp_any(a, sample, wide); }
DSE_AVX512 void blur_avx512(const dse_blur_args& a, int64_t sample, Scratch& s) { blur_any(a, sample, s); }

}  // namespace

int dse_warp_cpu(const dse_warp_args* args, int32_t num_threads, int32_t isa) {
  if (!counts_are_legal(*args)) return DSE_BAD_ARGUMENT;
  const auto image = function_of(isa, warp_portable, warp_avx2, warp_avx512);
  if (!image) return DSE_BAD_ISA;
  std::atomic<int64_t> next{0};
  std::atomic<bool> has_memory{true};
  in_threads(num_threads < args->num_samples ? num_threads : args->num_samples, [&] {
    try {
      const size_t has = args->type != DSE_FLOAT32;
      Wide wide{std::vector<float>(has * args->height * args->width * args->channels), std::vector<float>(has * args->out_width * args->channels)};
      for (int64_t k = next++; k < args->num_samples; k = next++) image(*args, k, wide);
    } catch (const std::bad_alloc&) {
      has_memory = false;
    }
  });
  return has_memory ? DSE_OK : DSE_NO_MEMORY;
}

int dse_blur_cpu(const dse_blur_args* args, int32_t num_threads, int32_t isa) {
  const dse_blur_args& a = *args;
  if (!counts_are_legal(a)) return DSE_BAD_ARGUMENT;
  const auto image = function_of(isa, blur_portable, blur_avx2, blur_avx512);
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
