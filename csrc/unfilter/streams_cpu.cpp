// CPU path of unfilter_streams: one thread takes one block at a time.
#include <string.h>

#include <atomic>

#include "threads.h"
#include "unfilter/streams.h"

namespace {

using namespace dse;

// Two-byte elements, which is nearly all imagery: a loop that compilers turn into interleaving instructions.
void interleave(const uint8_t* __restrict lo, const uint8_t* __restrict hi, uint8_t* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    out[2 * i] = lo[i];
    out[2 * i + 1] = hi[i];
  }
}

void unfilter_block(const dse_unfilter_streams_args& a, const BlockRow& r) {
  const int64_t n = r.bytes / r.typesize;
  const int32_t typesize = (int32_t)r.typesize, filter = (int32_t)r.filter;
  const Streams plane{&a, r.first, r.count, n};
  uint8_t* out = a.out + r.target;
  if (!is_filtered(filter, n)) {
    memcpy(out, plane(0), r.bytes);
  } else if (filter == DSE_FILTER_SHUFFLE && typesize == 2) {
    interleave(plane(0), plane(1), out, n);
    if (r.bytes % 2) out[r.bytes - 1] = plane(0)[r.bytes - 1];
  } else {
    for (int64_t group = 0; group < groups_of(r.bytes, typesize); ++group) unfilter_group(plane, out, r.bytes, typesize, filter, group);
  }
}

}  // namespace

int dse_unfilter_streams_cpu(const dse_unfilter_streams_args* args, int32_t num_threads) {
  const dse_unfilter_streams_args& a = *args;
  if (!counts_are_legal(a)) return DSE_BAD_ARGUMENT;
  for (int64_t k = 0; k < a.num_blocks; ++k)
    if (!block_is_legal(a, block_row(a, k))) return DSE_BAD_BLOCK;
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    for (int64_t k = next++; k < a.num_blocks; k = next++) unfilter_block(a, block_row(a, k));
  };
  in_threads(num_threads < a.num_blocks ? num_threads : a.num_blocks, run);
  return DSE_OK;
}

#if !defined(DSENGINE_WITH_CUDA)
int dse_unfilter_streams_cuda(const dse_unfilter_streams_args*, void*) { return DSE_NO_CUDA; }
#endif
