#include "layers/losses.hpp"

#include <algorithm>
#include <stdexcept>

#include "runtime/dispatch.hpp"
#include "runtime/pieces.hpp"
#include "runtime/reduce.hpp"
#include "runtime/split.hpp"

namespace pyoptim::core {

template <class T>
double label_weights(std::size_t n, const std::int64_t* labels, const T* class_weight) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(class_weight[labels[i]]);
    return sum;
}

namespace {

// How many rows a kernel takes at once.
std::size_t logits_block(std::ptrdiff_t classes) { return classes > 256 ? 16 : 64; }

// The sum of the losses of the rows [begin, end), in blocks: a kernel adds those of a block in its own type.
template <class T>
double cross_entropy_sum(const cpu::CrossEntropy<T>& it, std::size_t begin, std::size_t end) {
    const std::size_t block = logits_block(it.classes);
    double sum = 0;
    for (; begin < end; begin += block) {
        sum += kernels<T>().cross_entropy(it, static_cast<std::ptrdiff_t>(begin),
                                          static_cast<std::ptrdiff_t>(std::min(begin + block, end)));
    }
    return sum;
}

}  // namespace

template <class T>
double cross_entropy_of_some(cpu::CrossEntropy<T> it, std::ptrdiff_t rows, double divisor) {
    it.scale = divisor == 0 ? 0 : 1 / divisor;
    return cross_entropy_sum(it, 0, static_cast<std::size_t>(rows));
}

template <class T>
double cross_entropy(cpu::CrossEntropy<T> it, std::ptrdiff_t batch) {
    const auto n = static_cast<std::size_t>(batch);
    const bool is_weighted = it.labels != nullptr && it.class_weight != nullptr;
    const double divisor =
        is_weighted ? label_weights(n, it.labels, it.class_weight) : static_cast<double>(batch);
    it.scale = divisor == 0 ? 0 : 1 / divisor;
    // A batch of one piece may have many classes, which pay for several threads.
    const Pieces pieces(n);
    const std::size_t block = pieces.count == 1 ? logits_block(it.classes) : pieces.rows;
    const double sum =
        sum_of_blocks(n, block, n * static_cast<std::size_t>(it.classes), kExpGrain,
                      [&](std::size_t begin, std::size_t end) { return cross_entropy_sum(it, begin, end); });
    return mean_of(sum, divisor);
}

namespace {

// The pointwise losses of predictions whose mean has this factor.
template <class T>
struct PointwiseSum {
    const cpu::Pointwise<T>& it;
    const Predictions<T>& of;
    double scale;
    static constexpr std::size_t kBlock = 4096;  // elements that a kernel adds in its own type

    // Of the elements [begin, end), which all have this weight.
    double elements(std::size_t begin, std::size_t end, double weight) const {
        return weight * kernels<T>().pointwise_loss(it, static_cast<std::ptrdiff_t>(end - begin),
                                                    T(weight * scale), of.x + begin, of.target + begin,
                                                    of.dx == nullptr ? nullptr : of.dx + begin);
    }
    // Whether elements of several rows may be taken at once.
    bool is_plain() const { return of.sample_weight == nullptr && it.columns == nullptr; }
    double rows(std::size_t begin, std::size_t end) const {
        double sum = 0;
        if (is_plain()) {
            const std::size_t last = end * of.columns;
            for (std::size_t at = begin * of.columns; at < last; at += kBlock) {
                sum += elements(at, std::min(at + kBlock, last), 1);
            }
            return sum;
        }
        for (std::size_t i = begin; i < end; ++i) {
            const double weight =
                of.sample_weight == nullptr ? 1.0 : static_cast<double>(of.sample_weight[i]);
            sum += elements(i * of.columns, (i + 1) * of.columns, weight);
        }
        return sum;
    }
};

}  // namespace

template <class T>
double pointwise_loss_of_some(const cpu::Pointwise<T>& it, const Predictions<T>& of, double divisor) {
    const double scale = 1.0 / (divisor * static_cast<double>(of.columns));
    return PointwiseSum<T>{it, of, scale}.rows(0, of.rows);
}

template <class T>
double pointwise_loss(const cpu::Pointwise<T>& it, const Predictions<T>& of) {
    const std::size_t n = of.rows * of.columns;
    const double scale = 1.0 / static_cast<double>(n);
    const PointwiseSum<T> sum = {it, of, scale};
    constexpr std::size_t grains[] = {
#define X(name) math::name##_loss::cost == math::Cost::exponential ? kExpGrain : kGrain,
        PYOPTIM_FOR_EACH_POINTWISE_LOSS(X)
#undef X
    };
    const std::size_t grain = grains[static_cast<int>(it.kind)];
    const Pieces pieces(of.rows);
    if (sum.is_plain() && pieces.count == 1) {  // maybe of long rows
        return scale * sum_of_blocks(n, sum.kBlock, n, grain, [&](std::size_t begin, std::size_t end) {
                   return sum.elements(begin, end, 1);
               });
    }
    const std::size_t few = std::max<std::size_t>(1, sum.kBlock / std::max<std::size_t>(1, of.columns));
    return scale * sum_of_blocks(of.rows, pieces.count == 1 ? few : pieces.rows, n, grain,
                                 [&](std::size_t begin, std::size_t end) { return sum.rows(begin, end); });
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

#define X(T)                                                                                \
    template double label_weights<T>(std::size_t, const std::int64_t*, const T*);           \
    template double cross_entropy<T>(cpu::CrossEntropy<T>, std::ptrdiff_t);                 \
    template double cross_entropy_of_some<T>(cpu::CrossEntropy<T>, std::ptrdiff_t, double); \
    template double pointwise_loss<T>(const cpu::Pointwise<T>&, const Predictions<T>&);     \
    template double pointwise_loss_of_some<T>(const cpu::Pointwise<T>&, const Predictions<T>&, double);
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
