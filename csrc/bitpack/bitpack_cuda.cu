// CUDA path of bitpack: a block of 128 threads takes a segment, a thread one row of one of its 16 tiles.
//
// The rows lie in a chunk at any byte; each thread reads its own as two words. What a row says of the next (a prediction, a mask) is
// added by columns in shared memory, a thread a column of a tile, and the window's part of the segment is written row by row.
#include <cuda_runtime.h>

#include "bitpack/bitpack.h"

extern __shared__ long long dse_shared[];

namespace {

constexpr int kThreads = 128;
constexpr int kSpan = (int)(dse::kTile * dse::kSegmentTiles);  // columns of a segment
constexpr int kStride = kSpan + 8;                             // of its rows in shared memory: 8 rows of a tile lie in different banks
constexpr size_t kSharedBytes = dse::kTile * kStride * sizeof(uint16_t) + dse::kSegmentTiles * sizeof(int32_t);

// The eight bytes at `p`, of which those from `stop` on are 0.
__device__ uint64_t load_eight(const uint8_t* p, const uint8_t* stop) {
  if (stop - p >= 8) {
    const uint64_t* word = (const uint64_t*)((uintptr_t)p & ~(uintptr_t)7);
    const int shift = 8 * (int)((uintptr_t)p & 7);
    return shift ? word[0] >> shift | word[1] << (64 - shift) : word[0];
  }
  uint64_t found = 0;
  for (int k = 0; p + k < stop; ++k) found |= (uint64_t)p[k] << (8 * k);
  return found;
}

// Which part of which chunk a block has.
struct Work {
  int64_t chunk, plane, row, across;  // row of tiles, and segment in it
};

__device__ Work work_of(int64_t item, const dse_bitpack_args& a, int64_t rows, int64_t segments) {
  return {item / (segments * rows * a.planes), item / (segments * rows) % a.planes, item / segments % rows, item % segments};
}

// Values of the row at `p`, or what they add to the rows above, to shared memory.
__device__ void unpack_row(const dse::TileHead& head, const uint8_t* p, const uint8_t* stop, int32_t bits, uint16_t* out) {
  const uint64_t words[2] = {load_eight(p, stop), dse::upper_four(load_eight(p + bits / 2, stop), bits)};
  const uint32_t mask = (1u << bits) - 1, bias = dse::residual_bias(bits);
  uint32_t sum = 0;
  for (int c = 0; c < 8; ++c) {
    const uint32_t value = (uint32_t)(words[c / 4] >> (c % 4 * bits)) & mask;
    sum += value - bias;
    out[c] = (uint16_t)(head.predicted() ? sum : head.base + value);
  }
}

// Down one column of a tile: prefix sums, then the mask.
__device__ void finish_column(const dse::TileHead& head, const uint8_t* mask, int rows, int column, uint32_t nodata, uint16_t* values) {
  uint32_t sum = head.base;
  for (int r = 0; r < rows; ++r) {
    uint16_t& here = values[r * kStride];
    if (head.predicted()) here = (uint16_t)(sum += here);
    if (head.masked() && mask[r] >> column & 1) here = (uint16_t)nodata;
  }
}

// The part of a window in rows [top, top + rows) and columns [left, left + columns) of its plane, from shared memory.
__device__ void store_part(const dse_bitpack_args& a, const dse::Window& w, uint8_t* out, int64_t top, int64_t left, int rows, int columns,
                           const uint16_t* values) {
  const int64_t skip = w.x - left;  // columns before the window
  const int first = skip > 0 ? (int)skip : 0, stop = w.x + w.width - left < columns ? (int)(w.x + w.width - left) : columns;
  uint8_t* corner = out + (top - w.y) * w.width * a.itemsize - skip * a.itemsize;  // of pixel (top, left), perhaps outside the window
  const bool wide = a.itemsize == 2 && ((uintptr_t)corner & 15) == 0 && w.width % 8 == 0;
  for (int item = threadIdx.x; item < rows * kSpan / (wide ? 8 : 1); item += kThreads) {
    const int r = wide ? item / (kSpan / 8) : item / kSpan, c = wide ? item % (kSpan / 8) * 8 : item % kSpan;
    if (top + r < w.y || top + r >= w.y + w.height) continue;
    const uint16_t* from = values + r * kStride + c;
    const int64_t at = (int64_t)r * w.width + c;
    if (wide && c >= first && c + 8 <= stop) {
      *(ulonglong2*)(corner + 2 * at) = *(const ulonglong2*)from;
      continue;
    }
    for (int k = 0; k < (wide ? 8 : 1); ++k) {
      if (c + k < first || c + k >= stop) continue;
      if (a.itemsize == 2) ((uint16_t*)corner)[at + k] = from[k];
      else corner[at + k] = (uint8_t)from[k];
    }
  }
}

__global__ void bitpack_kernel(dse_bitpack_args a, int64_t rows_of_tiles, int64_t segments, int64_t first_item) {
  uint16_t* values = (uint16_t*)dse_shared;
  int32_t* sizes = (int32_t*)(values + dse::kTile * kStride);
  const Work work = work_of(first_item + blockIdx.x, a, rows_of_tiles, segments);
  const dse::PackRow chunk = dse::pack_row(a, work.chunk);
  const dse::Tiling t = dse::tiling_of(a);
  if (!dse::row_is_legal(a, chunk)) return;
  const dse::Window& w = chunk.window;
  const int64_t row = w.y / dse::kTile + work.row, across = w.x / kSpan + work.across;
  if (row * dse::kTile >= w.y + w.height || across * kSpan >= w.x + w.width) return;
  const uint8_t* in = a.in + chunk.offset;
  const int64_t to_end = t.tiles() - across * dse::kSegmentTiles, count = to_end < dse::kSegmentTiles ? to_end : (int64_t)dse::kSegmentTiles;
  if (!dse::header_is_legal(in, chunk.bytes, t)) return;
  const dse::Segment segment(in, chunk.bytes, (work.plane * t.tile_rows() + row) * t.segments() + across, count);
  if (!segment.legal) return;

  const int tile = threadIdx.x / 8, part = threadIdx.x % 8;  // part: a row of the tile, later a column
  const int64_t top = row * dse::kTile, left = across * kSpan;
  const int rows = t.height - top < dse::kTile ? (int)(t.height - top) : (int)dse::kTile;
  const int64_t right = t.width - left - tile * dse::kTile;
  const int columns = right < dse::kTile ? (int)right : (int)dse::kTile;
  const bool mine = tile < count;
  const dse::TileHead head(in + segment.begin + (mine ? tile : 0) * dse::kHeadBytes);
  const dse::RowPlaces places(head, rows, columns);
  if (part == 0) sizes[tile] = !mine ? 0 : head.legal() ? head.mask_bytes(rows) + places.bytes() : 1 << 20;  // more than any segment has
  __syncthreads();
  int64_t at = segment.begin + count * dse::kHeadBytes;
  for (int k = 0; k < tile; ++k) at += sizes[k];
  const bool whole = mine && at + sizes[tile] <= segment.end;
  const uint8_t* stop = in + segment.end;
  uint16_t* here = values + part * kStride + tile * dse::kTile;
  for (int c = 0; c < 8; ++c) here[c] = 0;
  if (whole && part < rows) unpack_row(head, in + at + head.mask_bytes(rows) + places.begin(part), stop, places.bits(part), here);
  __syncthreads();
  if (whole && (head.predicted() || head.masked()))
    finish_column(head, in + at, rows, part, dse::pack16(in + 6), values + tile * dse::kTile + part);
  __syncthreads();
  const int64_t plane_bytes = w.height * w.width * a.itemsize;
  store_part(a, w, a.out + chunk.target + work.plane * plane_bytes, top, left, rows, t.width - left < kSpan ? (int)(t.width - left) : kSpan, values);
}

}  // namespace

int dse_bitpack_cuda(const dse_bitpack_args* args, void* stream) {
  dse_bitpack_args a = *args;
  if (!dse::tiling_of(a).legal() || a.num_chunks < 0 || a.window_height < 1 || a.window_width < 1) return DSE_BAD_ARGUMENT;
  if (a.window_height > a.height || a.window_width > a.width) return DSE_BAD_ARGUMENT;
  // Tiles and segments that a window can touch wherever it begins, none of them past the chunk.
  const auto touched = [](int64_t size, int64_t whole, int64_t step) {
    const int64_t most = (size + 2 * step - 2) / step, all = (whole + step - 1) / step;
    return most < all ? most : all;
  };
  int64_t rows = touched(a.window_height, a.height, dse::kTile), segments = touched(a.window_width, a.width, kSpan);
  const int64_t total = a.num_chunks * a.planes * rows * segments;
  constexpr int64_t kStep = 1 << 30;  // blocks of one launch
  for (int64_t first = 0; first < total; first += kStep) {
    const int64_t now = total - first < kStep ? total - first : kStep;
    void* parameters[] = {&a, &rows, &segments, &first};
    const cudaError_t error = cudaLaunchKernel(bitpack_kernel, dim3((unsigned)now), dim3(kThreads), parameters, kSharedBytes, (cudaStream_t)stream);
    if (error != cudaSuccess) return DSE_CUDA_ERROR + (int)error;
  }
  return DSE_OK;
}
