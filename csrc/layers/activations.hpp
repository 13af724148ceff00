// Activations on raw pointers, over threads.
#pragma once

#include <cstddef>

#include "formulas/activations.hpp"

namespace pyoptim::core {

template <class T>
void activation_forward(const ActivationSpec&, std::size_t n, const T* x, T* y);  // x may be y

// `kept` is the input or the output of the forward pass, as keeps_input says; dx may be dy.
template <class T>
void activation_backward(const ActivationSpec&, std::size_t n, const T* dy, const T* kept, T* dx);

bool keeps_input(Activation kind);

// Softmax, or its logarithm, over the rows of x (rows, classes); the backward passes take the output y.
template <class T>
void softmax_forward(bool log, std::ptrdiff_t rows, std::ptrdiff_t classes, const T* x, T* y);
template <class T>
void softmax_backward(bool log, std::ptrdiff_t rows, std::ptrdiff_t classes, const T* dy, const T* y, T* dx);

}  // namespace pyoptim::core
