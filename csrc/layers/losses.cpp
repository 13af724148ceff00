#include "layers/losses.hpp"

#include <limits>
#include <stdexcept>

#include "runtime/dispatch.hpp"
#include "runtime/reduce.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

template <class T>
double label_weights(std::size_t n, const std::int64_t* labels, const T* class_weight) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(class_weight[labels[i]]);
    return sum;
}

template <class T>
double cross_entropy(cpu::CrossEntropy<T> it, std::ptrdiff_t batch) {
    const auto n = static_cast<std::size_t>(batch);
    double divisor = static_cast<double>(batch);
    if (it.labels != nullptr && it.class_weight != nullptr) {
        divisor = label_weights(n, it.labels, it.class_weight);
        if (divisor == 0) divisor = std::numeric_limits<double>::infinity();
    }
    it.scale = 1 / divisor;
    return sum_of_blocks(n, it.classes > 256 ? 16 : 64, n * static_cast<std::size_t>(it.classes), kExpGrain,
                         [&](std::size_t begin, std::size_t end) {
                             return kernels<T>().cross_entropy(it, static_cast<std::ptrdiff_t>(begin),
                                                               static_cast<std::ptrdiff_t>(end));
                         }) /
           divisor;
}

template <class T>
double pointwise_loss(const cpu::Pointwise<T>& it, const Predictions<T>& of) {
    const auto kernel = kernels<T>().pointwise_loss;
    const std::size_t n = of.rows * of.columns;
    const double scale = 1.0 / static_cast<double>(n);
    const auto run = [&](std::size_t begin, std::size_t end, double weight) {
        return weight * kernel(it, static_cast<std::ptrdiff_t>(end - begin), T(weight * scale), of.x + begin,
                               of.target + begin, of.dx == nullptr ? nullptr : of.dx + begin);
    };
    constexpr std::size_t grains[] = {
#define X(name) math::name##_loss::cost == math::Cost::exponential ? kExpGrain : kGrain,
        PYOPTIM_FOR_EACH_POINTWISE_LOSS(X)
#undef X
    };
    const std::size_t grain = grains[static_cast<int>(it.kind)];
    if (of.sample_weight == nullptr && it.columns == nullptr) {
        return scale * sum_of_blocks(n, 4096, n, grain,
                                     [&](std::size_t begin, std::size_t end) { return run(begin, end, 1); });
    }
    const std::size_t rows = of.columns < 4096 ? 4096 / of.columns : 1;
    return scale * sum_of_blocks(of.rows, rows, n, grain, [&](std::size_t begin, std::size_t end) {
               double sum = 0;
               for (std::size_t i = begin; i < end; ++i) {
                   const double weight =
                       of.sample_weight == nullptr ? 1.0 : static_cast<double>(of.sample_weight[i]);
                   sum += run(i * of.columns, (i + 1) * of.columns, weight);
               }
               return sum;
           });
}

cpu::PointwiseKind pointwise_named(const std::string& name) {
    static const char* const names[] = {
#define X(name) #name,
        PYOPTIM_FOR_EACH_POINTWISE_LOSS(X)
#undef X
    };
    for (int i = 0; i < static_cast<int>(cpu::PointwiseKind::count); ++i) {
        if (name == names[i]) return static_cast<cpu::PointwiseKind>(i);
    }
    throw std::invalid_argument("there is no loss named '" + name + "'");
}

#define X(T)                                                                      \
    template double label_weights<T>(std::size_t, const std::int64_t*, const T*); \
    template double cross_entropy<T>(cpu::CrossEntropy<T>, std::ptrdiff_t);       \
    template double pointwise_loss<T>(const cpu::Pointwise<T>&, const Predictions<T>&);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
