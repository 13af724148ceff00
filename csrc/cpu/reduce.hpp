// Sums over a block of memory. Each lane adds up its own elements in order, then the lanes are added in
// order, so the sum depends on the length alone.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class T>
double sum_of_squares(size_t n, const T* x) {
    constexpr size_t kLanes = 32;
    double lanes[kLanes] = {};
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (size_t j = 0; j < kLanes; ++j) lanes[j] += double(x[i + j]) * double(x[i + j]);
    }
    for (size_t j = 0; i + j < n; ++j) lanes[j] += double(x[i + j]) * double(x[i + j]);
    double sum = 0;
    for (size_t j = 0; j < kLanes; ++j) sum += lanes[j];
    return sum;
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
