// Damaged bitpack chunks through csrc/bitpack, every buffer a heap block of exactly the promised size: for the address sanitizer.
// Arguments: how many chunks to damage, and how many of them to give to the CUDA source, run on the host by tests/cuda_on_host.
// Chunks are made here, of random sizes, pixels and forms.
#include <stdio.h>
#include <stdlib.h>

#include <memory>
#include <vector>

#include "bitpack/pack.h"
#include "bitpack/unpack.h"
#include "cuda_runtime.h"

alignas(16) long long dse_shared[kHostSharedBytes / sizeof(long long)];

#include "bitpack/bitpack_cuda.cu"

using namespace dse;

namespace {

struct Seed {
  std::vector<uint8_t> bytes, pixels;
  Tiling tiling;
};

uint64_t state = 88172645463325252ull;

uint64_t draw(uint64_t below) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state % below;
}

typedef bool (*Unpack)(const uint8_t*, int64_t, const Tiling&, const Window&, uint8_t*);
bool unpack_plain(const uint8_t* in, int64_t n, const Tiling& t, const Window& w, uint8_t* out) { return unpack_chunk<DSE_ISA_PORTABLE>(in, n, t, w, out); }
DSE_AVX2 bool unpack_avx2(const uint8_t* in, int64_t n, const Tiling& t, const Window& w, uint8_t* out) { return unpack_chunk<DSE_ISA_AVX2>(in, n, t, w, out); }

std::unique_ptr<uint8_t[]> exactly(int64_t bytes) { return std::unique_ptr<uint8_t[]>(new uint8_t[bytes]); }

Seed seed_of() {
  Seed seed;
  const int32_t itemsize = 1 + (int32_t)draw(2);
  const Tiling t = {1 + (int64_t)draw(3), 1 + (int64_t)draw(20), 1 + (int64_t)draw(draw(3) ? 20 : 280), itemsize};
  const uint64_t spread = 1ull << draw(17);
  seed.tiling = t, seed.pixels.resize(t.pixels() * itemsize);
  for (int64_t k = 0; k < t.pixels(); ++k) {
    const uint16_t value = draw(6) == 0 ? 7 : (uint16_t)(500 + draw(spread));
    memcpy(&seed.pixels[k * itemsize], &value, itemsize);
  }
  const PackOptions options = {draw(2) == 0, draw(2) == 0, draw(2) ? 7 : 1 << 20};
  const auto out = exactly(t.most_bytes());
  const int64_t size = itemsize == 2 ? pack_chunk((const uint16_t*)seed.pixels.data(), t, options, out.get()) : pack_chunk(seed.pixels.data(), t, options, out.get());
  seed.bytes.assign(out.get(), out.get() + size);
  return seed;
}

// Changes bytes, the length, or both; mostly near the start, where header and offsets are, and then lets the last offset fit the length.
void damage(std::vector<uint8_t>& x, const Tiling& t) {
  for (uint64_t k = draw(5); k > 0 && !x.empty(); --k) {
    static const uint8_t telling[] = {0x00, 0x01, 0x0F, 0x10, 0x1F, 0x60, 0x70, 0xFF};
    const uint64_t heads = (uint64_t)t.first_byte() + 90, at = draw(2) ? draw(x.size()) : draw(x.size() < heads ? x.size() : heads);
    x[at] = draw(2) ? telling[draw(8)] : (uint8_t)draw(256);
  }
  if (draw(3) == 0) x.resize(draw(x.size() + 1));
  if (draw(8) == 0) x.resize(x.size() + draw(draw(2) ? 100 : 5000), (uint8_t)draw(256));
  const uint32_t size = (uint32_t)x.size();
  if (draw(4) && (int64_t)x.size() >= t.first_byte()) memcpy(&x[t.first_byte() - 4], &size, 4);
}

bool is_taken(const std::vector<uint8_t>& x, const Tiling& t, const Window& w, Unpack unpack, std::vector<uint8_t>* found) {
  const auto in = exactly(x.size());
  const int64_t bytes = t.planes * w.height * w.width * t.itemsize;
  const auto out = exactly(bytes);
  memset(out.get(), 0, bytes);
  if (!x.empty()) memcpy(in.get(), x.data(), x.size());
  const bool taken = unpack(in.get(), (int64_t)x.size(), t, w, out.get());
  if (found) found->assign(out.get(), out.get() + bytes);
  return taken;
}

// A GPU reads whole words of 8 bytes, so that the input may end within one.
bool is_run(const std::vector<uint8_t>& x, const Tiling& t, const Window& w) {
  const int64_t bytes = t.planes * w.height * w.width * t.itemsize, chunk[5] = {0, (int64_t)x.size(), 0, w.y, w.x};
  const auto in = exactly((x.size() + 7) / 8 * 8), out = exactly(bytes);
  if (!x.empty()) memcpy(in.get(), x.data(), x.size());
  const dse_bitpack_args args = {in.get(), out.get(), chunk, (int64_t)x.size(), bytes, 1, t.planes, (int32_t)t.height, (int32_t)t.width,
                                 t.itemsize, (int32_t)w.height, (int32_t)w.width};
  return dse_bitpack_cuda(&args, nullptr) == DSE_OK;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const long rounds = atol(argv[1]), on_device = atol(argv[2]);
  long whole = 0, taken = 0, run = 0;
  for (long k = 0; k < rounds; ++k) {
    const Seed seed = seed_of();
    const Tiling& t = seed.tiling;
    const Unpack unpack = wide && k % 2 ? unpack_avx2 : unpack_plain;
    std::vector<uint8_t> found, bytes = seed.bytes;
    whole += is_taken(bytes, t, {0, 0, t.height, t.width}, unpack, &found) && found == seed.pixels;
    for (int many = 0; many < 8; ++many) {
      bytes = seed.bytes;
      damage(bytes, t);
      const int64_t h = 1 + (int64_t)draw(t.height), w = 1 + (int64_t)draw(t.width);
      const Window window = {(int64_t)draw(t.height - h + 1), (int64_t)draw(t.width - w + 1), h, w};
      taken += is_taken(bytes, t, window, unpack, nullptr);
      if (8 * k + many < on_device) run += is_run(bytes, t, window);
    }
  }
  printf("%ld %ld %ld\n", whole, taken, run);
  return 0;
}
