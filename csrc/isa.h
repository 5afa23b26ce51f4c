// One source for three instruction sets, chosen at run time: inline templates, wrapped in a function of each target.
#pragma once
#include <stdint.h>

#include "dsengine.h"

#define DSE_ALWAYS static inline __attribute__((always_inline))
#if defined(__x86_64__)
#define DSE_AVX2 __attribute__((target("avx2,fma")))
#define DSE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")))
#else
#define DSE_AVX2
#define DSE_AVX512
#endif

namespace dse {

// The function of an instruction set; null where this CPU lacks it.
template <typename F>
F function_of(int32_t isa, F portable, F avx2, F avx512) {
  const int32_t best = dse_best_isa();
  if (isa == DSE_ISA_BEST) isa = best;
  if (isa > best || isa < DSE_ISA_PORTABLE) return nullptr;
  return isa == DSE_ISA_AVX512 ? avx512 : isa == DSE_ISA_AVX2 ? avx2 : portable;
}

}  // namespace dse
