// A window of one bitpack chunk, decoded on the CPU. Tiles that the window does not touch are stepped over.
//
// A row of 8 values is two words of four: every value is in a lane of its own after one shift, and a prefix sum over 8 lanes of
// 16 bits takes three steps. Words are read past a row's end, so the last segment of a chunk is decoded from a copy with room.
#pragma once
#include <string.h>

#include "bitpack/bitpack.h"
#include "isa.h"

namespace dse {

typedef uint16_t Eight __attribute__((vector_size(16)));
typedef uint32_t Small __attribute__((vector_size(16)));
typedef uint64_t Two __attribute__((vector_size(16)));
typedef uint64_t Four __attribute__((vector_size(32)));
typedef uint64_t Words __attribute__((vector_size(64)));

DSE_ALWAYS uint64_t word_at(const uint8_t* at) {
  uint64_t word;
  memcpy(&word, at, 8);
  return word;
}

// Four values of `bits` bits, each to 16 bits.
DSE_ALWAYS uint64_t spread(uint64_t word, int32_t bits, uint64_t mask) {
  const int32_t step = 16 - bits;
  return (word & mask) | (word << step & mask << 16) | (word << 2 * step & mask << 32) | (word << 3 * step & mask << 48);
}

// By how much the word of each value of a row is shifted, for rows of each width: the first word for four, the second for four more.
#define DSE_SHIFTS(w) {0, w, 2 * w, 3 * w, 4 * (w % 2), 4 * (w % 2) + w, 4 * (w % 2) + 2 * w, 4 * (w % 2) + 3 * w}
alignas(64) static const uint64_t kShifts[17][8] = {
    DSE_SHIFTS(0), DSE_SHIFTS(1), DSE_SHIFTS(2), DSE_SHIFTS(3), DSE_SHIFTS(4), DSE_SHIFTS(5), DSE_SHIFTS(6), DSE_SHIFTS(7), DSE_SHIFTS(8),
    DSE_SHIFTS(9), DSE_SHIFTS(10), DSE_SHIFTS(11), DSE_SHIFTS(12), DSE_SHIFTS(13), DSE_SHIFTS(14), DSE_SHIFTS(15), DSE_SHIFTS(16)};
#undef DSE_SHIFTS

template <typename Vector>
DSE_ALWAYS Vector shifts_at(const uint64_t* at) {
  Vector shifts;
  memcpy(&shifts, at, sizeof shifts);
  return shifts;
}

// The 8 values of `bits` bits at `at`. A vector of 8 words has no conversion to 16 bits below AVX-512; by words of 32 bits AVX2 is
// 1.4 times as fast as by itself.
template <int32_t kIsa>
DSE_ALWAYS Eight unpack_row(const uint8_t* at, int32_t bits) {
  const uint64_t lower = word_at(at), upper = word_at(at + bits / 2), mask = (1ull << bits) - 1;
  if (kIsa == DSE_ISA_PORTABLE) return (Eight)Two{spread(lower, bits, mask), spread(upper_four(upper, bits), bits, mask)};
  if (kIsa == DSE_ISA_AVX2) {
    const Four first = Four{lower, lower, lower, lower} >> shifts_at<Four>(kShifts[bits]) & mask;
    const Four second = Four{upper, upper, upper, upper} >> shifts_at<Four>(kShifts[bits] + 4) & mask;
    const Small lanes[2] = {__builtin_convertvector(first, Small), __builtin_convertvector(second, Small)};
    return __builtin_shuffle((Eight)lanes[0], (Eight)lanes[1], Eight{0, 2, 4, 6, 8, 10, 12, 14});
  }
  const Words words = {lower, lower, lower, lower, upper, upper, upper, upper};
  return __builtin_convertvector(words >> shifts_at<Words>(kShifts[bits]) & mask, Eight);
}

DSE_ALWAYS Eight splat(uint32_t value) {
  const uint16_t v = (uint16_t)value;
  return Eight{v, v, v, v, v, v, v, v};
}

DSE_ALWAYS Eight prefix_sums(Eight v) {
  const Eight none = {};
  v += __builtin_shuffle(none, v, Eight{7, 8, 9, 10, 11, 12, 13, 14});
  v += __builtin_shuffle(none, v, Eight{6, 7, 8, 9, 10, 11, 12, 13});
  return v + __builtin_shuffle(none, v, Eight{4, 5, 6, 7, 8, 9, 10, 11});
}

DSE_ALWAYS void store_eight(uint16_t* out, Eight v) { memcpy(out, &v, 16); }
DSE_ALWAYS void store_eight(uint8_t* out, Eight v) {
  for (int k = 0; k < 8; ++k) out[k] = (uint8_t)v[k];
}

// A tile's rows from `at`, 8 values each whatever its width, to `out`, rows `stride` values apart.
template <int32_t kIsa, bool kPredicted, typename T>
DSE_ALWAYS void unpack_rows(const TileHead& head, const RowPlaces& places, const uint8_t* at, int32_t rows, T* out, int64_t stride) {
  Eight above = splat(head.base);
  for (int32_t r = 0; r < rows; ++r) {
    const int32_t bits = places.bits(r);
    Eight v = unpack_row<kIsa>(at + places.begin(r), bits);
    if (kPredicted) v = above += prefix_sums(v - splat(residual_bias(bits)));
    else v += above;
    store_eight(out + r * stride, v);
  }
}

template <int32_t kIsa, typename T>
DSE_ALWAYS void unpack_tile(const TileHead& head, const RowPlaces& places, const uint8_t* at, int32_t rows, int32_t columns, uint32_t nodata, T* out,
                            int64_t stride) {
  const uint8_t* first = at + head.mask_bytes(rows);
  if (head.predicted()) unpack_rows<kIsa, true>(head, places, first, rows, out, stride);
  else unpack_rows<kIsa, false>(head, places, first, rows, out, stride);
  if (!head.masked()) return;
  for (int32_t r = 0; r < rows; ++r)
    for (int32_t c = 0; c < columns; ++c)
      if (at[r] >> c & 1) out[r * stride + c] = (T)nodata;
}

// Where the window of one plane goes.
template <int32_t kIsa, typename T>
struct Target {
  T* out;
  Window window;

  // Pixels (y, x) to (y + rows, x + columns), whole in the window or in part.
  DSE_INLINE void tile(const TileHead& head, const RowPlaces& places, const uint8_t* at, int64_t y, int64_t x, int32_t rows, int32_t columns,
                       uint32_t nodata) const {
    const int64_t top = y - window.y, left = x - window.x;
    const bool whole = top >= 0 && left >= 0 && top + rows <= window.height && left + kTile <= window.width;
    if (whole && columns == kTile) return unpack_tile<kIsa>(head, places, at, rows, columns, nodata, out + top * window.width + left, window.width);
    T local[kTile * kTile];
    unpack_tile<kIsa>(head, places, at, rows, columns, nodata, local, kTile);
    const int64_t c0 = left < 0 ? -left : 0, c1 = left + columns > window.width ? window.width - left : columns;
    for (int64_t r = top < 0 ? -top : 0; r < rows && top + r < window.height; ++r)
      for (int64_t c = c0; c < c1; ++c) out[(top + r) * window.width + left + c] = local[r * kTile + c];
  }
};

// Tiles from column `x` on of the segment at [at, end), kPackAhead readable after it; false where a tile leaves it or is none.
template <int32_t kIsa, typename T>
DSE_ALWAYS bool unpack_segment(const uint8_t* at, const uint8_t* end, const Tiling& t, int64_t y, int64_t x, int64_t count, uint32_t nodata,
                               const Target<kIsa, T>& target) {
  const int32_t rows = (int32_t)(t.height - y < kTile ? t.height - y : kTile);
  const uint8_t* tile = at + count * kHeadBytes;
  for (int64_t k = 0; k < count; ++k, x += kTile) {
    const TileHead head(at + k * kHeadBytes);
    const int32_t columns = (int32_t)(t.width - x < kTile ? t.width - x : kTile);
    if (!head.legal()) return false;
    const RowPlaces places(head, rows, columns);
    const int64_t bytes = head.mask_bytes(rows) + places.bytes();
    if (bytes > end - tile) return false;
    if (x + columns > target.window.x && x < target.window.x + target.window.width) target.tile(head, places, tile, y, x, rows, columns, nodata);
    tile += bytes;
  }
  return tile == end;
}

// The window of a chunk whose header is legal, planes back to back at `out`; false where the chunk is damaged.
template <int32_t kIsa, typename T>
DSE_ALWAYS bool unpack_window(const uint8_t* in, int64_t bytes, const Tiling& t, const Window& window, T* out) {
  const uint32_t nodata = pack16(in + 6);
  const int64_t across = t.segments(), span = kTile * kSegmentTiles;
  for (int64_t plane = 0; plane < t.planes; ++plane) {
    const Target<kIsa, T> target = {out + plane * window.height * window.width, window};
    for (int64_t row = window.y / kTile; row * kTile < window.y + window.height; ++row) {
      for (int64_t j = window.x / span; j * span < window.x + window.width; ++j) {
        const int64_t left = t.tiles() - j * kSegmentTiles, count = left < kSegmentTiles ? left : kSegmentTiles;
        const Segment segment(in, bytes, (plane * t.tile_rows() + row) * across + j, count);
        if (!segment.legal) return false;
        const uint8_t *begin = in + segment.begin, *end = in + segment.end;
        uint8_t room[kSegmentTiles * (kHeadBytes + kMostTileBytes) + kPackAhead];
        if (segment.end + kPackAhead > bytes) {
          const int64_t size = segment.end - segment.begin;
          if (size > (int64_t)sizeof room - kPackAhead) return false;
          memcpy(room, begin, size);
          begin = room, end = room + size;
        }
        if (!unpack_segment(begin, end, t, row * kTile, j * span, count, nodata, target)) return false;
      }
    }
  }
  return true;
}

// kIsa: dse_isa of the caller.
// Whether `bytes` bytes are a chunk of such pixels, whose window then is at `out`; bytes around neither are touched.
template <int32_t kIsa>
DSE_ALWAYS bool unpack_chunk(const uint8_t* in, int64_t bytes, const Tiling& t, const Window& window, uint8_t* out) {
  if (!t.legal() || !window.inside(t) || !header_is_legal(in, bytes, t)) return false;
  return t.itemsize == 2 ? unpack_window<kIsa>(in, bytes, t, window, (uint16_t*)out) : unpack_window<kIsa>(in, bytes, t, window, out);
}

}  // namespace dse
