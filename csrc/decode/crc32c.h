// CRC-32C (Castagnoli, RFC 3720 appendix B.4), by the CPU's instruction where it has one.
//
// The instruction takes 8 bytes in 1 cycle but gives its result after 3, so three runs of kRun bytes go side by side. A run's
// register is carried over the bytes that follow it by a linear map: of a register over kRun zero bytes, as four tables.
#pragma once
#include <stdint.h>
#include <string.h>

#include "isa.h"

namespace dse {

enum : int64_t { kRun = 1024 };

struct CrcTables {
  uint32_t byte[256];       // a register of one byte, after that byte
  uint32_t over[4][256];    // byte k of a register, after kRun zero bytes
  CrcTables() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t x = i;
      for (int bit = 0; bit < 8; ++bit) x = x >> 1 ^ (x & 1 ? 0x82F63B78u : 0u);
      byte[i] = x;
    }
    for (int bit = 0; bit < 32; ++bit) {
      uint32_t x = 1u << bit;
      for (int64_t k = 0; k < kRun; ++k) x = x >> 8 ^ byte[x & 255];
      const int digit = 1 << bit % 8;
      uint32_t* table = over[bit / 8];
      if (digit == 1) table[0] = 0;
      for (int i = 0; i < digit; ++i) table[digit + i] = table[i] ^ x;
    }
  }
};

inline const CrcTables& crc_tables() {
  static const CrcTables tables;
  return tables;
}

inline uint32_t crc_bytes(uint32_t x, const uint8_t* in, int64_t n) {
  const CrcTables& t = crc_tables();
  for (int64_t k = 0; k < n; ++k) x = x >> 8 ^ t.byte[(x ^ in[k]) & 255];
  return x;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) inline uint32_t crc_words(uint32_t x, const uint8_t* in, int64_t n) {
  const CrcTables& t = crc_tables();
  const auto carried = [&t](uint64_t r) { return t.over[0][r & 255] ^ t.over[1][r >> 8 & 255] ^ t.over[2][r >> 16 & 255] ^ t.over[3][r >> 24 & 255]; };
  const auto word = [](const uint8_t* p) {
    uint64_t w;
    memcpy(&w, p, 8);
    return w;
  };
  uint64_t a = x;
  for (; n >= 3 * kRun; n -= 3 * kRun, in += 3 * kRun) {
    uint64_t b = 0, c = 0;
    for (int64_t k = 0; k < kRun; k += 8) {
      a = __builtin_ia32_crc32di(a, word(in + k));
      b = __builtin_ia32_crc32di(b, word(in + kRun + k));
      c = __builtin_ia32_crc32di(c, word(in + 2 * kRun + k));
    }
    a = carried(carried(a) ^ b) ^ c;
  }
  for (; n >= 8; n -= 8, in += 8) a = __builtin_ia32_crc32di(a, word(in));
  return crc_bytes((uint32_t)a, in, n);
}
#else
inline uint32_t crc_words(uint32_t x, const uint8_t* in, int64_t n) { return crc_bytes(x, in, n); }
#endif

// The checksum of `n` bytes. `fast`: the CPU has SSE 4.2.
inline uint32_t crc32c(const uint8_t* in, int64_t n, bool fast) { return ~(fast ? crc_words : crc_bytes)(~0u, in, n); }

}  // namespace dse
