// unfilter_streams: blocks whose planes lie anywhere in a few buffers, each to its own place. Shared by CPU and CUDA.
//
// A block comes as one stream, or as `typesize` streams of bytes / typesize each, which are then its planes (unfilter.h): Blosc
// compresses each plane of a full block on its own, and stores those raw that do not shrink. The tables come from a file that may
// be damaged or hostile, so every row is checked against the buffers before a byte is touched.
#pragma once
#include "unfilter/unfilter.h"

namespace dse {

struct BlockRow {
  int64_t target, bytes, first, count, typesize, filter;
};

DSE_INLINE BlockRow block_row(const dse_unfilter_streams_args& a, int64_t block) {
  const int64_t* row = a.blocks + 6 * block;
  return {row[0], row[1], row[2], row[3], row[4], row[5]};
}

DSE_INLINE const uint8_t* stream_start(const dse_unfilter_streams_args& a, int64_t stream) {
  return a.source[a.streams[2 * stream]] + a.streams[2 * stream + 1];
}

// Where a legal block's planes begin.
struct Streams {
  const dse_unfilter_streams_args* args;
  int64_t first, count, num_elements;
  DSE_INLINE const uint8_t* operator()(int32_t b) const {
    return count == 1 ? stream_start(*args, first) + b * num_elements : stream_start(*args, first + b);
  }
};

// Whether stream `stream` has `bytes` bytes inside its buffer.
DSE_INLINE bool stream_is_inside(const dse_unfilter_streams_args& a, int64_t stream, int64_t bytes) {
  const int64_t source = a.streams[2 * stream], offset = a.streams[2 * stream + 1];
  return source >= 0 && source < a.num_sources && offset >= 0 && offset <= a.source_bytes[source] - bytes;
}

DSE_INLINE bool block_is_legal(const dse_unfilter_streams_args& a, const BlockRow& r) {
  if (r.bytes < 0 || r.target < 0 || r.target > a.out_bytes - r.bytes || r.typesize < 1 || r.typesize > 255) return false;
  if (r.filter < DSE_FILTER_NONE || r.filter > DSE_FILTER_BITSHUFFLE) return false;
  if (r.count != 1 && (r.count != r.typesize || r.bytes % r.typesize || !is_filtered((int32_t)r.filter, r.bytes / r.typesize))) return false;
  if (r.first < 0 || r.first > a.num_streams - r.count) return false;
  for (int64_t k = 0; k < r.count; ++k)
    if (!stream_is_inside(a, r.first + k, r.bytes / r.count)) return false;
  return true;
}

inline bool counts_are_legal(const dse_unfilter_streams_args& a) {
  if (a.num_sources < 0 || a.num_sources > DSE_MAX_STREAM_SOURCES) return false;
  return a.num_blocks >= 0 && a.num_streams >= 0 && a.out_bytes >= 0 && a.block_bytes >= 1;
}

}  // namespace dse
