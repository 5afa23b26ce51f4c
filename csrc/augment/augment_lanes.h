// Inner loops of the CPU augmentation, in registers of W floats, by the compilers' vector extensions (GCC, Clang).
//
// Everything here is inlined into functions that fix the instruction set (see augment_cpu.cpp), and written with explicit
// vectors: GCC 12 unrolls the short constant loops of a tile into scalar code before it comes to vectorise them.
#pragma once
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "augment/augment.h"

#define DSE_ALWAYS static inline __attribute__((always_inline))

namespace dse {

constexpr int kLanes = 16;            // output channels of one accumulator
constexpr int kTile = 16;             // side of an output tile, pixels
constexpr int kArea = kTile * kTile;  // floats of one band of a tile

template <int W>
struct Lanes {
  typedef int16_t Short __attribute__((vector_size(W * 2)));
  typedef int32_t Int __attribute__((vector_size(W * 4)));
  typedef float Float __attribute__((vector_size(W * 4)));
  typedef uint32_t Bits __attribute__((vector_size(W * 4)));
  typedef uint16_t Half __attribute__((vector_size(W * 2)));
};

template <typename V>
DSE_ALWAYS V load(const void* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <typename V>
DSE_ALWAYS void save(void* to, V v) {
  memcpy(to, &v, sizeof v);
}

template <int W>
DSE_ALWAYS int64_t total_of(typename Lanes<W>::Int v) {
  int64_t total = 0;
  for (int l = 0; l < W; ++l) total += v[l];
  return total;
}

struct Sum {
  int64_t total, count;
};

// Raw values with data in `rows` rows of n values each, `width` apart, and how many there are.
template <int W>
DSE_ALWAYS Sum sum_block(const int16_t* r, int32_t rows, int32_t n, int32_t width, int32_t nodata) {
  typedef typename Lanes<W>::Int Int;
  Sum s = {0, (int64_t)rows * n};
  // Rows after which a lane holds at most 2^15 values, so that it stays inside 32 bits (n < 2^15 * W).
  const int32_t most = (1 << 15) / (n / W + 1);
  while (rows > 0) {
    Int total = {}, absent = {};
    const int32_t now = rows < most ? rows : most;
    for (int32_t y = 0; y < now; ++y, r += width) {
      int32_t k = 0;
      for (; k + W <= n; k += W) {
        const Int v = __builtin_convertvector(load<typename Lanes<W>::Short>(r + k), Int);
        const Int is_absent = v == nodata;
        total += v & ~is_absent;
        absent -= is_absent;
      }
      for (; k < n; ++k) {
        s.total += r[k] == nodata ? 0 : r[k];
        s.count -= r[k] == nodata;
      }
    }
    s.total += total_of<W>(total);
    s.count -= total_of<W>(absent);
    rows -= now;
  }
  return s;
}

// n <= kTile raw values to centered floats, 0 where there is no data, which sets a lane of `absent`.
template <int W>
DSE_ALWAYS void convert(const int16_t* r, int32_t n, float center, int32_t nodata, float* x, typename Lanes<W>::Int& absent) {
  typedef typename Lanes<W>::Int Int;
  typedef typename Lanes<W>::Float Float;
  if (n < W) {
    for (int32_t k = 0; k < n; ++k) {
      x[k] = r[k] == nodata ? 0.0f : (float)r[k] - center;
      absent[k] |= r[k] == nodata;
    }
    return;
  }
#pragma GCC unroll 16
  for (int32_t k = 0; k < n; k += W) {
    const int32_t at = k + W <= n ? k : n - W;  // the last step may overlap the one before
    const Int v = __builtin_convertvector(load<typename Lanes<W>::Short>(r + at), Int);
    const Int is_absent = v == nodata;
    const Float centered = __builtin_convertvector(v, Float) - center;
    save(x + at, (Int)centered & ~is_absent);
    absent |= is_absent;
  }
}

// How a float is stored: to_bfloat16 and to_float16 of augment.h on W lanes.
template <int W>
struct AsFloat32 {
  typedef float Value;
  static inline __attribute__((always_inline)) void put(float* to, typename Lanes<W>::Float y) { save(to, y); }
};

template <int W>
struct AsBfloat16 {
  typedef uint16_t Value;
  static inline __attribute__((always_inline)) void put(uint16_t* to, typename Lanes<W>::Float y) {
    typedef typename Lanes<W>::Bits Bits;
    const Bits u = (Bits)y;
    const Bits rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    const Bits safe = (u & 0x7FFFFFFFu) > 0x7F800000u ? Bits{} + 0x7FC0u : rounded;
    save(to, __builtin_convertvector(safe, typename Lanes<W>::Half));
  }
};

template <int W>
struct AsFloat16 {
  typedef uint16_t Value;
  static inline __attribute__((always_inline)) void put(uint16_t* to, typename Lanes<W>::Float y) {
    typedef typename Lanes<W>::Bits Bits;
    const Bits u = (Bits)y & 0x7FFFFFFFu;
    const Bits subnormal = (Bits)((typename Lanes<W>::Float)u + 0.5f) - 0x3F000000u;
    const Bits normal = (u - 0x38000000u + 0xFFFu + ((u >> 13) & 1u)) >> 13;
    const Bits large = u > 0x7F800000u ? Bits{} + 0x7E00u : Bits{} + 0x7C00u;
    const Bits magnitude = u < 0x38800000u ? subnormal : (u < 0x477FF000u ? normal : large);
    save(to, __builtin_convertvector(magnitude | (((Bits)y >> 16) & 0x8000u), typename Lanes<W>::Half));
  }
};

// kLanes output channels of P pixels whose inputs are `step` floats apart in the tile and whose outputs are `stride`
// apart in y, in ascending order: the next pixel overwrites lanes past the stride.
template <int W, int P, typename As>
DSE_ALWAYS void multiply(const float* x, int64_t step, const float* columns, const float* shift, int32_t num_bands,
                         typename As::Value* y, int64_t stride) {
  typedef typename Lanes<W>::Float Float;
  constexpr int N = kLanes / W;
  Float sum[P][N];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) sum[p][v] = load<Float>(shift + v * W);
  for (int32_t j = 0; j < num_bands; ++j, x += kArea, columns += kLanes) {
    Float a[N];
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) a[v] = load<Float>(columns + v * W);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
      for (int v = 0; v < N; ++v) sum[p][v] += x[p * step] * a[v];
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) As::put(y + p * stride + v * W, sum[p][v]);
}

// Copies past the cache where whole lines allow it: a batch of views is larger than any cache, and an ordinary store
// would first read each line (measured: fp32 views 1.4 times faster). Needs fence() before the memory is handed on.
DSE_ALWAYS void copy_out(const char* from, int64_t bytes, char* to) {
#if defined(__x86_64__)
  if (bytes % 64 == 0 && (uintptr_t)to % 64 == 0) {
    for (int64_t k = 0; k < bytes; k += 64)
      for (int64_t part = 0; part < 64; part += 16)
        _mm_stream_si128((__m128i*)(to + k + part), _mm_load_si128((const __m128i*)(from + k + part)));
    return;
  }
#endif
  memcpy(to, from, bytes);
}

DSE_ALWAYS void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace dse
