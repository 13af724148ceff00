#include "runtime/layers.hpp"

#include "runtime/dispatch.hpp"
#include "runtime/reduce.hpp"
#include "runtime/split.hpp"

namespace pyoptim::runtime {

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
    template double softmax_cross_entropy<T>(std::ptrdiff_t, std::ptrdiff_t, const T*, const std::int64_t*, \
                                             T*);                                                           \
    template double squared_error<T>(std::size_t, const T*, const T*, T*);
X(float)
X(double)
#undef X

}  // namespace pyoptim::runtime
