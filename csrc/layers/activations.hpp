// Activations on raw pointers, over threads.
#pragma once

#include <cstddef>

#include "formulas/activations.hpp"

namespace pyoptim::core {

// Computes y of n elements x. y may be x.
template <class T>
void activation_forward(const ActivationSpec&, std::size_t n, const T* x, T* y);

// Computes the gradient of x. `kept` is the input or the output of the forward pass, as keeps_input says. dx
// may be dy.
template <class T>
void activation_backward(const ActivationSpec&, std::size_t n, const T* dy, const T* kept, T* dx);

// Whether the backward pass of this activation reads the input of the forward pass, or else its output.
bool keeps_input(Activation kind);

// Softmax, or its logarithm, over the rows of x (rows, classes); the backward passes take the output y.
template <class T>
void softmax_forward(bool log, std::ptrdiff_t rows, std::ptrdiff_t classes, const T* x, T* y);
template <class T>
void softmax_backward(bool log, std::ptrdiff_t rows, std::ptrdiff_t classes, const T* dy, const T* y, T* dx);

}  // namespace pyoptim::core
