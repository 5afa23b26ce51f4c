// CPU path of the triplet loss. A thread takes up to 64 cells and walks all rows, so no two threads write the same number.
//
// Rows are walked in the order 0, shift, 2 shift, ... (mod rows): the positive of one row is the negative of the next, and
// its gradient gets both shares while it is in cache. What goes through memory is then two reads and two writes.
#include <math.h>

#include <atomic>
#include <new>
#include <numeric>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace {

using namespace dse;

constexpr int32_t kLanes = 64;
constexpr int32_t kPartial = 16;  // terms summed before they join the total, which keeps a sum of many as exact as torch's
constexpr float kEps = 1e-12f;

// A stretch of a row: `outer` times `inner` numbers, `stride` apart. Lanes are cells, or channels when channels_last.
struct Stretch {
  int64_t at, stride;
  int32_t outer, inner;
};

// Numbers of one row in cache: slopes of both distances, and per lane the distances and what slopes are multiplied by.
struct Work {
  std::vector<float> to_positive, to_negative;
  float d_positive[kLanes], d_negative[kLanes], w_positive[kLanes], w_negative[kLanes];
};

template <int KIND>
DSE_ALWAYS float term_and_slope(float x, float y, float* slope) {
  const float diff = x - y, square = diff * diff;
  const float term = KIND == DSE_L1 ? sqrtf(square + kEps) : square;
  *slope = KIND == DSE_L1 ? diff / term : diff;
  return term;
}

// Adds this stretch to the lanes' sums of terms; slopes go to w from `first` on.
template <int KIND>
DSE_ALWAYS void add_distances(const float* a, const float* p, const float* n, Stretch s, Work& w, int64_t first) {
  for (int32_t begin = 0; begin < s.outer; begin += kPartial) {
    const int32_t end = begin + kPartial < s.outer ? begin + kPartial : s.outer;
    float positive[kLanes] = {}, negative[kLanes] = {};
    for (int32_t o = begin; o < end; ++o) {
      const float *x = a + s.at + o * s.stride, *y = p + s.at + o * s.stride, *z = n + s.at + o * s.stride;
      float *u = w.to_positive.data() + first + (int64_t)o * s.inner, *v = w.to_negative.data() + first + (int64_t)o * s.inner;
#pragma GCC ivdep
      for (int32_t l = 0; l < s.inner; ++l) {
        positive[l] += term_and_slope<KIND>(x[l], y[l], u + l);
        negative[l] += term_and_slope<KIND>(x[l], z[l], v + l);
      }
    }
    for (int32_t l = 0; l < s.inner; ++l) w.d_positive[l] += positive[l], w.d_negative[l] += negative[l];
  }
}

// From the sum of terms: hinge, and what the slopes are multiplied by. NaN counts as active, as in the definition.
template <int KIND>
DSE_ALWAYS float finish(const dse_triplet_args& a, float d_positive, float d_negative, float* w_positive, float* w_negative) {
  if (KIND == DSE_EUCLIDEAN) d_positive = sqrtf(d_positive + kEps), d_negative = sqrtf(d_negative + kEps);
  const float hinge = d_positive - d_negative + a.margin;
  const float weight = a.scale * (a.soft ? 1.0f / (1.0f + expf(-hinge)) : hinge <= 0.0f ? 0.0f : 1.0f);
  *w_positive = KIND == DSE_EUCLIDEAN ? weight / d_positive : KIND == DSE_SQUARED ? 2.0f * weight : weight;
  *w_negative = KIND == DSE_EUCLIDEAN ? weight / d_negative : KIND == DSE_SQUARED ? 2.0f * weight : weight;
  return hinge;
}

// What one row's gradients are written to, and whether the last two hold a share already.
struct Target {
  float *anchor, *positive, *negative;
  bool adds_positive, adds_negative;
};

DSE_ALWAYS void put(float* to, float share, bool adds) { *to = adds ? *to + share : share; }

DSE_ALWAYS void put_gradients(const Target& t, Stretch s, const Work& w, int64_t first) {
  for (int32_t o = 0; o < s.outer; ++o) {
    const int64_t at = s.at + o * s.stride;
    const float *u = w.to_positive.data() + first + (int64_t)o * s.inner, *v = w.to_negative.data() + first + (int64_t)o * s.inner;
    float *anchor = t.anchor + at, *positive = t.positive + at, *negative = t.negative + at;
#pragma GCC ivdep
    for (int32_t l = 0; l < s.inner; ++l) {
      const float own = w.w_positive[l] * u[l], other = w.w_negative[l] * v[l];
      anchor[l] = own - other;
      put(positive + l, -own, t.adds_positive);
      put(negative + l, other, t.adds_negative);
    }
  }
}

DSE_ALWAYS void clear(Work& w) {
  for (int32_t l = 0; l < kLanes; ++l) w.d_positive[l] = w.d_negative[l] = 0.0f;
}

// Lanes are cells: `inner` of them from `cell` on.
template <int KIND>
DSE_ALWAYS void cells_first(const dse_triplet_args& a, const float* x, const float* p, const float* n, int64_t cell, int32_t inner, const Target& t,
                            Work& w, float* hinge) {
  const Stretch s = {cell, a.cells, a.channels, inner};
  clear(w);
  add_distances<KIND>(x, p, n, s, w, 0);
  for (int32_t l = 0; l < inner; ++l) hinge[cell + l] = finish<KIND>(a, w.d_positive[l], w.d_negative[l], w.w_positive + l, w.w_negative + l);
  put_gradients(t, s, w, 0);
}

// Lanes are channels of one cell: whole runs of them, then what is left.
template <int KIND>
DSE_ALWAYS void channels_last(const dse_triplet_args& a, const float* x, const float* p, const float* n, int64_t cell, const Target& t, Work& w,
                              float* hinge) {
  const int32_t whole = a.channels / kLanes * kLanes;
  const Stretch s[2] = {{cell * a.channels, kLanes, whole / kLanes, kLanes}, {cell * a.channels + whole, kLanes, 1, a.channels - whole}};
  clear(w);
  add_distances<KIND>(x, p, n, s[0], w, 0);
  add_distances<KIND>(x, p, n, s[1], w, whole);
  float positive = 0.0f, negative = 0.0f;
  for (int32_t l = 0; l < kLanes; ++l) positive += w.d_positive[l], negative += w.d_negative[l];
  hinge[cell] = finish<KIND>(a, positive, negative, &positive, &negative);
  for (int32_t l = 0; l < kLanes; ++l) w.w_positive[l] = positive, w.w_negative[l] = negative;
  put_gradients(t, s[0], w, 0);
  put_gradients(t, s[1], w, whole);
}

// All rows of cells begin .. end - 1.
template <int KIND>
DSE_ALWAYS void walk(const dse_triplet_args& a, int64_t begin, int64_t end, Work& w) {
  const int64_t size = (int64_t)a.channels * a.cells, cycles = a.shift ? std::gcd(a.rows, a.shift) : a.rows, length = a.rows / cycles;
  for (int64_t first = 0; first < cycles; ++first) {
    int64_t i = first;
    for (int64_t k = 0; k < length; ++k, i = (i + a.shift) % a.rows) {
      const int64_t j = a.shift ? (i + a.rows - a.shift) % a.rows : i;
      const float *x = a.anchor + i * size, *p = a.positive + i * size, *n = (a.shift ? a.positive : a.negative) + j * size;
      // Only the first row of a cycle finds no share of its own in its negative's gradient, which is the last row's.
      const Target t = {a.grad_anchor + i * size, a.grad_positive + i * size, (a.shift ? a.grad_positive : a.grad_negative) + j * size,
                        a.shift && k == length - 1, a.shift && k > 0};
      float* hinge = a.hinge + i * a.cells;
      if (a.channels_last)
        for (int64_t cell = begin; cell < end; ++cell) channels_last<KIND>(a, x, p, n, cell, t, w, hinge);
      else
        cells_first<KIND>(a, x, p, n, begin, (int32_t)(end - begin), t, w, hinge);
    }
  }
}

DSE_ALWAYS void walk_any(const dse_triplet_args& a, int64_t begin, int64_t end, Work& w) {
  if (a.distance == DSE_EUCLIDEAN) walk<DSE_EUCLIDEAN>(a, begin, end, w);
  else if (a.distance == DSE_L1) walk<DSE_L1>(a, begin, end, w);
  else walk<DSE_SQUARED>(a, begin, end, w);
}

void walk_portable(const dse_triplet_args& a, int64_t begin, int64_t end, Work& w) { walk_any(a, begin, end, w); }
DSE_AVX2 void walk_avx2(const dse_triplet_args& a, int64_t begin, int64_t end, Work& w) { walk_any(a, begin, end, w); }
DSE_AVX512 void walk_avx512(const dse_triplet_args& a, int64_t begin, int64_t end, Work& w) { walk_any(a, begin, end, w); }

bool counts_are_legal(const dse_triplet_args& a) {
  return a.rows >= 1 && a.channels >= 1 && a.cells >= 1 && a.shift >= 0 && a.shift < a.rows && a.distance >= DSE_EUCLIDEAN &&
         a.distance <= DSE_SQUARED;
}

}  // namespace

int dse_triplet_cpu(const dse_triplet_args* args, int32_t num_threads, int32_t isa) {
  const dse_triplet_args& a = *args;
  if (!counts_are_legal(a)) return DSE_BAD_ARGUMENT;
  const auto walk = function_of(isa, walk_portable, walk_avx2, walk_avx512);
  if (!walk) return DSE_BAD_ISA;
  // Sixteen cells are a cache line, which two threads had better not share.
  const int64_t even = (a.cells + (num_threads > 1 ? num_threads : 1) - 1) / (num_threads > 1 ? num_threads : 1), lines = (even + 15) / 16 * 16;
  const int64_t width = lines < kLanes ? lines : kLanes, num_items = (a.cells + width - 1) / width;
  std::atomic<int64_t> next{0};
  std::atomic<bool> has_memory{true};
  in_threads(num_threads < num_items ? num_threads : num_items, [&] {
    try {
      const size_t numbers = (size_t)a.channels * (a.channels_last ? 1 : width);
      Work w{std::vector<float>(numbers), std::vector<float>(numbers), {}, {}, {}, {}};
      for (int64_t k = next++; k < num_items; k = next++) walk(a, k * width, (k + 1) * width < a.cells ? (k + 1) * width : a.cells, w);
    } catch (const std::bad_alloc&) {
      has_memory = false;
    }
  });
  return has_memory ? DSE_OK : DSE_NO_MEMORY;
}
