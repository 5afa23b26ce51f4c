// Enough of the CUDA runtime to run a .cu file on the host: each block as real threads with a barrier, block after block.
// For tests of indexing and arithmetic on machines without a GPU; it says nothing about memory models or speed.
#pragma once
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__

struct dim3 {
  unsigned x;
  explicit dim3(unsigned value) : x(value) {}
};
struct ulonglong2 {
  unsigned long long x, y;
};
typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
constexpr size_t kHostSharedBytes = 48 << 10;  // what a launch may ask for without opting in

struct HostIndex {
  unsigned x;
};
inline thread_local HostIndex threadIdx{0}, blockIdx{0};
inline thread_local std::barrier<>* host_barrier = nullptr;
inline void __syncthreads() { host_barrier->arrive_and_wait(); }

template <typename... Args, size_t... I>
void host_call(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<Args*>(args[I])...);
}

template <typename... Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args...), dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t) {
  if (shared > kHostSharedBytes || block.x == 0 || block.x > 1024 || grid.x == 0) return cudaErrorInvalidValue;
  std::barrier<> barrier(block.x);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < block.x; ++t)
    threads.emplace_back([&, t] {
      host_barrier = &barrier;
      threadIdx.x = t;
      for (unsigned b = 0; b < grid.x; ++b) {
        blockIdx.x = b;
        host_call(kernel, args, std::index_sequence_for<Args...>{});
        __syncthreads();  // the next block reuses the shared memory
      }
    });
  for (std::thread& thread : threads) thread.join();
  return cudaSuccess;
}
