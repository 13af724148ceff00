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

// Returns the penalty, divided by `divisor`, and adds its gradient to the gradients.
template <class T>
double add_penalty(const Penalized<T>& of, double divisor = 1) {
    const auto kernel = kernels<T>().penalty;
    const Penalty penalty{of.penalty.l2 / divisor, of.penalty.l1 / divisor};
    double total = 0;
    for (const auto& [first, last] : of.runs) {
        const T* const w = of.parameters + first;
        T* const gradient = of.gradients + first;
        const std::size_t n = last - first;
        total += sum_of_blocks(n, kSumBlock, n, kSumGrain, [&](std::size_t begin, std::size_t end) {
            return kernel(penalty, end - begin, w + begin, gradient + begin);
        });
    }
    return total;
}

}  // namespace pyoptim::core
