// CPU path of bitpack: a thread takes one chunk at a time.
#include <algorithm>
#include <atomic>

#include "bitpack/pack.h"
#include "bitpack/unpack.h"
#include "threads.h"

namespace {

using namespace dse;

typedef bool (*Unpack)(const uint8_t* in, int64_t bytes, const Tiling& t, const Window& window, uint8_t* out);
typedef int64_t (*Pack)(const void* in, const Tiling& t, const PackOptions& options, uint8_t* out);

bool unpack_portable(const uint8_t* in, int64_t bytes, const Tiling& t, const Window& window, uint8_t* out) {
  return unpack_chunk<DSE_ISA_PORTABLE>(in, bytes, t, window, out);
}
DSE_AVX2 bool unpack_avx2(const uint8_t* in, int64_t bytes, const Tiling& t, const Window& window, uint8_t* out) {
  return unpack_chunk<DSE_ISA_AVX2>(in, bytes, t, window, out);
}
DSE_AVX512 bool unpack_avx512(const uint8_t* in, int64_t bytes, const Tiling& t, const Window& window, uint8_t* out) {
  return unpack_chunk<DSE_ISA_AVX512>(in, bytes, t, window, out);
}

DSE_ALWAYS int64_t pack_any(const void* in, const Tiling& t, const PackOptions& options, uint8_t* out) {
  if (t.itemsize == 2) return options.is_signed ? pack_chunk((const int16_t*)in, t, options, out) : pack_chunk((const uint16_t*)in, t, options, out);
  return options.is_signed ? pack_chunk((const int8_t*)in, t, options, out) : pack_chunk((const uint8_t*)in, t, options, out);
}
int64_t pack_portable(const void* in, const Tiling& t, const PackOptions& options, uint8_t* out) { return pack_any(in, t, options, out); }
DSE_AVX2 int64_t pack_avx2(const void* in, const Tiling& t, const PackOptions& options, uint8_t* out) { return pack_any(in, t, options, out); }
DSE_AVX512 int64_t pack_avx512(const void* in, const Tiling& t, const PackOptions& options, uint8_t* out) { return pack_any(in, t, options, out); }

}  // namespace

int64_t dse_bitpack_bound(int64_t planes, int64_t height, int64_t width, int32_t itemsize) {
  const Tiling t = {planes, height, width, itemsize};
  return t.legal() ? t.most_bytes() : -1;
}

int64_t dse_bitpack_encode(const void* in, uint8_t* out, int64_t planes, int64_t height, int64_t width, int32_t itemsize, int32_t is_signed,
                           int32_t predict, int32_t nodata, int32_t isa) {
  const Tiling t = {planes, height, width, itemsize};
  const Pack pack = function_of(isa, pack_portable, pack_avx2, pack_avx512);
  const PackOptions options = {predict != 0, is_signed != 0, nodata};
  return t.legal() && pack ? pack(in, t, options, out) : -1;
}

int dse_bitpack_cpu(const dse_bitpack_args* args, int32_t num_threads, int32_t isa) {
  const dse_bitpack_args& a = *args;
  const Tiling t = tiling_of(a);
  const Unpack unpack = function_of(isa, unpack_portable, unpack_avx2, unpack_avx512);
  if (!unpack) return DSE_BAD_ISA;
  if (!t.legal() || a.num_chunks < 0 || num_threads < 1) return DSE_BAD_ARGUMENT;
  for (int64_t k = 0; k < a.num_chunks; ++k)
    if (!row_is_legal(a, pack_row(a, k))) return DSE_BAD_BLOCK;
  std::atomic<int64_t> next{0};
  std::atomic<bool> damaged{false};
  const auto run = [&] {
    for (int64_t k = next++; k < a.num_chunks; k = next++) {
      const PackRow r = pack_row(a, k);
      if (!unpack(a.in + r.offset, r.bytes, t, r.window, a.out + r.target)) damaged = true;
    }
  };
  in_threads(std::min<int64_t>(num_threads, a.num_chunks), run);
  return damaged ? DSE_BAD_CHUNK : DSE_OK;
}

#if !defined(DSENGINE_WITH_CUDA)
int dse_bitpack_cuda(const dse_bitpack_args*, void*) { return DSE_NO_CUDA; }
#endif
