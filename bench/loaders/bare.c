// The loop that one would write by hand: pread and decode, files open and chunk tables known beforehand, nothing checked but lengths.
// Blosc and crc32c come as pointers to the functions of installed libraries, the ones that numcodecs and google-crc32c call.
#include <pthread.h>
#include <stdint.h>
#include <unistd.h>

typedef int (*Decompress)(const void* in, void* out, size_t out_bytes, int threads);
typedef uint32_t (*Extend)(uint32_t crc, const uint8_t* in, size_t bytes);

typedef struct {
  const int64_t* chunks;          // (n, 5): open file or address of its bytes, offset, bytes with crc32c, address of the patch, its bytes
  int64_t n, next, worker, most;  // most: of the bytes of a chunk, and of a patch
  uint8_t* scratch;               // (threads, most)
  Decompress decompress;
  Extend extend;  // null: no crc32c
  int read, decode, bad;
} Work;

static void* run(void* argument) {
  Work* w = argument;
  uint8_t* own = w->scratch + w->most * __atomic_fetch_add(&w->worker, 1, __ATOMIC_RELAXED);
  for (int64_t k; (k = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED)) < w->n;) {
    const int64_t* c = w->chunks + 5 * k;
    const int64_t body = c[2] - 4;
    const uint8_t* chunk = w->read ? own : (const uint8_t*)c[0] + c[1];
    if (w->read && pread((int)c[0], own, c[2], c[1]) != c[2]) w->bad = 1;
    if (w->extend && w->extend(0, chunk, body) != *(const uint32_t*)(chunk + body)) w->bad = 1;
    if (w->decode && w->decompress(chunk, (void*)c[3], c[4], 1) != c[4]) w->bad = 1;
  }
  return 0;
}

int bare_loop(const int64_t* chunks, int64_t n, int64_t most, uint8_t* scratch, int threads, int read, int decode, void* decompress, void* extend) {
  Work w = {chunks, n, 0, 0, most, scratch, (Decompress)decompress, (Extend)extend, read, decode, 0};
  pthread_t others[256];
  int started = 0;
  for (; started < threads - 1 && started < 256; ++started)
    if (pthread_create(&others[started], 0, run, &w)) break;
  run(&w);
  for (int k = 0; k < started; ++k) pthread_join(others[k], 0);
  return w.bad;
}
