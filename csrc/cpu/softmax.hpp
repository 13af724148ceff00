// Softmax over rows. Sums run over fixed lanes, so they depend on the length alone.
#pragma once

#include "cpu/vector_math.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

constexpr ptrdiff_t kSumLanes = 16;

// Of n >= 1 elements; NaN if there is one.
template <class T>
PYOPTIM_INLINE T largest_of(ptrdiff_t n, const T* x) {
    if (n < kSumLanes) {
        T largest = x[0];
        for (ptrdiff_t i = 1; i < n; ++i) largest = x[i] <= largest ? largest : x[i];
        return largest;
    }
    T lanes[kSumLanes];
    for (ptrdiff_t j = 0; j < kSumLanes; ++j) lanes[j] = x[j];
    ptrdiff_t i = kSumLanes;
    for (; i + kSumLanes <= n; i += kSumLanes) {
        for (ptrdiff_t j = 0; j < kSumLanes; ++j) {
            const T other = x[i + j];
            lanes[j] = other <= lanes[j] ? lanes[j] : other;
        }
    }
    T largest = lanes[0];
    for (ptrdiff_t j = 1; j < kSumLanes; ++j) largest = largest >= lanes[j] ? largest : lanes[j];
    for (; i < n; ++i) largest = x[i] <= largest ? largest : x[i];
    return largest;
}

// The sum of term(i), by lanes.
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
                for (ptrdiff_t j = 0; j < n; ++j) values[j] = exponential(x[begin + j] - largest);
                sum += sum_of(n, [&](ptrdiff_t j) { return values[j]; });
            }
            const T shift = T(logarithm(sum));
            for (ptrdiff_t j = 0; j < classes; ++j) y[j] = (x[j] - largest) - shift;
        } else {
            for (ptrdiff_t j = 0; j < classes; ++j) y[j] = exponential(x[j] - largest);
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
