// Sums over a block of memory. Each lane adds up its own elements in order, then the lanes are added in
// order, so the sum depends on the length alone.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

// Returns sum + x^2. Of a float the square is exact in double, so a fused multiply-add has the same bits.
template <class T>
inline __attribute__((always_inline)) double add_square(double sum, T x) {
    const double exact = double(x);
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    if (sizeof(T) == sizeof(float)) return __builtin_fma(exact, exact, sum);
#endif
    return sum + exact * exact;
}

template <class T>
double sum_of_squares(size_t n, const T* x) {
    constexpr size_t kLanes = 32;
    double lanes[kLanes] = {};
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (size_t j = 0; j < kLanes; ++j) lanes[j] = add_square(lanes[j], x[i + j]);
    }
    for (size_t j = 0; i + j < n; ++j) lanes[j] = add_square(lanes[j], x[i + j]);
    double sum = 0;
    for (size_t j = 0; j < kLanes; ++j) sum += lanes[j];
    return sum;
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
