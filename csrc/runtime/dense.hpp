// Dense layers on raw pointers, row-major; nothing overlaps. Each call is one parallel region at most.
#pragma once

#include <cstddef>

#include "cpu/kernels.hpp"

namespace pyoptim::runtime {

using cpu::Activation;

struct DenseShape {
    std::ptrdiff_t batch, in, out;
};

// y (batch, out) = activation(x (batch, in) * weight (out, in)^T + bias (out)); bias may be null
template <class T>
void dense_forward(const DenseShape&, const T* x, const T* weight, const T* bias, Activation, T* y);

// What the forward pass had, and the gradient dy of its result y.
template <class T>
struct DenseInputs {
    const T *dy, *x, *weight, *y;  // y may be null where there is no activation
    Activation activation;
};

// The gradients of the inputs; dx and dbias may be null: not wanted.
template <class T>
struct DenseGradients {
    T *dx, *dweight, *dbias;
};

template <class T>
void dense_backward(const DenseShape&, const DenseInputs<T>&, const DenseGradients<T>&);

}  // namespace pyoptim::runtime
