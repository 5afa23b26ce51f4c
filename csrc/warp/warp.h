// The mathematics of warp and blur, shared by CPU and CUDA.
//
// warp: output pixel (y, x) shows input position (v, u) = theta (y, x, 1), pixel centres at whole numbers, bilinear between
// the four around it. Past the image: zero, the edge pixel, or the image mirrored about its edge pixels.
// blur: Gaussian of sigma pixels, cut at `radius` and normalised, rows then columns, mirrored about the edge pixels.
#pragma once
#include <math.h>
#include <stdint.h>

#include "dsengine.h"
#include "numbers.h"

namespace dse {

DSE_INLINE float load_as_float(const float* p) { return *p; }
struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };
DSE_INLINE float load_as_float(const BFloat16* p) { return from_bfloat16(p->bits); }
DSE_INLINE float load_as_float(const Float16* p) { return from_float16(p->bits); }
DSE_INLINE void store_float(float* p, float x) { *p = x; }
DSE_INLINE void store_float(BFloat16* p, float x) { p->bits = to_bfloat16(x); }
DSE_INLINE void store_float(Float16* p, float x) { p->bits = to_float16(x); }

// Index `i` in [0, n) after mirroring about 0 and n - 1, for any i.
DSE_INLINE int64_t mirrored(int64_t i, int64_t n) {
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1);
  i = (i % period + period) % period;
  return i < n ? i : period - i;
}

// Where one tap along an axis reads, and with which weight.
struct Tap {
  int32_t at;
  float weight;
};

DSE_INLINE Tap tap_of(int32_t i, float weight, int32_t n, int32_t border) {
  if ((uint32_t)i < (uint32_t)n) return Tap{i, weight};
  if (border == DSE_BORDER_ZEROS) return Tap{0, 0.0f};
  if (border == DSE_BORDER_EDGE) return Tap{i < 0 ? 0 : n - 1, weight};
  return Tap{(int32_t)mirrored(i, n), weight};
}

// The four pixels of the input that an output pixel mixes: their positions in pixels from the start, and weights.
struct Mix {
  int64_t pixel[4];
  float weight[4];
};

DSE_INLINE Mix mix_of(const dse_warp_args& a, const float* theta, int32_t y, int32_t x) {
  // In double, so that pixel positions of large images keep their fractions. Bounded, so that the cast is defined.
  const double v0 = (double)theta[0] * y + (double)theta[1] * x + theta[2], u0 = (double)theta[3] * y + (double)theta[4] * x + theta[5];
  const double v = v0 > -1e9 ? (v0 < 1e9 ? v0 : 1e9) : -1e9, u = u0 > -1e9 ? (u0 < 1e9 ? u0 : 1e9) : -1e9;
  const double top = floor(v), left = floor(u);
  const float dv = (float)(v - top), du = (float)(u - left);
  const Tap row[2] = {tap_of((int32_t)top, 1.0f - dv, a.height, a.border), tap_of((int32_t)top + 1, dv, a.height, a.border)};
  const Tap col[2] = {tap_of((int32_t)left, 1.0f - du, a.width, a.border), tap_of((int32_t)left + 1, du, a.width, a.border)};
  Mix m;
  for (int k = 0; k < 4; ++k) {
    m.pixel[k] = (int64_t)row[k / 2].at * a.width + col[k % 2].at;
    m.weight[k] = row[k / 2].weight * col[k % 2].weight;
  }
  return m;
}

// A pixel of weight 0 is not looked at, so that NaN outside the view stays outside.
template <typename T>
DSE_INLINE float mixed(const T* sample, const Mix& m, int32_t channels, int32_t channel) {
  float sum = 0.0f;
  for (int k = 0; k < 4; ++k)
    if (m.weight[k] != 0.0f) sum += m.weight[k] * load_as_float(sample + m.pixel[k] * channels + channel);
  return sum;
}

// Weights of taps 0 .. radius from the middle outwards, so that w[0] + 2 (w[1] + ... + w[radius]) = 1.
DSE_INLINE void gaussian_weights(float sigma, int32_t radius, float* weights) {
  double total = 0.0;
  for (int32_t k = 0; k <= radius; ++k) total += (k ? 2.0 : 1.0) * exp(-0.5 * k * k / ((double)sigma * sigma));
  for (int32_t k = 0; k <= radius; ++k) weights[k] = (float)(exp(-0.5 * k * k / ((double)sigma * sigma)) / total);
}

// Whether the counts of the arguments are legal; says nothing about what the pointers point to.
inline bool counts_are_legal(const dse_warp_args& a) {
  return a.num_samples >= 0 && a.height >= 1 && a.width >= 1 && a.out_height >= 1 && a.out_width >= 1 && a.channels >= 1 &&
         a.border >= DSE_BORDER_ZEROS && a.border <= DSE_BORDER_MIRROR && a.type >= DSE_FLOAT32 && a.type <= DSE_FLOAT16;
}

inline bool counts_are_legal(const dse_blur_args& a) {
  return a.num_samples >= 0 && a.height >= 1 && a.width >= 1 && a.channels >= 1 && a.radius >= 0 && a.radius <= DSE_MAX_RADIUS &&
         a.radius < a.height && a.radius < a.width && a.type >= DSE_FLOAT32 && a.type <= DSE_FLOAT16;
}

}  // namespace dse
