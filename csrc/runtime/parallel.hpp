// Threads: OpenMP behind one function, so that threadpoolctl sees and limits them.
#pragma once

#include <cstddef>

namespace pyoptim::core {

int get_num_threads();        // the limit in force for this thread
void set_num_threads(int n);  // n >= 1, for every thread

// How many threads to use for `work` units, if each thread should have at least `grain` of them. It is 1
// inside another parallel region and in a forked child, where the thread pool of OpenMP no longer exists.
int threads_for(std::size_t work, std::size_t grain);

// Waits until all threads of this region have called it. Only for regions of two or more threads.
void barrier();

void run_parallel(int threads, void (*body)(int thread, int threads, void* context), void* context);

// Calls body(thread, threads) on each of `threads` threads.
template <class Body>
void parallel(int threads, Body&& body) {
    if (threads <= 1) {
        body(0, 1);
        return;
    }
    run_parallel(
        threads, [](int thread, int count, void* context) { (*static_cast<Body*>(context))(thread, count); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

// The part of [0, n) that falls to `part` of `parts`, cut at multiples of `unit`.
struct Range {
    std::size_t begin, end;
};
inline Range share(std::size_t n, std::size_t unit, int part, int parts) {
    const std::size_t units = (n + unit - 1) / unit;
    const std::size_t begin = units * static_cast<std::size_t>(part) / static_cast<std::size_t>(parts);
    const std::size_t end = units * static_cast<std::size_t>(part + 1) / static_cast<std::size_t>(parts);
    return {begin * unit < n ? begin * unit : n, end * unit < n ? end * unit : n};
}

}  // namespace pyoptim::core
