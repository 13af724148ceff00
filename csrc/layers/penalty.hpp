// A penalty on runs of weights, over threads.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "runtime/reduce.hpp"

namespace pyoptim::core {

// The parameters that a penalty counts, as index ranges [begin, end).
template <class T>
struct Penalized {
    Penalty penalty;
    const T* parameters;
    T* gradients;
    std::vector<std::pair<std::size_t, std::size_t>> runs;
};

// Returns the sum of term(begin, end) over blocks of the parameters that a penalty counts.
template <class T, class Term>
double sum_of_runs(const Penalized<T>& of, Term term) {
    double total = 0;
    for (const auto& [begin, end] : of.runs) {
        const std::size_t first = begin, n = end - begin;
        total += sum_of_blocks(n, kSumBlock, n, kSumGrain, [&](std::size_t from, std::size_t to) {
            return term(first + from, first + to);
        });
    }
    return total;
}

// Returns the penalty, divided by `divisor`, and adds its gradient to the gradients.
template <class T>
double add_penalty(const Penalized<T>& of, double divisor = 1) {
    const auto kernel = kernels<T>().penalty;
    const Penalty penalty{of.penalty.l2 / divisor, of.penalty.l1 / divisor};
    return sum_of_runs(of, [&](std::size_t begin, std::size_t end) {
        return kernel(penalty, end - begin, of.parameters + begin, of.gradients + begin);
    });
}

// Returns the same where l1 is 0, and adds nothing.
template <class T>
double l2_penalty(const Penalized<T>& of, double divisor) {
    const auto kernel = kernels<T>().sum_of_squares;
    const Penalty penalty{of.penalty.l2 / divisor, 0};
    return sum_of_runs(of, [&](std::size_t begin, std::size_t end) {
        return penalty.value(kernel(end - begin, of.parameters + begin), 0);
    });
}

}  // namespace pyoptim::core
