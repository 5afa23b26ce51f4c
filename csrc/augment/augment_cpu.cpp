// CPU path of the augmentation: one thread takes one (view, sample) at a time.
//
// An item is read twice: once for the band means (its crop then lies in L2), once in tiles. A tile's raw integers become
// centered floats x[band][pixel] in L1; then kLanes output channels at a time are accumulated for P pixels in registers,
// with x broadcast and A's column as a vector. Written once, compiled for three instruction sets, chosen at run time.
#include "augment/augment.h"

#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#define DSE_ALWAYS static inline __attribute__((always_inline))

namespace {

using dse::Plane;
using dse::Walk;

constexpr int kLanes = 16;              // output channels of one accumulator
constexpr int kTile = 16;               // side of an output tile, pixels
constexpr int kArea = kTile * kTile;    // floats of one band of a tile

struct Item {
  Walk walk;
  int32_t y0, x0;                                          // crop's corner on the finest grid
  Plane plane[DSE_MAX_BANDS];
  float shift[DSE_MAX_BANDS + kLanes];                     // T m + b, zero in padding channels
};

struct Rect {  // part of the crop
  int32_t row, col, height, width;
};

struct Sum {
  int64_t total, count;
};

DSE_ALWAYS Sum sum_row(const int16_t* r, int32_t n, int32_t nodata) {
  int32_t total = 0, count = 0;
  for (int32_t k = 0; k < n; ++k) {
    const int32_t v = r[k];
    total += v == nodata ? 0 : v;
    count += v != nodata;
  }
  return Sum{total, count};
}

// One stored row, its first and last pixels counted only as often as the crop shows them.
DSE_ALWAYS Sum sum_crop_row(const Plane& p, int32_t row, int32_t x0, int32_t size, int32_t nodata) {
  const int32_t first = x0 / p.factor, last = (x0 + size - 1) / p.factor;
  const int16_t* r = p.data + (int64_t)row * p.width;
  Sum s = sum_row(r + first, last - first + 1, nodata);
  s.total *= p.factor;
  s.count *= p.factor;
  const int32_t hidden[2] = {x0 % p.factor, p.factor - 1 - (x0 + size - 1) % p.factor};
  const int16_t edge[2] = {r[first], r[last]};
  for (int e = 0; e < 2; ++e) {
    s.total -= edge[e] == nodata ? 0 : (int64_t)hidden[e] * edge[e];
    s.count -= edge[e] == nodata ? 0 : hidden[e];
  }
  return s;
}

DSE_ALWAYS double crop_mean(const Plane& p, const Item& item, int32_t size, int32_t nodata, float center) {
  Sum all = {0, 0}, row = {0, 0};
  int32_t stored = -1;
  for (int32_t y = item.y0; y < item.y0 + size; ++y) {
    if (y / p.factor != stored) {
      stored = y / p.factor;
      row = sum_crop_row(p, stored, item.x0, size, nodata);
    }
    all.total += row.total;
    all.count += row.count;
  }
  return dse::centered_mean(all.total, all.count, center);
}

DSE_ALWAYS void prepare(const dse_augment_args& a, int64_t index, Item& item) {
  double mean[DSE_MAX_BANDS];
  const int64_t sample = index % a.num_samples;
  item.walk = dse::walk_of(a.code[index], a.size);
  item.y0 = a.offset[2 * index];
  item.x0 = a.offset[2 * index + 1];
  for (int32_t j = 0; j < a.num_bands; ++j) {
    item.plane[j] = dse::plane_of(a, sample, j);
    mean[j] = crop_mean(item.plane[j], item, a.size, a.nodata, a.center[j]);
  }
  memset(item.shift, 0, sizeof item.shift);
  for (int32_t i = 0; i < a.num_bands; ++i) {
    const float* T_row = a.T + (index * a.num_bands + i) * a.num_bands;
    item.shift[i] = dse::shift_of(T_row, mean, a.b[index * a.num_bands + i], a.num_bands);
  }
}

// A's rows first .. first + kLanes - 1 as columns of lanes, zero past the last band.
DSE_ALWAYS void transpose_rows(const dse_augment_args& a, int64_t index, int32_t first, float* columns) {
  const float* A = a.A + index * a.num_bands * a.num_bands;
  for (int32_t j = 0; j < a.num_bands; ++j)
    for (int32_t l = 0; l < kLanes; ++l)
      columns[j * kLanes + l] = first + l < a.num_bands ? A[(first + l) * a.num_bands + j] : 0.0f;
}

DSE_ALWAYS Rect rect_of(const Walk& w, int32_t y, int32_t x, int32_t height, int32_t width) {
  const int32_t row0 = w.row0 + y * w.row_dy + x * w.row_dx, row1 = row0 + (height - 1) * w.row_dy + (width - 1) * w.row_dx;
  const int32_t col0 = w.col0 + y * w.col_dy + x * w.col_dx, col1 = col0 + (height - 1) * w.col_dy + (width - 1) * w.col_dx;
  const int32_t top = row0 < row1 ? row0 : row1, left = col0 < col1 ? col0 : col1;
  return Rect{top, left, (row0 < row1 ? row1 : row0) - top + 1, (col0 < col1 ? col1 : col0) - left + 1};
}

DSE_ALWAYS int convert(const int16_t* r, int32_t n, float center, int32_t nodata, float* x) {
  int any = 0;
  for (int32_t k = 0; k < n; ++k) {
    const int32_t v = r[k];
    const int absent = v == nodata;
    x[k] = absent ? 0.0f : (float)v - center;
    any |= absent;
  }
  return any;
}

// One row of a tile from a band of a coarser grid.
DSE_ALWAYS int convert_coarse(const int16_t* row, const Plane& p, int32_t x0, int32_t n, float center, int32_t nodata, float* x) {
  float coarse[kTile];
  const int32_t first = x0 / p.factor;
  const int any = convert(row + first, (x0 + n - 1) / p.factor - first + 1, center, nodata, coarse);
  int32_t phase = x0 % p.factor;
  for (int32_t k = 0, c = 0; k < n; ++k) {
    x[k] = coarse[c];
    if (++phase == p.factor) {
      phase = 0;
      ++c;
    }
  }
  return any;
}

// Centered floats of one band of a tile, rows kTile apart; returns whether a pixel has no data.
DSE_ALWAYS int load_band(const Plane& p, const Item& item, const Rect& rect, float center, int32_t nodata, float* x) {
  int any = 0;
  const int32_t left = item.x0 + rect.col;
  for (int32_t r = 0; r < rect.height; ++r) {
    const int32_t y = item.y0 + rect.row + r;
    const int16_t* row = p.data + (int64_t)(y / p.factor) * p.width;
    if (p.factor > 1) any |= convert_coarse(row, p, left, rect.width, center, nodata, x + r * kTile);
    else if (rect.width == kTile) any |= convert(row + left, kTile, center, nodata, x + r * kTile);
    else any |= convert(row + left, rect.width, center, nodata, x + r * kTile);
  }
  return any;
}

// Rounds to the output type and writes `num` pixels of `width` <= kLanes channels, `stride` elements apart. Where
// there is room, kLanes channels are written: the surplus lands on channels that are written later, in ascending order.
template <typename Out, Out (*round)(float)>
DSE_ALWAYS void store_rounded(const float* y, int num, Out* out, int64_t stride, int32_t width) {
  Out rounded[kTile * kLanes];
  for (int k = 0; k < num * kLanes; ++k) rounded[k] = round(y[k]);
  const int64_t end = (num - 1) * stride + width;
  int p = 0;
  for (; p * stride + kLanes <= end; ++p) memcpy(out + p * stride, rounded + p * kLanes, sizeof(Out) * kLanes);
  for (; p < num; ++p)
    for (int32_t i = 0; i < width; ++i) out[p * stride + i] = rounded[p * kLanes + i];
}

DSE_ALWAYS float same(float x) { return x; }

// kLanes output channels of P pixels that are `step` floats apart in the tile, in registers of W floats.
template <int W, int P>
DSE_ALWAYS void multiply(const float* x, int64_t step, const float* columns, const float* shift, int32_t num_bands, float* y) {
  typedef float V __attribute__((vector_size(W * sizeof(float))));
  constexpr int N = kLanes / W;
  V sum[P][N], a[N];
  memcpy(a, shift, sizeof a);
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int v = 0; v < N; ++v) sum[p][v] = a[v];
  for (int32_t j = 0; j < num_bands; ++j) {
    memcpy(a, columns + j * kLanes, sizeof a);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
      for (int v = 0; v < N; ++v) sum[p][v] += x[j * kArea + p * step] * a[v];
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) memcpy(y + p * kLanes, sum[p], sizeof sum[p]);
}

// One row of an output tile: num <= kTile pixels of channels first .. first + width - 1.
template <int W, int P>
DSE_ALWAYS void tile_row(const dse_augment_args& a, const Item& item, const float* x, int64_t step, const float* columns,
                         int32_t num, int32_t first, int64_t pixel) {
  float y[kTile * kLanes];
  int32_t p = 0;
  for (; p + P <= num; p += P) multiply<W, P>(x + p * step, step, columns, item.shift + first, a.num_bands, y + p * kLanes);
  for (; p < num; ++p) multiply<W, 1>(x + p * step, step, columns, item.shift + first, a.num_bands, y + p * kLanes);
  const int32_t left = a.out_channels - first, width = left < kLanes ? left : kLanes;
  const int64_t at = pixel * a.out_channels + first;
  if (a.out_type == DSE_FLOAT32) store_rounded<float, same>(y, num, (float*)a.out + at, a.out_channels, width);
  else if (a.out_type == DSE_BFLOAT16) store_rounded<uint16_t, dse::to_bfloat16>(y, num, (uint16_t*)a.out + at, a.out_channels, width);
  else store_rounded<uint16_t, dse::to_float16>(y, num, (uint16_t*)a.out + at, a.out_channels, width);
}

// Zero where the output channel's own band has no data; tiles without such pixels never come here.
void blank_absent(const dse_augment_args& a, const Item& item, int64_t index, int32_t y, int32_t x, int32_t height, int32_t width) {
  const int64_t bytes = a.out_type == DSE_FLOAT32 ? 4 : 2;
  for (int32_t dy = 0; dy < height; ++dy)
    for (int32_t dx = 0; dx < width; ++dx) {
      const Walk& w = item.walk;
      const int32_t row = item.y0 + w.row0 + (y + dy) * w.row_dy + (x + dx) * w.row_dx;
      const int32_t col = item.x0 + w.col0 + (y + dy) * w.col_dy + (x + dx) * w.col_dx;
      char* pixel = (char*)a.out + ((index * a.size + y + dy) * a.size + x + dx) * a.out_channels * bytes;
      for (int32_t i = 0; i < a.num_bands; ++i) {
        const Plane& p = item.plane[i];
        if (p.data[(int64_t)(row / p.factor) * p.width + col / p.factor] == a.nodata) memset(pixel + i * bytes, 0, bytes);
      }
    }
}

template <int W, int P>
DSE_ALWAYS void tile(const dse_augment_args& a, const Item& item, int64_t index, const float* columns, int32_t y, int32_t x) {
  alignas(64) static thread_local float centered[DSE_MAX_BANDS * kArea];
  const int32_t height = a.size - y < kTile ? a.size - y : kTile, width = a.size - x < kTile ? a.size - x : kTile;
  const Rect rect = rect_of(item.walk, y, x, height, width);
  int any = 0;
  for (int32_t j = 0; j < a.num_bands; ++j)
    any |= load_band(item.plane[j], item, rect, a.center[j], a.nodata, centered + j * kArea);
  const Walk& w = item.walk;
  const int64_t step = w.row_dx * kTile + w.col_dx, down = w.row_dy * kTile + w.col_dy;
  const int64_t start = (w.row0 + y * w.row_dy + x * w.row_dx - rect.row) * kTile + w.col0 + y * w.col_dy + x * w.col_dx - rect.col;
  for (int32_t dy = 0; dy < height; ++dy) {
    const int64_t pixel = (index * a.size + y + dy) * a.size + x;
    // Later channels first: their surplus lanes fall on the next pixel's first channels, written right after.
    for (int32_t block = (a.out_channels - 1) / kLanes; block >= 0; --block)
      tile_row<W, P>(a, item, centered + start + dy * down, step, columns + block * a.num_bands * kLanes, width, block * kLanes, pixel);
  }
  if (any) blank_absent(a, item, index, y, x, height, width);
}

template <int W, int P>
DSE_ALWAYS void run_item(const dse_augment_args& a, int64_t index) {
  alignas(64) static thread_local float columns[DSE_MAX_BANDS * (DSE_MAX_BANDS + kLanes)];
  Item item;
  prepare(a, index, item);
  for (int32_t first = 0; first < a.out_channels; first += kLanes)
    transpose_rows(a, index, first, columns + first * a.num_bands);
  for (int32_t y = 0; y < a.size; y += kTile)
    for (int32_t x = 0; x < a.size; x += kTile) tile<W, P>(a, item, index, columns, y, x);
}

typedef void (*ItemFunction)(const dse_augment_args&, int64_t);

void item_portable(const dse_augment_args& a, int64_t index) { run_item<4, 2>(a, index); }

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")))
void item_avx512(const dse_augment_args& a, int64_t index) { run_item<16, 16>(a, index); }

__attribute__((target("avx2,fma")))
void item_avx2(const dse_augment_args& a, int64_t index) { run_item<8, 6>(a, index); }
#endif

struct Choice {
  const char* name;
  ItemFunction item;
};

Choice choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return Choice{"avx512", item_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Choice{"avx2", item_avx2};
#endif
  return Choice{"portable", item_portable};
}

int check(const dse_augment_args& a) {
  if (a.num_bands < 1 || a.num_bands > DSE_MAX_BANDS || a.num_sources < 1 || a.num_sources > DSE_MAX_SOURCES ||
      a.out_channels < a.num_bands || a.out_channels > DSE_MAX_BANDS + kLanes || a.size < 1) return DSE_BAD_ARGUMENT;
  int32_t height = 0, width = 0;
  for (int32_t j = 0; j < a.num_bands; ++j) {
    const int32_t source = a.bands[3 * j], channel = a.bands[3 * j + 1], factor = a.bands[3 * j + 2];
    if (source < 0 || source >= a.num_sources || factor < 1) return DSE_BAD_BAND;
    const dse_source& s = a.source[source];
    if (channel < 0 || channel >= s.channels) return DSE_BAD_BAND;
    if (j > 0 && (s.height * factor != height || s.width * factor != width)) return DSE_BAD_BAND;
    height = s.height * factor;
    width = s.width * factor;
  }
  for (int64_t k = 0; k < a.num_views * a.num_samples; ++k) {
    const int32_t y = a.offset[2 * k], x = a.offset[2 * k + 1];
    if (y < 0 || x < 0 || y > height - a.size || x > width - a.size) return DSE_BAD_OFFSET;
    if (a.code[k] < 0 || a.code[k] > 7) return DSE_BAD_CODE;
  }
  return DSE_OK;
}

}  // namespace

int dse_augment_cpu(const dse_augment_args* args, int32_t num_threads) {
  const int status = check(*args);
  if (status != DSE_OK) return status;
  const int64_t num_items = args->num_views * args->num_samples;
  const ItemFunction item = choose().item;
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t k = next++; k < num_items; k = next++) item(*args, k);
  };
  std::vector<std::thread> threads;
  try {
    for (int64_t t = 1; t < num_threads && t < num_items; ++t) threads.emplace_back(work);
  } catch (const std::exception&) {
    // Fewer threads do the same work; the caller's own is one of them.
  }
  work();
  for (std::thread& thread : threads) thread.join();
  return DSE_OK;
}

const char* dse_isa(void) { return choose().name; }

const char* dse_message(int status) {
  switch (status) {
    case DSE_OK: return "ok";
    case DSE_BAD_ARGUMENT: return "a count or size is out of range";
    case DSE_BAD_BAND: return "bands: a row names no source or channel, or its source times its factor differs in extent from the others";
    case DSE_BAD_OFFSET: return "offset: a crop leaves the patch";
    case DSE_BAD_CODE: return "code: a dihedral code is not 0..7";
    case DSE_NO_CUDA: return "built without CUDA";
    default: return "CUDA error";
  }
}

#if !defined(DSENGINE_WITH_CUDA)
int dse_augment_cuda(const dse_augment_args*, float*, void*) { return DSE_NO_CUDA; }
int dse_has_cuda(void) { return 0; }
#endif
