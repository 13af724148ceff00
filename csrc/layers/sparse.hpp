// A dense layer of sparse rows: only the elements that are not 0 are multiplied. Sums are over these, one
// after the other, so they are rounded otherwise than dense_forward's.
#pragma once

#include "cpu/kernels.hpp"
#include "layers/dense.hpp"

namespace pyoptim::core {

using cpu::SparseRows;

// As dense_forward of the same rows; columns are in [0, in).
template <class T>
void sparse_forward(const DenseShape&, const SparseRows<T>& x, const T* weight, const T* bias, Activation,
                    T* y);

// Writes the gradients of the weight and, if its address is not null, of the bias, as dense_backward does for
// the gradient dy of y.
template <class T>
void sparse_backward(const DenseShape&, const SparseRows<T>& x, const T* dy, const T* y, Activation,
                     T* dweight, T* dbias);

}  // namespace pyoptim::core
