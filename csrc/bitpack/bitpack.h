// The format of dsengine.bitpack, shared by CPU and CUDA. dsengine/corpus/bitpack.py describes it in words.
//
//   chunk     header | offset of each segment and of the end, uint32 | segments
//   segment   up to 16 tiles side by side in one plane: a head of 5 bytes each, then the tiles
//   tile      up to 8 x 8 pixels: [a byte of mask a row,] rows; a row of n values of w bits takes (n w + 7) / 8 bytes
//
// Nothing read from a chunk is used before it is compared with what holds it.
#pragma once
#include <stdint.h>

#include "dsengine.h"
#include "numbers.h"

namespace dse {

enum : int64_t { kTile = 8, kSegmentTiles = 16, kPackHeader = 20, kHeadBytes = 5, kMostTileBytes = 8 + 128, kPackAhead = 16 };

DSE_INLINE uint32_t pack16(const uint8_t* at) { return at[0] | (uint32_t)at[1] << 8; }
DSE_INLINE int64_t pack32(const uint8_t* at) { return (int64_t)(pack16(at) | pack16(at + 2) << 16); }

// How the tiles of a chunk of (planes, height, width) lie.
struct Tiling {
  int64_t planes, height, width;
  int32_t itemsize;

  DSE_INLINE int64_t tile_rows() const { return (height + kTile - 1) / kTile; }
  DSE_INLINE int64_t tiles() const { return (width + kTile - 1) / kTile; }  // of a row of them
  DSE_INLINE int64_t segments() const { return (tiles() + kSegmentTiles - 1) / kSegmentTiles; }  // the same
  DSE_INLINE int64_t all_segments() const { return planes * tile_rows() * segments(); }
  DSE_INLINE int64_t first_byte() const { return kPackHeader + 4 * (all_segments() + 1); }
  DSE_INLINE int64_t pixels() const { return planes * height * width; }
  // Of the coded form, and kPackAhead that its encoder may touch.
  DSE_INLINE int64_t most_bytes() const {
    const int64_t rows = height < kTile ? height : (int64_t)kTile, columns = width < kTile ? width : (int64_t)kTile;
    return first_byte() + planes * tile_rows() * tiles() * (kHeadBytes + rows * (1 + 2 * columns)) + kPackAhead;
  }
  // Sizes whose coded form has offsets of 32 bits.
  DSE_INLINE bool legal() const {
    if (planes < 1 || height < 1 || width < 1 || (itemsize != 1 && itemsize != 2)) return false;
    return height < (1 << 28) && width < (1 << 28) && planes < (1 << 28) && height * width < (1 << 28) && pixels() < (1 << 28);
  }
};

// Whether the header of `bytes` bytes is that of such a chunk; says nothing of its segments.
DSE_INLINE bool header_is_legal(const uint8_t* in, int64_t bytes, const Tiling& t) {
  if (bytes < kPackHeader || in[0] != 'd' || in[1] != 's' || in[2] != 'b' || in[3] != '1') return false;
  if (in[4] != t.itemsize || in[5] != kTile || pack32(in + 8) != t.planes || pack32(in + 12) != t.height || pack32(in + 16) != t.width) return false;
  return bytes >= t.first_byte() && pack32(in + t.first_byte() - 4) == bytes;
}

// Bytes [begin, end) of a chunk are segment number `k`, whose `count` heads are inside; not so where `legal` is false.
struct Segment {
  int64_t begin, end;
  bool legal;
  DSE_INLINE Segment(const uint8_t* in, int64_t bytes, int64_t k, int64_t count) {
    begin = pack32(in + kPackHeader + 4 * k);
    end = pack32(in + kPackHeader + 4 * k + 4);
    legal = begin <= end && end <= bytes && count * kHeadBytes <= end - begin;
  }
};

struct TileHead {
  uint32_t base, deltas, form;
  DSE_INLINE explicit TileHead(const uint8_t* at) : base(pack16(at)), deltas(pack16(at + 2)), form(at[4]) {}
  DSE_INLINE bool legal() const { return bits() <= 16 && form < 128; }
  DSE_INLINE int32_t bits() const { return form & 31; }  // of a value in the widest row
  DSE_INLINE bool predicted() const { return form & 32; }
  DSE_INLINE bool masked() const { return form & 64; }
  DSE_INLINE int32_t mask_bytes(int32_t rows) const { return masked() ? rows : 0; }
};

// Widths of a tile's rows, and the byte behind its mask at which each of them ends: a byte a row, all eight at once.
struct RowPlaces {
  uint64_t widths, ends;
  DSE_INLINE RowPlaces(const TileHead& head, int32_t rows, int32_t columns) {
    const uint64_t ones = 0x0101010101010101ull, some = rows < 8 ? (1ull << 8 * rows) - 1 : ~0ull;
    uint64_t deltas = head.deltas;
    deltas = (deltas | deltas << 24) & 0x000000FF000000FFull;
    deltas = (deltas | deltas << 12) & 0x000F000F000F000Full;
    deltas = (deltas | deltas << 6) & 0x0303030303030303ull;
    const uint64_t above = (head.bits() * ones | 128 * ones) - deltas;  // bit 7 stays where the delta is no more than the width
    widths = above & (above >> 7 & ones) * 127;
    ends = ((widths * (uint64_t)columns + 7 * ones) >> 3 & 31 * ones & some) * ones;
  }
  DSE_INLINE int32_t bits(int32_t row) const { return (int32_t)(widths >> 8 * row) & 255; }
  DSE_INLINE int32_t begin(int32_t row) const { return (int32_t)(ends << 8 >> 8 * row) & 255; }
  DSE_INLINE int32_t bytes() const { return (int32_t)(ends >> 56); }
};

// A residual of `bits` bits is stored as what it is above the least of that many bits.
DSE_INLINE uint32_t residual_bias(int32_t bits) { return bits ? 1u << (bits - 1) : 0; }

// The 8 values of a row as two words of four of `bits` bits each, from the words at its start and at byte bits / 2.
DSE_INLINE uint64_t upper_four(uint64_t word, int32_t bits) { return word >> (4 * (bits & 1)); }

// Columns [x, x + width) of rows [y, y + height) of every plane.
struct Window {
  int64_t y, x, height, width;
  DSE_INLINE bool inside(const Tiling& t) const {
    return y >= 0 && x >= 0 && height >= 1 && width >= 1 && height <= t.height && width <= t.width && y <= t.height - height && x <= t.width - width;
  }
};

// A row of dse_bitpack_args.chunks.
struct PackRow {
  int64_t offset, bytes, target;
  Window window;
};

DSE_INLINE PackRow pack_row(const dse_bitpack_args& a, int64_t k) {
  const int64_t* row = a.chunks + 5 * k;
  return {row[0], row[1], row[2], {row[3], row[4], a.window_height, a.window_width}};
}

DSE_INLINE Tiling tiling_of(const dse_bitpack_args& a) { return {a.planes, a.height, a.width, a.itemsize}; }

// Whether chunk and window lie in their buffers.
DSE_INLINE bool row_is_legal(const dse_bitpack_args& a, const PackRow& r) {
  const Tiling t = tiling_of(a);
  if (r.offset < 0 || r.bytes < 0 || r.offset > a.in_bytes - r.bytes || !r.window.inside(t)) return false;
  return r.target >= 0 && r.target % t.itemsize == 0 && r.target <= a.out_bytes - t.planes * r.window.height * r.window.width * t.itemsize;
}

}  // namespace dse
