// The CUDA source of bitpack, built as C++ against the stand-in runtime beside this file.
#include "cuda_runtime.h"

alignas(16) long long dse_shared[kHostSharedBytes / sizeof(long long)];

#include "bitpack/bitpack_cuda.cu"
