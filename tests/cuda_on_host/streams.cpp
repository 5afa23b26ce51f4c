// The CUDA source of unfilter_streams, built as C++ against the stand-in runtime beside this file.
#include "cuda_runtime.h"

#include "unfilter/streams_cuda.cu"
