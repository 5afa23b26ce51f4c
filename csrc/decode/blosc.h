// One Blosc 1 frame of LZ4 streams to the bytes it holds. The layout and the rules are those of data/frames.py.
//
// A stream stored raw is used where it lies, an inflated one stays in the thread's cache until it is unfiltered to its place, so
// that the memory of a patch is written once.
#pragma once
#include "decode/lz4.h"
#include "unfilter/unfilter.h"

namespace dse {

enum { kBloscHeader = 16, kMostPlanes = 16 };

// Scratch that a frame of `bytes` decoded bytes needs: its planes, each with its slack.
inline int64_t frame_scratch(int64_t bytes) { return bytes + kMostPlanes * kSlack; }

DSE_ALWAYS int64_t load32(const uint8_t* at) { return (int64_t)at[0] | (int64_t)at[1] << 8 | (int64_t)at[2] << 16 | (int64_t)at[3] << 24; }

// What a header says of the frame; `legal` only if that can be so.
struct Frame {
  int64_t block_bytes;
  int32_t flags, typesize;
  bool legal, stored;

  Frame(const uint8_t* in, int64_t size, int64_t want) : block_bytes(0), flags(0), typesize(0), legal(false), stored(false) {
    if (size < kBloscHeader || in[0] != 2) return;
    flags = in[2], typesize = in[3], block_bytes = load32(in + 8), stored = flags & 2;
    if (flags & 8 || load32(in + 4) != want || load32(in + 12) != size) return;
    if (typesize == 0 || block_bytes == 0 || block_bytes > want) return;
    if (stored) {
      legal = size == want + kBloscHeader;
    } else {
      legal = flags >> 5 == 1 && in[1] == 1 && block_bytes % planes(block_bytes) == 0 && size >= kBloscHeader + 4 * num_blocks(want);
    }
  }
  int64_t num_blocks(int64_t want) const { return (want + block_bytes - 1) / block_bytes; }
  // Streams of a block of `bytes`; the short last one has one, as has any of too few elements (frames older than the flag).
  int32_t planes(int64_t bytes) const { return bytes == block_bytes && !(flags & 16) && typesize <= kMostPlanes && bytes / typesize >= 128 ? typesize : 1; }
  int32_t filter(int64_t bytes) const {
    if (flags & 1 && typesize > 1) return DSE_FILTER_SHUFFLE;
    return flags & 4 && bytes / typesize % 8 == 0 ? DSE_FILTER_BITSHUFFLE : DSE_FILTER_NONE;
  }
};

// Planes of a block, each anywhere.
struct Planes {
  const uint8_t* start[kMostPlanes];
  int64_t num_elements;
  bool apart;  // else start[0] is all of them, back to back
  DSE_INLINE const uint8_t* operator()(int32_t b) const { return apart ? start[b] : start[0] + b * num_elements; }
};

DSE_ALWAYS void interleave(const uint8_t* __restrict low, const uint8_t* __restrict high, uint8_t* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    out[2 * i] = low[i];
    out[2 * i + 1] = high[i];
  }
}

DSE_ALWAYS void unfilter_planes(const Frame& frame, const Planes& planes, uint8_t* out, int64_t bytes) {
  const int32_t filter = frame.filter(bytes);
  if (filter == DSE_FILTER_SHUFFLE && frame.typesize == 2) {
    interleave(planes(0), planes(1), out, bytes / 2);
    if (bytes % 2) out[bytes - 1] = planes(0)[bytes - 1];
    return;
  }
  for (int64_t group = 0; group < groups_of(bytes, frame.typesize); ++group) unfilter_group(planes, out, bytes, frame.typesize, filter, group);
}

// Streams from `at` on become the block of `bytes` at `out`; false where one leaves the frame or does not inflate.
DSE_ALWAYS bool decode_block(const Frame& frame, const uint8_t* at, const uint8_t* stop, uint8_t* out, int64_t bytes, uint8_t* scratch) {
  const int32_t count = frame.planes(bytes);
  const int64_t part = bytes / count;
  Planes planes = {{}, bytes / frame.typesize, count > 1};
  for (int32_t p = 0; p < count; ++p) {
    if (stop - at < 4) return false;
    const int64_t size = load32(at);
    at += 4;
    if (size == 0 || size > stop - at) return false;
    planes.start[p] = at;
    if (size != part) {
      uint8_t* plane = scratch + p * (part + kSlack);
      if (!lz4_block(at, size, plane, part)) return false;
      planes.start[p] = plane;
    }
    at += size;
  }
  if (frame.filter(bytes) == DSE_FILTER_NONE)
    for (int32_t p = 0; p < count; ++p) memcpy(out + p * part, planes.start[p], part);
  else
    unfilter_planes(frame, planes, out, bytes);
  return true;
}

// Whether the frame of `size` bytes at `in`, kSlack readable after them, is one of `want` bytes, which then are at `out`.
// scratch: frame_scratch(want) bytes.
DSE_ALWAYS bool decode_frame(const uint8_t* in, int64_t size, uint8_t* out, int64_t want, uint8_t* scratch) {
  const Frame frame(in, size, want);
  if (!frame.legal) return false;
  if (frame.stored) {
    memcpy(out, in + kBloscHeader, want);
    return true;
  }
  const int64_t count = frame.num_blocks(want);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t begin = load32(in + kBloscHeader + 4 * k), done = k * frame.block_bytes;
    if (begin < kBloscHeader + 4 * count || begin > size) return false;
    const int64_t bytes = want - done < frame.block_bytes ? want - done : frame.block_bytes;
    if (!decode_block(frame, in + begin, in + size, out + done, bytes, scratch)) return false;
  }
  return true;
}

}  // namespace dse
