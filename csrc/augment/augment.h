// The mathematics of the augmentation, shared by CPU and CUDA.
//
// Per band, x = r - center for a raw integer r, and x = 0 where r is nodata. Per sample and view
//     y = A x + T m + b,    m = mean of x over the crop's pixels with data (0 where a band has none),
// and y[i] = 0 where band i has no data, 0 in channels past num_bands. A band of factor f repeats each of its pixels
// f times along y and x. Output pixel (y, x) of dihedral code k + 4 * mirror shows crop pixel (y', x'): first x is
// mirrored if asked, then the image is turned k quarter turns as torch.rot90(k, dims=(-2, -1)) turns it.
#pragma once
#include <stdint.h>

#include "dsengine.h"
#include "numbers.h"

namespace dse {

// Crop coordinates as an affine function of output coordinates: along = start + y * dy + x * dx.
struct Walk {
  int32_t row0, row_dy, row_dx;
  int32_t col0, col_dy, col_dx;
};

DSE_INLINE Walk walk_of(int32_t code, int32_t size) {
  const int32_t last = size - 1;
  const int32_t turns = code & 3;
  Walk w = {0, 1, 0, 0, 0, 1};
  if (turns == 1) w = Walk{0, 0, 1, last, -1, 0};
  if (turns == 2) w = Walk{last, -1, 0, last, 0, -1};
  if (turns == 3) w = Walk{last, 0, -1, 0, 1, 0};
  if (code & 4) {
    w.row0 += last * w.row_dx;
    w.col0 += last * w.col_dx;
    w.row_dx = -w.row_dx;
    w.col_dx = -w.col_dx;
  }
  return w;
}

struct Rect {  // part of the crop or of the view
  int32_t row, col, height, width;
};

// The part of the crop that the output tile `at` shows.
DSE_INLINE Rect crop_of(const Walk& w, const Rect& at) {
  const int32_t row0 = w.row0 + at.row * w.row_dy + at.col * w.row_dx, row1 = row0 + (at.height - 1) * w.row_dy + (at.width - 1) * w.row_dx;
  const int32_t col0 = w.col0 + at.row * w.col_dy + at.col * w.col_dx, col1 = col0 + (at.height - 1) * w.col_dy + (at.width - 1) * w.col_dx;
  const int32_t top = row0 < row1 ? row0 : row1, left = col0 < col1 ? col0 : col1;
  return Rect{top, left, (row0 < row1 ? row1 : row0) - top + 1, (col0 < col1 ? col1 : col0) - left + 1};
}

// Whether the counts of the arguments are legal; says nothing about what the pointers point to.
inline bool counts_are_legal(const dse_augment_args& a) {
  return a.num_bands >= 1 && a.num_bands <= DSE_MAX_BANDS && a.num_sources >= 1 && a.num_sources <= DSE_MAX_SOURCES &&
         a.out_channels >= a.num_bands && a.out_channels <= DSE_MAX_CHANNELS && a.size >= 1 && a.num_views >= 0 &&
         a.num_samples >= 0;
}

// Where one band of one sample lies.
struct Plane {
  const int16_t* data;
  int32_t width;
  int32_t factor;
};

DSE_INLINE Plane plane_of(const dse_augment_args& a, int64_t sample, int32_t band) {
  const int32_t* row = a.bands + 3 * band;
  const dse_source& s = a.source[row[0]];
  const int64_t area = (int64_t)s.height * s.width;
  return Plane{s.data + (sample * s.channels + row[1]) * area, s.width, row[2]};
}

// Mean of x over n pixels with data whose raw values sum to `sum`.
DSE_INLINE double centered_mean(int64_t sum, int64_t n, float center) { return n ? (double)sum / (double)n - (double)center : 0.0; }

// T m + b of one output channel, added up in double.
DSE_INLINE float shift_of(const float* T_row, const double* mean, float b, int32_t num_bands) {
  double total = b;
  for (int32_t j = 0; j < num_bands; ++j) total += (double)T_row[j] * mean[j];
  return (float)total;
}

}  // namespace dse
