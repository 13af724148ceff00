// Layer normalisation on raw pointers, row-major; nothing overlaps. Results do not depend on the number of
// threads.
#pragma once

#include <cstddef>

#include "cpu/kernels.hpp"

namespace pyoptim::core {

struct LayerNormShape {
    std::ptrdiff_t rows, features;
};

// y = gamma (x - mean)/sqrt(var + eps) + beta with the statistics of each row. gamma and beta (features) may
// be null, for 1 and 0. mean and inv_std (rows) are outputs, which the backward pass reads.
template <class T>
void layer_norm_forward(const LayerNormShape&, const T* x, const T* gamma, const T* beta, double eps, T* y,
                        T* mean, T* inv_std);

// dx may be null.
template <class T>
void layer_norm_backward(const LayerNormShape&, const cpu::LayerNormRows<T>&, const T* gamma, T* dx,
                         T* dgamma, T* dbeta);

}  // namespace pyoptim::core
