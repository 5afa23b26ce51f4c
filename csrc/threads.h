// The same work in several threads of the caller's own.
#pragma once
#include <stdint.h>

#include <exception>
#include <thread>
#include <vector>

namespace dse {

// Calls `run()` in up to `num_threads` threads, the calling one among them, and waits. `run` takes items off a shared counter.
template <typename Run>
void in_threads(int64_t num_threads, const Run& run) {
  std::vector<std::thread> threads;
  try {
    for (int64_t t = 1; t < num_threads; ++t) threads.emplace_back(run);
  } catch (const std::exception&) {
    // Fewer threads do the same work.
  }
  run();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace dse
