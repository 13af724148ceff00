// A dense layer of sparse rows: only the elements that are not 0 are multiplied. Sums are over these, one
// after the other, so they are rounded otherwise than dense_forward's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layers/dense.hpp"

namespace pyoptim::core {

// The rows of a sparse matrix (CSR): row i has values[k] in column columns[k] for k in [begins[i],
// begins[i + 1]), and zeros elsewhere. Values in the same column are added.
template <class T>
struct SparseRows {
    const T* values = nullptr;
    const std::int32_t* columns = nullptr;
    const std::int64_t* begins = nullptr;
    std::int64_t count = 0;  // of values
};

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
