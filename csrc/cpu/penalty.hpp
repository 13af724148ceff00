// A penalty in one pass over weights and gradients. The order of the sum depends only on the length, as in
// reduce.hpp.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class T>
double penalty(const Penalty& of, size_t n, const T* w, T* gradient) {
    constexpr size_t kLanes = 32;
    const Penalty by = of;  // stores to the gradient do not change it
    double lanes[kLanes] = {};
    const auto take = [&](size_t i, size_t lane) {
        gradient[i] = by.gradient(w[i], gradient[i]);
        lanes[lane] += by.value(w[i]);
    };
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (size_t j = 0; j < kLanes; ++j) take(i + j, j);
    }
    for (size_t j = 0; i + j < n; ++j) take(i + j, j);
    double sum = 0;
    for (size_t j = 0; j < kLanes; ++j) sum += lanes[j];
    return sum;
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
