#include "runtime/bandwidth.hpp"

#include "runtime/parallel.hpp"

namespace pyoptim::runtime {

void stream_update(double* a, const double* b, double s, std::size_t n) {
    parallel(threads_for(n, 16384), [=](int thread, int threads) {
        const Range mine = share(n, 64, thread, threads);
        for (std::size_t i = mine.begin; i < mine.end; ++i) a[i] += s * b[i];
    });
}

}  // namespace pyoptim::runtime
