// Losses with their gradients, from logits where that is what makes them stable.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/softmax.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class T>
double softmax_cross_entropy(const T* logits, const int64_t* labels, ptrdiff_t classes, ptrdiff_t begin,
                             ptrdiff_t end, T scale, T* dlogits) {
    double total = 0;
    for (ptrdiff_t i = begin; i < end; ++i) {
        const T* x = logits + i * classes;
        const T largest = largest_of(classes, x);
        double sum = 0;
        if (dlogits == nullptr) {
            for (ptrdiff_t j = 0; j < classes; ++j) sum += exponential(x[j] - largest);
        } else {
            T* dx = dlogits + i * classes;
            for (ptrdiff_t j = 0; j < classes; ++j) dx[j] = exponential(x[j] - largest);
            sum = sum_of(classes, [&](ptrdiff_t j) { return dx[j]; });
            const T share = T(scale / sum);
            for (ptrdiff_t j = 0; j < classes; ++j) dx[j] *= share;
            dx[labels[i]] -= scale;
        }
        total += logarithm(sum) + (double(largest) - double(x[labels[i]]));
    }
    return total;
}

template <class T>
double squared_error(size_t n, const T* prediction, const T* target, T scale, T* dprediction) {
    double total = 0;
    for (size_t i = 0; i < n; ++i) {
        const T difference = prediction[i] - target[i];
        total += double(difference) * double(difference);
        if (dprediction != nullptr) dprediction[i] = T(2) * scale * difference;
    }
    return total;
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
