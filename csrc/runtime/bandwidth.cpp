#include "runtime/bandwidth.hpp"

#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace pyoptim::core {

void stream_update(double* a, const double* b, double s, std::size_t n) {
    parallel(threads_for(n, 16384), [=](int thread, int threads) {
        const Range mine = share(n, 64, thread, threads);
        for (std::size_t i = mine.begin; i < mine.end; ++i) a[i] += s * b[i];
    });
}

template <class T>
double multiply_add(std::size_t n) {
    double each = 0;
    int count = 1;
    parallel(threads_for(n, 16384), [&](int thread, int threads) {
        const double done = kernels<T>().multiply_add(n, T(0.5));
        if (thread == 0) {
            each = done;
            count = threads;
        }
    });
    return each * count;
}

template double multiply_add<float>(std::size_t);
template double multiply_add<double>(std::size_t);

}  // namespace pyoptim::core
