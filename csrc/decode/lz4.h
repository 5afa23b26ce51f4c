// One raw LZ4 block (a sequence of literals and matches, lz4_Block_format.md), decoded to a size that is known before.
//
// The block may be damaged or hostile: every length and distance is compared with what holds it before it is used. Copies go in
// steps of 16 and 32 bytes and so past their ends: kSlack bytes after `in` are read, after `out` overwritten, and both belong to
// the caller. Most sequences of imagery are a few literals and a short match, for which there is no loop.
#pragma once
#include <stdint.h>
#include <string.h>

#include "isa.h"

namespace dse {

enum { kSlack = DSE_READ_SLACK };

typedef uint8_t Lane16 __attribute__((vector_size(16)));

// kPattern[d] repeats the first d of 16 bytes; its whole repeats take kStep[d] bytes. 16 stands for every longer distance.
alignas(16) static const uint8_t kPattern[17][16] = {
    {0},
    {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
    {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1},
    {0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0},
    {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3},
    {0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0},
    {0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3},
    {0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1},
    {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 1},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
static const uint8_t kStep[17] = {0, 16, 16, 15, 16, 15, 12, 14, 16, 9, 10, 11, 12, 13, 14, 15, 16};

DSE_ALWAYS void copy16(uint8_t* to, const uint8_t* from) { memcpy(to, from, 16); }

// `length` bytes in steps of 32, up to 31 more.
DSE_ALWAYS void copy_over(uint8_t* to, const uint8_t* from, int64_t length) {
  for (int64_t k = 0; k < length; k += 32) copy16(to + k, from + k), copy16(to + k + 16, from + k + 16);
}

// `length` bytes that began `distance` bytes before `to`; up to 15 more are written. A branch on the distance would be mispredicted
// every third time (1.3 times as long a block), a second step without one would wait for the store of the first (1.4 times).
DSE_ALWAYS void copy_match(uint8_t* to, int64_t distance, int64_t length) {
  const int64_t kind = distance < 16 ? distance : 16, step = kStep[kind];
  Lane16 bytes, pattern;
  memcpy(&bytes, to - distance, 16);
  memcpy(&pattern, kPattern[kind], 16);
  bytes = __builtin_shuffle(bytes, pattern);
  memcpy(to, &bytes, 16);
  if (__builtin_expect(length > step, 0)) {
    const int64_t back = distance < 16 ? step : distance;
    for (int64_t k = step; k < length; k += step) copy16(to + k, to + k - back);
  }
}

// Adds the bytes that continue a length of 15; false where the block ends within them.
DSE_ALWAYS bool add_more(const uint8_t*& at, const uint8_t* stop, int64_t& length) {
  for (;;) {
    if (at >= stop) return false;
    const uint8_t more = *at++;
    length += more;
    if (more != 255) return true;
  }
}

// Whether `in` is a block of exactly `out_bytes`, which then are in `out`.
DSE_ALWAYS bool lz4_block(const uint8_t* in, int64_t in_bytes, uint8_t* out, int64_t out_bytes) {
  const uint8_t *at = in, *const stop = in + in_bytes;
  uint8_t *to = out, *const end = out + out_bytes;
  while (at < stop) {
    const uint32_t token = *at++;
    int64_t length = token >> 4;
    if (length < 15) {
      copy16(to, at);
    } else {
      if (!add_more(at, stop, length) || length > stop - at || length > end - to) return false;
      copy_over(to, at, length);
    }
    at += length, to += length;
    if (at >= stop) return at == stop && to == end;
    if (stop - at < 2) return false;
    const int64_t distance = at[0] | at[1] << 8;
    at += 2;
    if (distance == 0 || distance > to - out) return false;
    length = (token & 15) + 4;
    if (length == 19 && !add_more(at, stop, length)) return false;
    if (length > end - to) return false;  // also where short literals went past the end
    copy_match(to, distance, length);
    to += length;
  }
  return false;
}

}  // namespace dse
