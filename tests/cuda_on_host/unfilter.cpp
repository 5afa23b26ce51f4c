// The CUDA source of unfilter, built as C++ against the stand-in runtime beside this file.
#include "cuda_runtime.h"

#include "unfilter/unfilter_cuda.cu"
