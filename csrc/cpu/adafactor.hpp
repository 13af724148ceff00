// The passes of Adafactor over the rows of a matrix, and over a vector. They sum in double, in a fixed number
// of lanes, so the sums depend on the shape alone.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class T>
double square(T scale, T grad) {
    const T d = T(0) - scale * grad;
    return double(d) * double(d);
}

// row_var moves towards the mean square of each row; columns receives the sum of squares of each column.
template <class T>
void adafactor_moments(ptrdiff_t rows, ptrdiff_t cols, const T* grad, T scale, double fresh, T* row_var,
                       double* columns) {
    constexpr ptrdiff_t kLanes = 8;
    for (ptrdiff_t j = 0; j < cols; ++j) columns[j] = 0;
    for (ptrdiff_t i = 0; i < rows; ++i, grad += cols) {
        double lanes[kLanes] = {};
        ptrdiff_t j = 0;
        for (; j + kLanes <= cols; j += kLanes) {
            for (ptrdiff_t l = 0; l < kLanes; ++l) {
                const double s = square(scale, grad[j + l]);
                lanes[l] += s;
                columns[j + l] += s;
            }
        }
        for (ptrdiff_t l = 0; j + l < cols; ++l) {
            const double s = square(scale, grad[j + l]);
            lanes[l] += s;
            columns[j + l] += s;
        }
        for (ptrdiff_t half = kLanes / 2; half > 0; half /= 2) {
            for (ptrdiff_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
        }
        row_var[i] = moved_towards(row_var[i], fresh, lanes[0] / double(cols));
    }
}

// Writes out = -scale grad / sqrt(V), where V of row i and column j is row_var[i] / mean * col_var[j].
template <class T>
void adafactor_directions(const FactoredRows<T>& of, const T* grad, T scale, T* out) {
    const double least = of.least * of.least;
    for (ptrdiff_t i = 0; i < of.rows; ++i, grad += of.cols, out += of.cols) {
        const double row = double(of.row_var[i]) / of.mean;
        PYOPTIM_NO_OVERLAP
        for (ptrdiff_t j = 0; j < of.cols; ++j) {
            const double variance = row * double(of.col_var[j]);
            out[j] = T(double(T(0) - scale * grad[j]) / square_root(maximum(variance, least)));
        }
    }
}

// The same direction for a vector, after its variance has moved towards the new squares.
template <class T>
void adafactor_vector(size_t n, const T* grad, T scale, T fresh, double least, T* variance, T* out) {
    PYOPTIM_NO_OVERLAP
    for (size_t i = 0; i < n; ++i) {
        const T d = T(0) - scale * grad[i];
        variance[i] = variance[i] + fresh * (d * d - variance[i]);
        out[i] = T(double(d) / square_root(maximum(double(variance[i]), least * least)));
    }
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
