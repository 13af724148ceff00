// A penalty in one pass over weights and gradients. The order of the sum depends only on the length, as in
// reduce.hpp.
#pragma once

#include "cpu/reduce.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class T>
double penalty(const Penalty& of, size_t n, const T* w, T* gradient) {
    constexpr size_t kLanes = 32;
    const Penalty by = of;  // stores to the gradient do not change it
    double squares[kLanes] = {}, sizes[kLanes] = {};
    const auto take = [&](size_t i, size_t lane) {
        gradient[i] = by.gradient(w[i], gradient[i]);
        squares[lane] = add_square(squares[lane], w[i]);
        if (by.l1 != 0) sizes[lane] += absolute(double(w[i]));
    };
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (size_t j = 0; j < kLanes; ++j) take(i + j, j);
    }
    for (size_t j = 0; i + j < n; ++j) take(i + j, j);
    double sum_of_squares = 0, sum_of_sizes = 0;
    for (size_t j = 0; j < kLanes; ++j) {
        sum_of_squares += squares[j];
        sum_of_sizes += sizes[j];
    }
    return by.value(sum_of_squares, sum_of_sizes);
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
