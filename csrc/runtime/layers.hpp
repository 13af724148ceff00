// Layers and losses on raw pointers: the work is split over threads here, by shape alone, so that results
// do not depend on their number. Arrays are contiguous and row-major; nothing overlaps.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.hpp"

namespace pyoptim::runtime {

using cpu::Activation;
using cpu::NormSaved;
using cpu::NormShape;

struct DenseShape {
    std::ptrdiff_t batch, in, out;
};

// y (batch, out) = activation(x (batch, in) * weight (out, in)^T + bias (out)); bias may be null
template <class T>
void dense_forward(const DenseShape&, const T* x, const T* weight, const T* bias, Activation, T* y);

// dz (batch, out) is the gradient before the activation. dx and dbias may be null.
template <class T>
void dense_backward(const DenseShape&, const T* dz, const T* x, const T* weight, T* dx, T* dweight, T* dbias);

// mean and var (biased) per channel
template <class T>
void norm_statistics(const NormShape&, const T* x, double* mean, double* var);
template <class T>
void norm_apply(const NormShape&, const T* x, const T* mean, const T* inv_std, const T* gamma, const T* beta,
                T* y);
template <class T>
void norm_backward(const NormShape&, const T* dy, const T* x, const NormSaved<T>&, const T* gamma, T* dx,
                   T* dgamma, T* dbeta);

// Means over the batch (squared_error: over all elements); the gradient of the mean, unless null.
template <class T>
double softmax_cross_entropy(std::ptrdiff_t batch, std::ptrdiff_t classes, const T* logits,
                             const std::int64_t* labels, T* dlogits);
template <class T>
double squared_error(std::size_t n, const T* prediction, const T* target, T* dprediction);

}  // namespace pyoptim::runtime
