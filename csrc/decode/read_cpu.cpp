// Chunks of files to patches: each thread opens, reads, checks and decodes some chunks in file order, then takes more.
//
// A chunk is decoded while it lies in the cache of the core that has read it. A chunk that cannot be is marked and left to the
// caller, who has the words for what is wrong and other decoders.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "bitpack/unpack.h"
#include "decode/blosc.h"
#include "decode/crc32c.h"
#include "threads.h"

namespace {

using namespace dse;

enum : int64_t { kCrcBytes = 4, kPathBytes = 4096, kMostAtOnce = 8 };

struct ChunkRow {
  int64_t array, shard, offset, bytes, row;
};

ChunkRow chunk_row(const dse_read_args& a, int64_t k) {
  const int64_t* row = a.chunks + 5 * k;
  return {row[0], row[1], row[2], row[3], row[4]};
}

// The file of the last chunk, which is often that of the next one.
class File {
 public:
  ~File() { close_it(); }
  int of(const dse_read_array& array, const ChunkRow& chunk) {
    if (array_ == &array && shard_ == chunk.shard) return handle_;
    close_it();
    char path[kPathBytes];
    const int length = snprintf(path, sizeof path, "%s%lld%s", array.prefix, (long long)chunk.shard, array.suffix);
    if (length > 0 && length < (int)sizeof path) handle_ = open(path, O_RDONLY | O_CLOEXEC);
    array_ = &array, shard_ = chunk.shard;
    return handle_;
  }

 private:
  void close_it() {
    if (handle_ >= 0) close(handle_);
    handle_ = -1;
  }
  const dse_read_array* array_ = nullptr;
  int64_t shard_ = -1;
  int handle_ = -1;
};

bool read_whole(int file, uint8_t* to, int64_t bytes, int64_t offset) {
  while (bytes > 0) {
    const ssize_t got = pread(file, to, bytes, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    to += got, bytes -= got, offset += got;
  }
  return true;
}

// Decoders of one instruction set.
struct Decode {
  bool (*frame)(const uint8_t* in, int64_t size, uint8_t* out, int64_t want, uint8_t* scratch);
  bool (*tiles)(const uint8_t* in, int64_t size, const Tiling& tiling, uint8_t* out);
};

template <int32_t kIsa>
DSE_ALWAYS bool decode_tiles(const uint8_t* in, int64_t size, const Tiling& t, uint8_t* out) {
  return unpack_chunk<kIsa>(in, size, t, {0, 0, t.height, t.width}, out);
}

bool frame_portable(const uint8_t* in, int64_t size, uint8_t* out, int64_t want, uint8_t* scratch) { return decode_frame(in, size, out, want, scratch); }
DSE_AVX2 bool frame_avx2(const uint8_t* in, int64_t size, uint8_t* out, int64_t want, uint8_t* scratch) { return decode_frame(in, size, out, want, scratch); }
DSE_AVX512 bool frame_avx512(const uint8_t* in, int64_t size, uint8_t* out, int64_t want, uint8_t* scratch) {
  return decode_frame(in, size, out, want, scratch);
}
bool tiles_portable(const uint8_t* in, int64_t size, const Tiling& t, uint8_t* out) { return decode_tiles<DSE_ISA_PORTABLE>(in, size, t, out); }
DSE_AVX2 bool tiles_avx2(const uint8_t* in, int64_t size, const Tiling& t, uint8_t* out) { return decode_tiles<DSE_ISA_AVX2>(in, size, t, out); }
DSE_AVX512 bool tiles_avx512(const uint8_t* in, int64_t size, const Tiling& t, uint8_t* out) { return decode_tiles<DSE_ISA_AVX512>(in, size, t, out); }

// The bytes of a chunk: in memory, or read to `room`, which has `room_bytes`; null where they are not all there.
const uint8_t* chunk_bytes(const dse_read_array& array, const ChunkRow& chunk, File& file, uint8_t* room, int64_t room_bytes) {
  if (array.data) return chunk.bytes <= array.data_bytes - kSlack - chunk.offset ? array.data + chunk.offset : nullptr;
  if (chunk.bytes > room_bytes) return nullptr;
  const int handle = file.of(array, chunk);
  return handle >= 0 && read_whole(handle, room, chunk.bytes, chunk.offset) ? room : nullptr;
}

// A chunk that is the patch as it is goes straight to its place.
bool read_stored(const dse_read_array& array, const ChunkRow& chunk, File& file, uint8_t* out, int64_t body, bool fast) {
  const int handle = body == array.patch_bytes ? file.of(array, chunk) : -1;
  if (handle < 0 || !read_whole(handle, out, body, chunk.offset)) return false;
  uint8_t crc[kCrcBytes];
  return !array.checked || (read_whole(handle, crc, kCrcBytes, chunk.offset + body) && crc32c(out, body, fast) == (uint32_t)load32(crc));
}

bool crc_is_right(const dse_read_array& array, const uint8_t* in, int64_t body, bool fast) {
  return !array.checked || (body >= 0 && crc32c(in, body, fast) == (uint32_t)load32(in + body));
}

Tiling patch_tiling(const dse_read_array& a) { return {a.patch_bytes / 2 / a.height / a.width, a.height, a.width, 2}; }

bool read_chunk(const dse_read_args& a, const ChunkRow& chunk, File& file, uint8_t* scratch, const Decode& decode, bool fast) {
  const dse_read_array& array = a.arrays[chunk.array];
  uint8_t* out = array.out + chunk.row * array.patch_bytes;
  const int64_t body = chunk.bytes - (array.checked ? (int64_t)kCrcBytes : 0);
  if (array.compressor == DSE_RAW) {
    const uint8_t* in = chunk_bytes(array, chunk, file, out, array.num_patches - chunk.row);
    if (array.data && in) memcpy(out, in, chunk.bytes);
    return in && crc_is_right(array, in, body, fast);
  }
  if (chunk.bytes == 0) {
    std::fill_n((int16_t*)out, array.patch_bytes / 2, (int16_t)array.fill);
    return true;
  }
  if (array.compressor == DSE_STORED && !array.data) return read_stored(array, chunk, file, out, body, fast);
  const int64_t planes = frame_scratch(array.patch_bytes);
  const uint8_t* in = chunk_bytes(array, chunk, file, scratch + planes, a.scratch_bytes - planes - kSlack);
  if (!in || !crc_is_right(array, in, body, fast)) return false;
  if (array.compressor == DSE_BLOSC) return planes <= a.scratch_bytes && decode.frame(in, body, out, array.patch_bytes, scratch);
  if (array.compressor == DSE_BITPACK) return decode.tiles(in, body, patch_tiling(array), out);
  if (body != array.patch_bytes) return false;
  memcpy(out, in, body);
  return true;
}

bool bitpack_is_legal(const dse_read_array& a) {
  if (a.height < 1 || a.width < 1) return false;
  return patch_tiling(a).legal() && patch_tiling(a).pixels() * 2 == a.patch_bytes;
}

bool arguments_are_legal(const dse_read_args& a) {
  for (int64_t k = 0; k < a.num_arrays; ++k) {
    const dse_read_array& array = a.arrays[k];
    if (array.compressor < DSE_STORED || array.compressor > DSE_BITPACK) return false;
    if (array.compressor == DSE_BITPACK && !bitpack_is_legal(array)) return false;
    if (array.compressor == DSE_RAW ? array.patch_bytes != 1 : array.patch_bytes < 0 || array.patch_bytes % 2) return false;
  }
  for (int64_t k = 0; k < a.num_chunks; ++k) {
    const ChunkRow c = chunk_row(a, k);
    if (c.array < 0 || c.array >= a.num_arrays || c.row < 0 || c.row >= a.arrays[c.array].num_patches || c.bytes < 0 || c.offset < 0) return false;
  }
  return a.num_arrays >= 0 && a.num_chunks >= 0;
}

}  // namespace

int64_t dse_read_scratch(int64_t chunk_bytes, int64_t patch_bytes) { return chunk_bytes + kSlack + frame_scratch(patch_bytes); }

int dse_read_cpu(const dse_read_args* args, int32_t num_threads, int32_t isa) {
  const dse_read_args& a = *args;
  if (num_threads < 1 || !arguments_are_legal(a)) return DSE_BAD_ARGUMENT;
  const Decode decode = {function_of(isa, frame_portable, frame_avx2, frame_avx512), function_of(isa, tiles_portable, tiles_avx2, tiles_avx512)};
  if (!decode.frame) return DSE_BAD_ISA;
  const bool fast = decode.frame != frame_portable;
  // Few at once, for the threads to end together; more than one, so that a file with many of them is opened once.
  const int64_t at_once = std::clamp<int64_t>(a.num_chunks / (8 * num_threads), 1, kMostAtOnce);
  std::atomic<int64_t> next{0}, worker{0};
  const auto run = [&] {
    uint8_t* scratch = a.scratch + worker++ * a.scratch_bytes;
    File file;
    for (int64_t first = next.fetch_add(at_once); first < a.num_chunks; first = next.fetch_add(at_once))
      for (int64_t k = first; k < std::min(first + at_once, a.num_chunks); ++k)
        a.status[k] = read_chunk(a, chunk_row(a, k), file, scratch, decode, fast) ? DSE_OK : DSE_BAD_CHUNK;
  };
  in_threads(std::min<int64_t>(num_threads, a.num_chunks), run);
  return DSE_OK;
}
