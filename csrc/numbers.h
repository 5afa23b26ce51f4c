// Half-precision numbers by integer arithmetic, for host and device alike, so that both round alike.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define DSE_INLINE __host__ __device__ inline
#else
#define DSE_INLINE inline __attribute__((always_inline))  // so that each takes the instruction set of its caller
#endif

namespace dse {

DSE_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

DSE_INLINE float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

// Round to nearest even; NaN stays NaN.
DSE_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  return (uint16_t)((u & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

// Round to nearest even; beyond 65504 is infinity, below 2^-14 is subnormal, NaN stays NaN.
DSE_INLINE uint16_t to_float16(float x) {
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const uint32_t u = bits_of(x) & 0x7FFFFFFFu;
  // Adding 0.5 puts the last bit of a subnormal half at the last bit of the float, so the sum is rounded as wanted.
  const uint32_t subnormal = bits_of(float_of(u) + 0.5f) - 0x3F000000u;
  const uint32_t normal = (u - 0x38000000u + 0xFFFu + ((u >> 13) & 1u)) >> 13;
  const uint32_t large = u > 0x7F800000u ? 0x7E00u : 0x7C00u;
  return (uint16_t)(sign | (u < 0x38800000u ? subnormal : u < 0x477FF000u ? normal : large));
}

DSE_INLINE float from_bfloat16(uint16_t h) { return float_of((uint32_t)h << 16); }

DSE_INLINE float from_float16(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, u = h & 0x7FFFu;
  if (u >= 0x7C00u) return float_of(sign | 0x7F800000u | (u & 0x3FFu) << 13);
  if (u >= 0x400u) return float_of(sign | ((u << 13) + 0x38000000u));
  return float_of(sign | bits_of((float)u * 5.9604644775390625e-8f));  // subnormal: u * 2^-24
}

}  // namespace dse
