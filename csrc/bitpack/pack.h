// Arrays to bitpack chunks on the CPU. Each tile gets the cheapest of the forms that its chunk may use.
#pragma once
#include <string.h>

#include "bitpack/bitpack.h"
#include "isa.h"

namespace dse {

struct PackOptions {
  bool predict, is_signed;
  int32_t nodata;  // a value, or none where no pixel can have it
};

DSE_ALWAYS void put(uint8_t* at, uint64_t value, int32_t bytes) {
  for (int32_t k = 0; k < bytes; ++k) at[k] = (uint8_t)(value >> (8 * k));
}

// A tile before it is coded: 8 x 8 values of which some are pixels; the others are 0 and are not stored.
struct Pixels {
  uint16_t value[kTile][kTile];
  uint8_t nodata[kTile];  // bit c of row r: that pixel has none
  int32_t rows, columns;
};

// How a tile is to be coded: its values in coded form, and what that takes.
struct Coded {
  uint16_t value[kTile][kTile];
  uint32_t base, form, deltas;
  int32_t bytes;
  DSE_INLINE int32_t row_bits(int32_t row) const { return (int32_t)(form & 31) - (int32_t)(deltas >> (2 * row) & 3); }
};

DSE_ALWAYS int32_t bits_for(uint32_t value) { return value ? 32 - __builtin_clz(value) : 0; }

// Widths of the rows from the bits that each needs; the widest first, and no row more than 3 below it.
DSE_ALWAYS void set_widths(Coded& coded, const int32_t* need, const Pixels& p, bool masked) {
  int32_t widest = 0;
  for (int32_t r = 0; r < p.rows; ++r) widest = need[r] > widest ? need[r] : widest;
  coded.deltas = 0, coded.form |= (uint32_t)widest | (masked ? 64u : 0u), coded.bytes = masked ? p.rows : 0;
  for (int32_t r = 0; r < p.rows; ++r) {
    const int32_t below = widest - need[r] < 3 ? widest - need[r] : 3;
    coded.deltas |= (uint32_t)below << (2 * r);
    coded.bytes += (p.columns * (widest - below) + 7) / 8;
  }
}

// Each value above the least.
DSE_ALWAYS void code_plain(Coded& coded, const Pixels& p, const PackOptions& options, bool masked) {
  const uint16_t flip = options.is_signed ? 0x8000 : 0;  // makes signed order that of unsigned numbers
  uint16_t least = 0xFFFF;
  for (int32_t r = 0; r < p.rows; ++r)
    for (int32_t c = 0; c < p.columns; ++c) least = (p.value[r][c] ^ flip) < least ? p.value[r][c] ^ flip : least;
  coded.base = (uint16_t)(least ^ flip), coded.form = 0;
  int32_t need[kTile];
  for (int32_t r = 0; r < p.rows; ++r) {
    uint32_t all = 0;
    for (int32_t c = 0; c < kTile; ++c) {
      const uint16_t above = c < p.columns ? (uint16_t)(p.value[r][c] - coded.base) : 0;
      coded.value[r][c] = above, all |= above;
    }
    need[r] = bits_for(all);
  }
  set_widths(coded, need, p, masked);
}

// Each value less left, less above, plus above left; the first is the base. Modulo 2^16, as numbers in two's complement.
DSE_ALWAYS void code_predicted(Coded& coded, const Pixels& p, bool masked) {
  coded.base = p.value[0][0], coded.form = 32;
  int32_t need[kTile];
  for (int32_t r = 0; r < p.rows; ++r) {
    uint16_t left = r ? 0 : (uint16_t)coded.base;
    uint32_t all = 0;
    for (int32_t c = 0; c < kTile; ++c) {
      const uint16_t here = (uint16_t)(p.value[r][c] - (r ? p.value[r - 1][c] : 0)), residual = c < p.columns ? (uint16_t)(here - left) : 0;
      coded.value[r][c] = residual, left = here;
      all |= (uint32_t)(uint16_t)(residual ^ (uint16_t)((int16_t)residual >> 15)) << 1 | (residual ? 1 : 0);  // the lowest bit for the sign
    }
    need[r] = bits_for(all);
  }
  set_widths(coded, need, p, masked);
  for (int32_t r = 0; r < p.rows; ++r) {
    const int32_t bits = coded.row_bits(r);
    for (int32_t c = 0; c < p.columns; ++c) coded.value[r][c] = (uint16_t)(coded.value[r][c] + residual_bias(bits));
  }
}

// Pixels without data get the value before them, or above at the left edge: whatever is cheap, since the mask hides it.
DSE_ALWAYS void fill_gaps(Pixels& p) {
  uint16_t before = 0;
  for (int32_t k = kTile * kTile - 1; k >= 0; --k)
    if (k / kTile < p.rows && k % kTile < p.columns && !(p.nodata[k / kTile] >> k % kTile & 1)) before = p.value[k / kTile][k % kTile];
  for (int32_t r = 0; r < p.rows; ++r) {
    for (int32_t c = 0; c < p.columns; ++c) {
      if (p.nodata[r] >> c & 1) p.value[r][c] = before;
      before = p.value[r][c];
    }
    before = p.value[r][0];
  }
}

// The cheapest form of a tile without a mask, or with one.
DSE_ALWAYS void code_tile(Coded& best, const Pixels& p, const PackOptions& options, bool masked) {
  code_plain(best, p, options, masked);
  if (!options.predict) return;
  Coded predicted;
  code_predicted(predicted, p, masked);
  if (predicted.bytes < best.bytes) best = predicted;
}

template <typename T>
DSE_ALWAYS Pixels pixels_at(const T* in, int64_t stride, int32_t rows, int32_t columns, const PackOptions& options, bool& gaps) {
  Pixels p = {{}, {}, rows, columns};
  int32_t missing = 0;
  for (int32_t r = 0; r < rows; ++r) {
    for (int32_t c = 0; c < columns; ++c) {
      const int32_t value = in[r * stride + c], none = value == options.nodata;
      p.value[r][c] = (uint16_t)value;
      p.nodata[r] |= (uint8_t)(none << c), missing += none;
    }
  }
  gaps = missing > 0 && missing < rows * columns;
  return p;
}

// Writes a row of 8 values; up to 16 bytes from `at` on.
DSE_ALWAYS void pack_row_at(uint8_t* at, const uint16_t* value, int32_t bits) {
  uint64_t lower = 0, upper = 0;
  for (int32_t c = 0; c < 4; ++c) lower |= (uint64_t)value[c] << (c * bits), upper |= (uint64_t)value[4 + c] << (c * bits);
  const int32_t half = bits / 2, odd = 4 * (bits & 1);
  const uint64_t shared = odd ? lower >> (8 * half) & 15 : 0;
  memcpy(at, &lower, 8);
  upper = upper << odd | shared;
  memcpy(at + half, &upper, 8);
}

// Head at `head` and tile at `out`, of which up to 16 more bytes are written; the end of the tile.
DSE_ALWAYS uint8_t* write_tile(const Coded& coded, const Pixels& p, uint8_t* head, uint8_t* out) {
  put(head, coded.base | coded.deltas << 16, 4);
  head[4] = (uint8_t)coded.form;
  if (coded.form & 64) memcpy(out, p.nodata, p.rows), out += p.rows;
  for (int32_t r = 0; r < p.rows; ++r) {
    const int32_t bits = coded.row_bits(r);
    pack_row_at(out, coded.value[r], bits);
    out += (p.columns * bits + 7) / 8;
  }
  return out;
}

// Tiles from column `x` on; the end of the segment that begins at `out`.
template <typename T>
DSE_ALWAYS uint8_t* pack_segment(const T* in, const Tiling& t, int64_t y, int64_t x, int64_t count, const PackOptions& options, uint8_t* out) {
  uint8_t *head = out, *tile = out + count * kHeadBytes;
  const int32_t rows = (int32_t)(t.height - y < kTile ? t.height - y : kTile);
  for (int64_t k = 0; k < count; ++k, x += kTile, head += kHeadBytes) {
    bool gaps;
    const int32_t columns = (int32_t)(t.width - x < kTile ? t.width - x : kTile);
    Pixels p = pixels_at(in + y * t.width + x, t.width, rows, columns, options, gaps);
    Coded best, masked;
    code_tile(best, p, options, false);
    if (gaps) {
      fill_gaps(p);
      code_tile(masked, p, options, true);
      if (masked.bytes < best.bytes) best = masked;
    }
    tile = write_tile(best, p, head, tile);
  }
  return tile;
}

// The chunk of (planes, height, width) values at `in`, to `out`; its bytes. Up to kPackAhead more are written.
template <typename T>
DSE_ALWAYS int64_t pack_chunk(const T* in, const Tiling& t, const PackOptions& options, uint8_t* out) {
  memcpy(out, "dsb1", 4);
  out[4] = (uint8_t)t.itemsize, out[5] = kTile;
  put(out + 6, (uint64_t)options.nodata, 2);
  put(out + 8, (uint64_t)t.planes, 4), put(out + 12, (uint64_t)t.height, 4), put(out + 16, (uint64_t)t.width, 4);
  uint8_t *offset = out + kPackHeader, *segment = out + t.first_byte();
  for (int64_t plane = 0; plane < t.planes; ++plane, in += t.height * t.width) {
    for (int64_t y = 0; y < t.height; y += kTile) {
      for (int64_t first = 0; first < t.tiles(); first += kSegmentTiles, offset += 4) {
        put(offset, (uint64_t)(segment - out), 4);
        const int64_t left = t.tiles() - first;
        segment = pack_segment(in, t, y, first * kTile, left < kSegmentTiles ? left : kSegmentTiles, options, segment);
      }
    }
  }
  put(offset, (uint64_t)(segment - out), 4);
  return segment - out;
}

}  // namespace dse
