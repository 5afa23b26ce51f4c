// CPU path of unfilter: one thread takes one block at a time.
#include "unfilter/unfilter.h"

#include <string.h>

#include <atomic>

#include "threads.h"

namespace {

using namespace dse;

// Two-byte elements, which is nearly all imagery: a loop that compilers turn into interleaving instructions.
void unshuffle_pairs(const uint8_t* __restrict in, uint8_t* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    out[2 * i] = in[i];
    out[2 * i + 1] = in[n + i];
  }
}

void unfilter_block(const uint8_t* in, uint8_t* out, int64_t m, const dse_unfilter_args& a) {
  const int64_t n = m / a.typesize;
  if (!is_filtered(a.filter, n)) {
    memcpy(out, in, m);
  } else if (a.filter == DSE_FILTER_SHUFFLE && a.typesize == 2) {
    unshuffle_pairs(in, out, n);
    memcpy(out + 2 * n, in + 2 * n, m - 2 * n);
  } else {
    for (int64_t group = 0; group < groups_of(m, a.typesize); ++group) unfilter_group(Whole{in, n}, out, m, a.typesize, a.filter, group);
  }
}

}  // namespace

int dse_unfilter_cpu(const dse_unfilter_args* args, int32_t num_threads) {
  const dse_unfilter_args& a = *args;
  if (!counts_are_legal(a)) return DSE_BAD_ARGUMENT;
  const int64_t blocks = (a.chunk_bytes + a.block_bytes - 1) / a.block_bytes, num_items = blocks * a.num_chunks;
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    for (int64_t k = next++; k < num_items; k = next++) {
      const int64_t start = k % blocks * a.block_bytes, left = a.chunk_bytes - start;
      const int64_t at = k / blocks * a.chunk_bytes + start;
      unfilter_block(a.in + at, a.out + at, left < a.block_bytes ? left : a.block_bytes, a);
    }
  };
  in_threads(num_threads < num_items ? num_threads : num_items, run);
  return DSE_OK;
}

#if !defined(DSENGINE_WITH_CUDA)
int dse_unfilter_cuda(const dse_unfilter_args*, void*) { return DSE_NO_CUDA; }
#endif
