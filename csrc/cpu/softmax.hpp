// Softmax over rows. Sums run over fixed lanes, so they depend on the length alone.
#pragma once

#include "cpu/vector.hpp"
#include "cpu/vector_math.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

constexpr ptrdiff_t kSumLanes = 16;

template <class T>
PYOPTIM_INLINE void take_larger(Vector<T>& most, const T* x) {
    Vector<T> other;
    __builtin_memcpy(&other, x, sizeof other);
    most = most > other ? most : other;
}

// Returns the largest of n >= 1 elements. If one is NaN, it returns any element: the exponentials then make
// the sum NaN again.
template <class T>
PYOPTIM_INLINE T largest_of(ptrdiff_t n, const T* x) {
    constexpr ptrdiff_t lanes = PYOPTIM_VECTOR_BYTES / sizeof(T), chains = 4;
    T largest = x[0];
    if (n < lanes) {
        for (ptrdiff_t i = 1; i < n; ++i) largest = largest > x[i] ? largest : x[i];
        return largest;
    }
    Vector<T> most[chains];
    for (ptrdiff_t k = 0; k < chains; ++k) __builtin_memcpy(&most[k], x, sizeof most[k]);
    ptrdiff_t i = 0;
    for (; i + chains * lanes <= n; i += chains * lanes) {
        for (ptrdiff_t k = 0; k < chains; ++k) take_larger<T>(most[k], x + i + k * lanes);
    }
    for (; i + lanes <= n; i += lanes) take_larger<T>(most[0], x + i);
    take_larger<T>(most[1], x + n - lanes);  // the last elements; some are compared twice
    for (ptrdiff_t k = 1; k < chains; ++k) most[0] = most[0] > most[k] ? most[0] : most[k];
    T of_lane[lanes];
    __builtin_memcpy(of_lane, &most[0], sizeof of_lane);
#pragma GCC unroll 4
    for (ptrdiff_t half = lanes / 2; half > 0; half /= 2) {
        for (ptrdiff_t j = 0; j < half; ++j) {
            of_lane[j] = of_lane[j] > of_lane[j + half] ? of_lane[j] : of_lane[j + half];
        }
    }
    return of_lane[0];
}

// exp((x - largest)/temperature); NaN where x is NaN
template <class T>
PYOPTIM_INLINE T share_of(T x, T largest, T inverse_temperature = T(1)) {
    return exponential_of_minus(at_most(T(Format<T>::highest), (largest - x) * inverse_temperature));
}

// The sum of term(i) for i in [0, n): element i goes to lane i % kSumLanes, then the lanes are added in
// order.
template <class Term>
PYOPTIM_INLINE double sum_of(ptrdiff_t n, Term term) {
    if (n < kSumLanes) {
        double sum = 0;
        for (ptrdiff_t i = 0; i < n; ++i) sum += double(term(i));
        return sum;
    }
    double lanes[kSumLanes] = {};
    ptrdiff_t i = 0;
    for (; i + kSumLanes <= n; i += kSumLanes) {
        for (ptrdiff_t j = 0; j < kSumLanes; ++j) lanes[j] += double(term(i + j));
    }
    for (ptrdiff_t j = 0; i + j < n; ++j) lanes[j] += double(term(i + j));
    double sum = 0;
    for (ptrdiff_t j = 0; j < kSumLanes; ++j) sum += lanes[j];
    return sum;
}

template <class T>
void softmax_forward(bool log, ptrdiff_t rows, ptrdiff_t classes, const T* x, T* y) {  // x may be y
    if (classes == 0) return;
    for (ptrdiff_t i = 0; i < rows; ++i, x += classes, y += classes) {
        const T largest = largest_of(classes, x);
        if (log) {
            double sum = 0;
            T values[256];
            for (ptrdiff_t begin = 0; begin < classes; begin += 256) {
                const ptrdiff_t n = classes - begin < 256 ? classes - begin : 256;
                for (ptrdiff_t j = 0; j < n; ++j) values[j] = share_of(x[begin + j], largest);
                sum += sum_of(n, [&](ptrdiff_t j) { return values[j]; });
            }
            const T shift = T(logarithm(sum));
            for (ptrdiff_t j = 0; j < classes; ++j) y[j] = (x[j] - largest) - shift;
        } else {
            for (ptrdiff_t j = 0; j < classes; ++j) y[j] = share_of(x[j], largest);
            const T share = T(1 / sum_of(classes, [&](ptrdiff_t j) { return y[j]; }));
            for (ptrdiff_t j = 0; j < classes; ++j) y[j] *= share;
        }
    }
}

template <class T>
void softmax_backward(bool log, ptrdiff_t rows, ptrdiff_t classes, const T* dy, const T* y, T* dx) {
    for (ptrdiff_t i = 0; i < rows; ++i, dy += classes, y += classes, dx += classes) {
        if (log) {
            const T sum = T(sum_of(classes, [&](ptrdiff_t j) { return dy[j]; }));
            for (ptrdiff_t j = 0; j < classes; ++j) dx[j] = dy[j] - exponential(y[j]) * sum;
        } else {
            const T sum = T(sum_of(classes, [&](ptrdiff_t j) { return dy[j] * y[j]; }));
            for (ptrdiff_t j = 0; j < classes; ++j) dx[j] = y[j] * (dy[j] - sum);
        }
    }
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
