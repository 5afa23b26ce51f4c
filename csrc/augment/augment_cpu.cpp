// CPU path of the augmentation: one thread takes one (view, sample) at a time.
//
// An item is read twice: once for the band means (its crop then lies in L2), once in tiles. A tile's raw integers become
// centered floats x[band][pixel] in L1; then kLanes output channels at a time are accumulated for P pixels in registers,
// with x broadcast and A's column as a vector. Written once, compiled for three instruction sets, chosen at run time.
#include "augment/augment.h"

#include <atomic>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "augment/augment_lanes.h"
#include "threads.h"

namespace {

using namespace dse;

// What a thread needs for the item in hand; about 90 KiB on its stack.
struct Work {
  alignas(64) float x[DSE_MAX_BANDS * kArea];                   // tile, centered
  alignas(64) float columns[DSE_MAX_BANDS * DSE_MAX_CHANNELS];  // A by blocks of kLanes rows, transposed
  alignas(64) float shift[DSE_MAX_CHANNELS];                    // T m + b, zero in padding channels
  alignas(64) float staged[kTile * DSE_MAX_CHANNELS + kLanes];  // row of a tile in the output type, room for surplus lanes
  int32_t repeat[kTile];  // stored pixel of each tile column, for a band of factor `repeat_factor` at `repeat_left`
  int32_t repeat_factor, repeat_left;
  Plane plane[DSE_MAX_BANDS];
  Walk walk;
  int32_t y0, x0;  // crop's corner on the finest grid
  int64_t index;   // view * num_samples + sample
};

// Stored pixels that the crop shows along one axis. Each counts `factor` times, but the first and the last only as
// often as they are shown: part 0 is all of them, parts 1 and 2 take back what is hidden of the first and the last.
struct Part {
  int32_t first, num;
  int64_t weight;
};

DSE_ALWAYS void parts_of(int32_t start, int32_t size, int32_t factor, Part part[3]) {
  const int32_t first = start / factor, last = (start + size - 1) / factor;
  part[0] = Part{first, last - first + 1, factor};
  part[1] = Part{first, 1, -(start % factor)};
  part[2] = Part{last, 1, -(factor - 1 - (start + size - 1) % factor)};
}

template <int W>
DSE_ALWAYS double crop_mean(const Plane& p, const Work& w, int32_t size, int32_t nodata, float center) {
  Part rows[3], cols[3];
  parts_of(w.y0, size, p.factor, rows);
  parts_of(w.x0, size, p.factor, cols);
  Sum all = {0, 0};
  for (const Part& r : rows)
    for (const Part& c : cols) {
      const int64_t weight = r.weight * c.weight;
      if (weight == 0) continue;
      const Sum s = sum_block<W>(p.data + (int64_t)r.first * p.width + c.first, r.num, c.num, p.width, nodata);
      all.total += weight * s.total;
      all.count += weight * s.count;
    }
  return centered_mean(all.total, all.count, center);
}

template <int W>
DSE_ALWAYS void prepare(const dse_augment_args& a, int64_t index, Work& w) {
  double mean[DSE_MAX_BANDS];
  w.index = index;
  w.repeat_factor = 0;
  w.walk = walk_of(a.code[index], a.size);
  w.y0 = a.offset[2 * index];
  w.x0 = a.offset[2 * index + 1];
  for (int32_t j = 0; j < a.num_bands; ++j) {
    w.plane[j] = plane_of(a, index % a.num_samples, j);
    mean[j] = crop_mean<W>(w.plane[j], w, a.size, a.nodata, a.center[j]);
  }
  const int32_t n = a.num_bands;
  for (int32_t i = 0; i < DSE_MAX_CHANNELS; ++i)
    w.shift[i] = i < n ? shift_of(a.T + (index * n + i) * n, mean, a.b[index * n + i], n) : 0.0f;
}

// A's rows first .. first + kLanes - 1 as columns of lanes, zero past the last band.
DSE_ALWAYS void transpose_rows(const dse_augment_args& a, int64_t index, int32_t first, float* columns) {
  const float* A = a.A + index * a.num_bands * a.num_bands;
  for (int32_t j = 0; j < a.num_bands; ++j)
    for (int32_t l = 0; l < kLanes; ++l)
      columns[j * kLanes + l] = first + l < a.num_bands ? A[(first + l) * a.num_bands + j] : 0.0f;
}

// One row of a tile from a band of a coarser grid.
template <int W>
DSE_ALWAYS void convert_coarse(const int16_t* row, int32_t factor, int32_t left, int32_t n, float center, int32_t nodata,
                               Work& w, float* x, typename Lanes<W>::Int& absent) {
  float coarse[kTile];
  if (w.repeat_factor != factor || w.repeat_left != left) {
    for (int32_t k = 0; k < kTile; ++k) w.repeat[k] = k < n ? (left + k) / factor - left / factor : 0;
    w.repeat_factor = factor;
    w.repeat_left = left;
  }
  convert<W>(row + left / factor, (left + n - 1) / factor - left / factor + 1, center, nodata, coarse, absent);
#pragma GCC unroll 16
  for (int32_t k = 0; k < kTile; ++k) x[k] = coarse[w.repeat[k]];
}

// Centered floats of one band of a tile, rows kTile apart.
template <int W>
DSE_ALWAYS void load_band(const Plane& p, Work& w, const Rect& rect, float center, int32_t nodata, float* x,
                          typename Lanes<W>::Int& absent) {
  const int32_t left = w.x0 + rect.col, top = w.y0 + rect.row;
  const int16_t* row = p.data + (int64_t)(top / p.factor) * p.width;
  if (p.factor == 1 && rect.width == kTile) {
    for (int32_t r = 0; r < rect.height; ++r, row += p.width, x += kTile)
      convert<W>(row + left, kTile, center, nodata, x, absent);
  } else if (p.factor == 1) {
    for (int32_t r = 0; r < rect.height; ++r, row += p.width, x += kTile)
      convert<W>(row + left, rect.width, center, nodata, x, absent);
  } else {
    for (int32_t r = 0; r < rect.height; ++r, x += kTile) {
      const bool is_repeated = r > 0 && (top + r) % p.factor != 0;
      if (is_repeated) memcpy(x, x - kTile, sizeof(float) * kTile);
      else convert_coarse<W>(row, p.factor, left, rect.width, center, nodata, w, x, absent);
      if ((top + r + 1) % p.factor == 0) row += p.width;
    }
  }
}

// One row of an output tile, all channels: num <= kTile pixels to y.
template <int W, int P, typename As>
DSE_ALWAYS void tile_row(const dse_augment_args& a, const Work& w, const float* x, int64_t step, int32_t num, typename As::Value* y) {
  const int64_t stride = a.out_channels;
  // Later channels first: their surplus lanes fall on the next pixel's first channels, written right after.
  for (int32_t block = (a.out_channels - 1) / kLanes; block >= 0; --block) {
    const float *columns = w.columns + block * a.num_bands * kLanes, *shift = w.shift + block * kLanes;
    typename As::Value* to = y + block * kLanes;
    int32_t p = 0;
    for (; p + P <= num; p += P) multiply<W, P, As>(x + p * step, step, columns, shift, a.num_bands, to + p * stride, stride);
    for (; p < num; ++p) multiply<W, 1, As>(x + p * step, step, columns, shift, a.num_bands, to + p * stride, stride);
  }
}

// The output tile `at` from the centered floats that start at x_first, `down` apart from row to row. A row is staged in L1
// so that whole lines go out.
template <int W, int P, typename As>
DSE_ALWAYS void write_tile(const dse_augment_args& a, Work& w, const Rect& at, const float* x_first, int64_t step, int64_t down) {
  typedef typename As::Value Value;
  const int64_t row_bytes = (int64_t)at.width * a.out_channels * sizeof(Value);
  for (int32_t dy = 0; dy < at.height; ++dy) {
    tile_row<W, P, As>(a, w, x_first + dy * down, step, at.width, (Value*)w.staged);
    const int64_t pixel = (w.index * a.size + at.row + dy) * a.size + at.col;
    copy_out((const char*)w.staged, row_bytes, (char*)((Value*)a.out + pixel * a.out_channels));
  }
}

// Zero where the output channel's own band has no data; tiles without such pixels never come here.
void blank_absent(const dse_augment_args& a, const Work& work, const Rect& at) {
  const int64_t bytes = a.out_type == DSE_FLOAT32 ? 4 : 2;
  for (int32_t y = at.row; y < at.row + at.height; ++y)
    for (int32_t x = at.col; x < at.col + at.width; ++x) {
      const Walk& w = work.walk;
      const int32_t row = work.y0 + w.row0 + y * w.row_dy + x * w.row_dx;
      const int32_t col = work.x0 + w.col0 + y * w.col_dy + x * w.col_dx;
      char* pixel = (char*)a.out + ((work.index * a.size + y) * a.size + x) * a.out_channels * bytes;
      for (int32_t i = 0; i < a.num_bands; ++i) {
        const Plane& p = work.plane[i];
        if (p.data[(int64_t)(row / p.factor) * p.width + col / p.factor] == a.nodata) memset(pixel + i * bytes, 0, bytes);
      }
    }
}

template <int W, int P>
DSE_ALWAYS void tile(const dse_augment_args& a, Work& work, const Rect& at) {
  const Walk& w = work.walk;
  const Rect crop = crop_of(w, at);
  typename Lanes<W>::Int absent = {};
  for (int32_t j = 0; j < a.num_bands; ++j)
    load_band<W>(work.plane[j], work, crop, a.center[j], a.nodata, work.x + j * kArea, absent);
  const int64_t step = w.row_dx * kTile + w.col_dx, down = w.row_dy * kTile + w.col_dy;
  const int64_t first_row = w.row0 + at.row * w.row_dy + at.col * w.row_dx, first_col = w.col0 + at.row * w.col_dy + at.col * w.col_dx;
  const float* x = work.x + (first_row - crop.row) * kTile + first_col - crop.col;
  if (a.out_type == DSE_FLOAT32) write_tile<W, P, AsFloat32<W>>(a, work, at, x, step, down);
  else if (a.out_type == DSE_BFLOAT16) write_tile<W, P, AsBfloat16<W>>(a, work, at, x, step, down);
  else write_tile<W, P, AsFloat16<W>>(a, work, at, x, step, down);
  if (total_of<W>(absent) != 0) blank_absent(a, work, at);
}

template <int W, int P>
DSE_ALWAYS void run_item(const dse_augment_args& a, int64_t index, Work& work) {
  prepare<W>(a, index, work);
  for (int32_t first = 0; first < a.out_channels; first += kLanes)
    transpose_rows(a, index, first, work.columns + first * a.num_bands);
  for (int32_t y = 0; y < a.size; y += kTile)
    for (int32_t x = 0; x < a.size; x += kTile)
      tile<W, P>(a, work, Rect{y, x, a.size - y < kTile ? a.size - y : kTile, a.size - x < kTile ? a.size - x : kTile});
}

typedef void (*ItemFunction)(const dse_augment_args&, int64_t, Work&);

void item_portable(const dse_augment_args& a, int64_t index, Work& work) { run_item<4, 2>(a, index, work); }

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")))
void item_avx512(const dse_augment_args& a, int64_t index, Work& work) { run_item<16, 16>(a, index, work); }

__attribute__((target("avx2,fma")))
void item_avx2(const dse_augment_args& a, int64_t index, Work& work) { run_item<8, 6>(a, index, work); }
#endif

// Null where this CPU lacks the instruction set.
ItemFunction function_of(int32_t isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq");
  if (isa == DSE_ISA_AVX512) return has_avx512 ? item_avx512 : nullptr;
  if (isa == DSE_ISA_AVX2) return has_avx2 ? item_avx2 : nullptr;
#endif
  return isa == DSE_ISA_PORTABLE ? item_portable : nullptr;
}

int check(const dse_augment_args& a) {
  if (!counts_are_legal(a)) return DSE_BAD_ARGUMENT;
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

// A batch of views is fresh memory each time, and its first touch costs 1.3 us per 4 KiB page here: more than all the
// arithmetic. With huge pages 64 fp32 views came twice as fast. Only advice: ignored where it is unknown.
void ask_for_huge_pages(const dse_augment_args& a) {
#if defined(__linux__)
  const int64_t value_bytes = a.out_type == DSE_FLOAT32 ? 4 : 2, huge = 1 << 21;
  const int64_t bytes = a.num_views * a.num_samples * a.size * a.size * a.out_channels * value_bytes;
  const uintptr_t begin = ((uintptr_t)a.out + huge - 1) / huge * huge, end = ((uintptr_t)a.out + bytes) / huge * huge;
  if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#else
  (void)a;
#endif
}

}  // namespace

int dse_best_isa(void) {
  for (int isa = DSE_ISA_AVX512; isa > DSE_ISA_PORTABLE; --isa)
    if (function_of(isa)) return isa;
  return DSE_ISA_PORTABLE;
}

int dse_augment_cpu(const dse_augment_args* args, int32_t num_threads, int32_t isa) {
  const int status = check(*args);
  if (status != DSE_OK) return status;
  const ItemFunction item = function_of(isa == DSE_ISA_BEST ? dse_best_isa() : isa);
  if (!item) return DSE_BAD_ISA;
  ask_for_huge_pages(*args);
  const int64_t num_items = args->num_views * args->num_samples;
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    Work w;
    for (int64_t k = next++; k < num_items; k = next++) item(*args, k, w);
    fence();
  };
  in_threads(num_threads < num_items ? num_threads : num_items, run);
  return DSE_OK;
}

#if !defined(DSENGINE_WITH_CUDA)
int dse_augment_cuda(const dse_augment_args*, double*, void*) { return DSE_NO_CUDA; }
int dse_has_cuda(void) { return 0; }
#endif
