// Reductions over whole arrays, in blocks of fixed length, so that the number of threads does not matter.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "formulas/squares.hpp"
#include "runtime/dispatch.hpp"
#include "runtime/parallel.hpp"

namespace pyoptim::core {

// The sum of term(begin, end) over the blocks of [0, n), added in order. `work` and `grain` as in
// threads_for.
template <class Term>
double sum_of_blocks(std::size_t n, std::size_t block, std::size_t work, std::size_t grain, Term term) {
    const std::size_t blocks = (n + block - 1) / block;
    if (blocks <= 1) return n > 0 ? term(std::size_t{0}, n) : 0.0;
    thread_local std::vector<double> memory;  // kept for the next call
    if (memory.size() < blocks) memory.resize(blocks);
    double* const sums = memory.data();
    parallel(threads_for(work, grain), [&](int thread, int threads) {
        const Range mine = share(blocks, 1, thread, threads);
        for (std::size_t b = mine.begin; b < mine.end; ++b) {
            sums[b] = term(b * block, (b + 1) * block < n ? (b + 1) * block : n);
        }
    });
    double total = 0;
    for (std::size_t b = 0; b < blocks; ++b) total += sums[b];
    return total;
}

// For sums of squares: the elements of a block, and those that make waking a thread worth while.
constexpr std::size_t kSumBlock = 16384, kSumGrain = 65536;

// What is kept (formulas/squares.hpp) of a sum of squares, which came as `sum`; scaled(scale) is that of the
// elements times a scale. Doubles hold the squares of all floats.
template <class T, class Scaled>
double kept_sum(double sum, Scaled scaled) {
    if (sizeof(T) == sizeof(float) || is_sound(sum)) return sum;
    const double scale = square_scale(sum);
    return kept_squares(scaled(scale), scale);
}

template <class T>
double scaled_sum_of_squares(std::size_t n, const T* x, double scale) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += (double(x[i]) * scale) * (double(x[i]) * scale);
    return sum;
}

// What is kept of the sum of the squares of a block.
template <class T>
double block_squares(const cpu::Kernels<T>& table, std::size_t n, const T* x) {
    return kept_sum<T>(table.sum_of_squares(n, x),
                       [&](double scale) { return scaled_sum_of_squares(n, x, scale); });
}

// What is kept of the sum of `count` kept sums; at(i) is one of them.
template <class At>
double total_of_squares(std::size_t count, At at) {
    const auto sum = [&](double scale) {
        double total = 0;
        for (std::size_t i = 0; i < count; ++i) total += term_of(at(i), scale);
        return total;
    };
    return kept_sum<double>(sum(1), sum);
}

// What is kept of the sum of the squares of an array.
template <class T>
double sum_of_squares(std::size_t n, const T* x) {
    const auto kernel = kernels<T>().sum_of_squares;
    const auto sum = [&](auto term) {
        return sum_of_blocks(n, kSumBlock, n, kSumGrain, [&](std::size_t begin, std::size_t end) {
            return term(end - begin, x + begin);
        });
    };
    return kept_sum<T>(sum(kernel), [&](double scale) {
        return sum([&](std::size_t count, const T* of) { return scaled_sum_of_squares(count, of, scale); });
    });
}

template <class T>
bool all_finite(std::size_t n, const T* x) {
    constexpr std::size_t kSums = 16;  // each of them waits for itself alone
    T sums[kSums] = {};
    std::size_t i = 0;
    for (; i + kSums <= n; i += kSums) {
        for (std::size_t k = 0; k < kSums; ++k) sums[k] += x[i + k] * T(0);  // NaN if x is not finite
    }
    for (; i < n; ++i) sums[0] += x[i] * T(0);
    T total = 0;
    for (const T sum : sums) total += sum;
    return total == 0;
}

// The factor, at most 1, that scales gradients of this norm to max_norm; NaN for NaN. Twin:
// pyoptim/gradients.py.
inline double clip_factor(double norm, double max_norm) {
    const double factor = max_norm / (norm + 1e-6);
    return factor >= 1 ? 1 : factor;
}

}  // namespace pyoptim::core
