#include "runtime/layers.hpp"

#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim::runtime {

namespace {

// What pays for waking a thread: elements of a streaming kernel, elements with an exp.
// About 20 us each: on a busy machine a woken thread may come late, and everyone waits for it.
constexpr std::size_t kGrain = 65536, kExpGrain = 8192;
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

}  // namespace

template <class T>
void activation_forward(Activation kind, std::size_t n, const T* x, T* y) {
    split(n, n, kExpGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().activation_forward(kind, static_cast<std::size_t>(end - begin), x + begin, y + begin);
    });
}

template <class T>
void activation_backward(Activation kind, std::size_t n, const T* dy, const T* y, T* dx) {
    split(n, n, kGrain, kLine, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        kernels<T>().activation_backward(kind, static_cast<std::size_t>(end - begin), dy + begin, y + begin,
                                         dx + begin);
    });
}

template <class T>
double softmax_cross_entropy(std::ptrdiff_t batch, std::ptrdiff_t classes, const T* logits,
                             const std::int64_t* labels, T* dlogits) {
    const auto n = static_cast<std::size_t>(batch);
    const T scale = T(1.0 / static_cast<double>(batch));
    return sum_of_blocks(n, 64, n * static_cast<std::size_t>(classes), kExpGrain,
                         [&](std::size_t begin, std::size_t end) {
                             return kernels<T>().softmax_cross_entropy(
                                 logits, labels, classes, static_cast<std::ptrdiff_t>(begin),
                                 static_cast<std::ptrdiff_t>(end), scale, dlogits);
                         }) /
           static_cast<double>(batch);
}

template <class T>
double squared_error(std::size_t n, const T* prediction, const T* target, T* dprediction) {
    const T scale = T(1.0 / static_cast<double>(n));
    return sum_of_blocks(n, 4096, n, kGrain,
                         [&](std::size_t begin, std::size_t end) {
                             return kernels<T>().squared_error(
                                 end - begin, prediction + begin, target + begin, scale,
                                 dprediction == nullptr ? nullptr : dprediction + begin);
                         }) /
           static_cast<double>(n);
}

#define X(T)                                                                                                \
    template void activation_forward<T>(Activation, std::size_t, const T*, T*);                             \
    template void activation_backward<T>(Activation, std::size_t, const T*, const T*, T*);                  \
    template double softmax_cross_entropy<T>(std::ptrdiff_t, std::ptrdiff_t, const T*, const std::int64_t*, \
                                             T*);                                                           \
    template double squared_error<T>(std::size_t, const T*, const T*, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::runtime
