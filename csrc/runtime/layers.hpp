// Layers and losses on raw pointers: the work is split over threads here, by shape alone, so that results
// do not depend on their number. Arrays are contiguous and row-major; nothing overlaps.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.hpp"

namespace pyoptim::runtime {

using cpu::Activation;

struct DenseShape {
    std::ptrdiff_t batch, in, out;
};

// y (batch, out) = activation(x (batch, in) * weight (out, in)^T + bias (out)); bias may be null
template <class T>
void dense_forward(const DenseShape&, const T* x, const T* weight, const T* bias, Activation, T* y);

// dz (batch, out) is the gradient before the activation. dx and dbias may be null.
template <class T>
void dense_backward(const DenseShape&, const T* dz, const T* x, const T* weight, T* dx, T* dweight, T* dbias);

template <class T>
void activation_forward(Activation, std::size_t n, const T* x, T* y);  // x may be y
// dy and the forward's output y give dx; dx may be dy.
template <class T>
void activation_backward(Activation, std::size_t n, const T* dy, const T* y, T* dx);

// Means over the batch (squared_error: over all elements); the gradient of the mean, unless null.
template <class T>
double softmax_cross_entropy(std::ptrdiff_t batch, std::ptrdiff_t classes, const T* logits,
                             const std::int64_t* labels, T* dlogits);
template <class T>
double squared_error(std::size_t n, const T* prediction, const T* target, T* dprediction);

}  // namespace pyoptim::runtime
