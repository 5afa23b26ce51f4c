// The mathematics of unfilter, shared by CPU and CUDA.
//
// A block of m bytes holds n = m / typesize elements. Shuffled, byte b of element i lies at b * n + i. Bit-shuffled, bit k of
// byte b of element i is bit i % 8 of the byte at (8 b + k) * n / 8 + i / 8, if n is a multiple of 8; a block where it is not
// is left as it is. Bytes past the last element are never moved. Blosc 1.21 and its frames do the same.
#pragma once
#include <stdint.h>

#include "dsengine.h"
#include "numbers.h"

namespace dse {

// Work is cut in groups of 8 elements; one more group copies what is left past the last element.
DSE_INLINE int64_t groups_of(int64_t block_bytes, int32_t typesize) { return (block_bytes / typesize + 7) / 8 + 1; }

// The 8 x 8 bit matrix with row k in byte k, transposed.
DSE_INLINE uint64_t transposed_bits(uint64_t x) {
  uint64_t t = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAull;
  x ^= t ^ (t << 7);
  t = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCull;
  x ^= t ^ (t << 14);
  t = (x ^ (x >> 28)) & 0x00000000F0F0F0F0ull;
  return x ^ t ^ (t << 28);
}

// Bits of the eight bytes `stride` apart from `in`, transposed: byte i has bit k of element i.
DSE_INLINE uint64_t gathered_bits(const uint8_t* in, int64_t stride) {
  uint64_t x = 0;
  for (int k = 0; k < 8; ++k) x |= (uint64_t)in[k * stride] << (8 * k);
  return transposed_bits(x);
}

// Whether the block's bytes are moved at all.
DSE_INLINE bool is_filtered(int32_t filter, int64_t num_elements) {
  return filter == DSE_FILTER_SHUFFLE || (filter == DSE_FILTER_BITSHUFFLE && num_elements % 8 == 0);
}

// A block that lies in one piece: plane b holds byte b of its elements.
struct Whole {
  const uint8_t* in;
  int64_t num_elements;
  DSE_INLINE const uint8_t* operator()(int32_t b) const { return in + b * num_elements; }
};

// One group of a block of `m` bytes, `plane(b)` being where byte b of its elements begins. Planes need not touch, but where m is
// no multiple of typesize, or the block is not filtered, they do.
template <typename Planes>
DSE_INLINE void unfilter_group(const Planes& plane, uint8_t* out, int64_t m, int32_t typesize, int32_t filter, int64_t group) {
  const int64_t n = m / typesize, first = 8 * group;
  if (first >= n || !is_filtered(filter, n)) {
    const uint8_t* in = plane(0);
    const int64_t begin = first >= n ? n * typesize : first * typesize;
    const int64_t end = first >= n ? m : (first + 8 < n ? first + 8 : n) * typesize;
    for (int64_t k = begin; k < end; ++k) out[k] = in[k];
    return;
  }
  const int64_t last = first + 8 < n ? first + 8 : n;
  for (int32_t b = 0; b < typesize; ++b) {
    const uint8_t* in = plane(b);
    if (filter == DSE_FILTER_SHUFFLE) {
      for (int64_t i = first; i < last; ++i) out[i * typesize + b] = in[i];
    } else {
      const uint64_t bytes = gathered_bits(in + group, n / 8);
      for (int i = 0; i < 8; ++i) out[(first + i) * typesize + b] = (uint8_t)(bytes >> (8 * i));
    }
  }
}

// Whether the counts of the arguments are legal; says nothing about what the pointers point to.
inline bool counts_are_legal(const dse_unfilter_args& a) {
  return a.num_chunks >= 0 && a.chunk_bytes >= 0 && a.block_bytes >= 1 && a.typesize >= 1 && a.typesize <= 255 &&
         a.filter >= DSE_FILTER_NONE && a.filter <= DSE_FILTER_BITSHUFFLE;
}

}  // namespace dse
