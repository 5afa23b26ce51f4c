// Damaged Blosc frames and LZ4 blocks through csrc/decode, every buffer a heap block of exactly the promised size: for the address sanitizer.
// Arguments: a file of frames, each int64 bytes, int64 decoded bytes, the bytes; how many times to damage one.
#include <stdio.h>
#include <stdlib.h>

#include <memory>
#include <vector>

#include "decode/blosc.h"

using namespace dse;

namespace {

struct Seed {
  std::vector<uint8_t> bytes;
  int64_t want;
};

uint64_t state = 88172645463325252ull;

uint64_t draw(uint64_t below) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state % below;
}

typedef bool (*Frames)(const uint8_t*, int64_t, uint8_t*, int64_t, uint8_t*);
typedef bool (*Blocks)(const uint8_t*, int64_t, uint8_t*, int64_t);
bool frame_plain(const uint8_t* in, int64_t n, uint8_t* out, int64_t want, uint8_t* scratch) { return decode_frame(in, n, out, want, scratch); }
DSE_AVX2 bool frame_avx2(const uint8_t* in, int64_t n, uint8_t* out, int64_t want, uint8_t* scratch) { return decode_frame(in, n, out, want, scratch); }
bool block_plain(const uint8_t* in, int64_t n, uint8_t* out, int64_t want) { return lz4_block(in, n, out, want); }
DSE_AVX2 bool block_avx2(const uint8_t* in, int64_t n, uint8_t* out, int64_t want) { return lz4_block(in, n, out, want); }

// Changes some bytes, the length, or both; then mostly makes the header say the new length, so that damage lies deeper.
void damage(std::vector<uint8_t>& x) {
  for (uint64_t k = draw(4); k > 0 && !x.empty(); --k) {
    static const uint8_t telling[] = {0x00, 0x01, 0x0F, 0x10, 0xF0, 0xFF};
    // Half of it near the start, where the header and the starts of the blocks are.
    const uint64_t at = draw(2) ? draw(x.size()) : draw(x.size() < 64 ? x.size() : 64);
    x[at] = draw(2) ? telling[draw(6)] : (uint8_t)draw(256);
  }
  if (draw(3) == 0) x.resize(draw(x.size() + 1));
  if (draw(8) == 0) x.resize(x.size() + draw(100), (uint8_t)draw(256));
  const uint32_t size = (uint32_t)x.size();
  if (draw(4) && x.size() >= 16) memcpy(&x[12], &size, 4);
}

// `bytes` and no more, then the slack of an input, such that a length would go on for ever in it.
std::unique_ptr<uint8_t[]> exactly(int64_t bytes) { return std::unique_ptr<uint8_t[]>(new uint8_t[bytes]); }

std::unique_ptr<uint8_t[]> with_slack(const std::vector<uint8_t>& x) {
  auto in = exactly(x.size() + kSlack);
  if (!x.empty()) memcpy(in.get(), x.data(), x.size());
  memset(in.get() + x.size(), 255, kSlack);
  return in;
}

bool frame_is_taken(const std::vector<uint8_t>& x, int64_t want, Frames decode) {
  const auto in = with_slack(x), out = exactly(want), scratch = exactly(frame_scratch(want));
  return decode(in.get(), (int64_t)x.size(), out.get(), want, scratch.get());
}

void put_length(std::vector<uint8_t>& x, int64_t over) {
  for (; over >= 255; over -= 255) x.push_back(255);
  x.push_back((uint8_t)over);
}

// Literals, and a match unless `distance` is 0.
void put_sequence(std::vector<uint8_t>& x, int64_t literals, int64_t distance, int64_t length) {
  x.push_back((uint8_t)((literals < 15 ? literals : 15) << 4 | (length < 19 ? length - 4 : 15)));
  if (literals >= 15) put_length(x, literals - 15);
  for (int64_t k = 0; k < literals; ++k) x.push_back((uint8_t)draw(256));
  if (distance == 0) return;
  x.push_back((uint8_t)distance), x.push_back((uint8_t)(distance >> 8));
  if (length >= 19) put_length(x, length - 19);
}

// A block of a few sequences, asked for as many bytes as it has or others, mostly with damage: lengths and distances of every size.
bool block_is_taken(Blocks decode) {
  std::vector<uint8_t> x;
  int64_t total = 0;
  for (uint64_t k = draw(12); k > 0; --k) {
    const int64_t literals = (int64_t)draw(draw(4) ? 16 : 700) + (total == 0), length = 4 + (int64_t)draw(draw(4) ? 20 : 900);
    put_sequence(x, literals, 1 + (int64_t)draw(draw(2) && total + literals > 40 ? 40 : total + literals), length);
    total += literals + length;
  }
  const int64_t last = (int64_t)draw(draw(2) ? 30 : 400);
  put_sequence(x, last, 0, 4);
  total += last;
  if (draw(3) == 0) total = (int64_t)draw(total + 40);
  for (uint64_t k = draw(3); k > 0; --k) x[draw(x.size())] = (uint8_t)(draw(2) ? 255 : draw(256));
  const auto in = with_slack(x), out = exactly(total + kSlack);
  return decode(in.get(), (int64_t)x.size(), out.get(), total);
}

std::vector<Seed> seeds_of(const char* path) {
  std::vector<Seed> seeds;
  FILE* file = fopen(path, "rb");
  for (int64_t head[2]; file && fread(head, 8, 2, file) == 2;) {
    Seed seed = {std::vector<uint8_t>(head[0]), head[1]};
    if (fread(seed.bytes.data(), 1, head[0], file) == (size_t)head[0]) seeds.push_back(seed);
  }
  if (file) fclose(file);
  return seeds;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<Seed> seeds = argc == 3 ? seeds_of(argv[1]) : std::vector<Seed>();
  if (seeds.empty()) return 2;
  const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  long taken = 0, whole = 0, blocks = 0;
  for (const Seed& seed : seeds) whole += frame_is_taken(seed.bytes, seed.want, wide ? frame_avx2 : frame_plain);
  for (long k = atol(argv[2]); k > 0; --k) {
    Seed seed = seeds[draw(seeds.size())];
    damage(seed.bytes);
    taken += frame_is_taken(seed.bytes, seed.want, wide && k % 2 ? frame_avx2 : frame_plain);
    blocks += block_is_taken(wide && k % 2 ? block_avx2 : block_plain);
  }
  printf("%ld %zu %ld %ld\n", whole, seeds.size(), taken, blocks);
  return 0;
}
