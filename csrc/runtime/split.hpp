// How streaming kernels share their work.
#pragma once

#include <cstddef>

#include "runtime/parallel.hpp"

namespace pyoptim::core {

// How many elements make waking a thread worth while, in a streaming kernel and in one that computes an exp.
// Either is about 20 us of work, many times what a part costs that another thread takes.
constexpr std::size_t kGrain = 65536, kExpGrain = 16384;
constexpr std::size_t kLine = 64;  // elements; splits fall on cache lines

// Calls body(begin, end) on the parts of [0, n).
template <class Body>
void split(std::size_t n, std::size_t work, std::size_t grain, std::size_t unit, Body body) {
    parallel(threads_for(work, grain), [&](int thread, int threads) {
        const Range mine = share(n, unit, thread, threads);
        if (mine.begin < mine.end) {
            body(static_cast<std::ptrdiff_t>(mine.begin), static_cast<std::ptrdiff_t>(mine.end));
        }
    });
}

}  // namespace pyoptim::core
