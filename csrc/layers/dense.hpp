// Dense layers on raw pointers, row-major; nothing overlaps. A call is one parallel region or two; a
// forward pass of more than 512 inputs may be two for each 512.
#pragma once

#include <cstddef>

#include <vector>

#include "cpu/kernels.hpp"
#include "optim/stepper.hpp"

namespace pyoptim::core {

using cpu::Activation;

struct DenseShape {
    std::ptrdiff_t batch, in, out;
};

// Computes y (batch, out) = activation(x (batch, in) weight (out, in)^T + bias (out)). bias may be null.
template <class T>
void dense_forward(const DenseShape&, const T* x, const T* weight, const T* bias, Activation, T* y);

// The same in parts that threads compute on their own, for the weight of a network that is read by all of
// them: parts of the rows of a batch of shape `whole`, with a copy of the weight if that pays for it. The
// bits are those of dense_forward for the batch.
//
// Returns the elements of the copy, or 0 if there is none.
template <class T>
std::size_t dense_copy_size(const DenseShape& whole);
// Writes one of several parts of the copy, for a batch of any size.
template <class T>
void dense_copy(const DenseShape&, const T* weight, int part, int parts, T* copy);
// Computes y (rows.batch, out) on this thread alone. `copy` is whole, and not null.
template <class T>
void dense_forward_rows(const DenseShape& rows, const T* x, const T* copy, const T* bias, Activation, T* y);

// What the backward pass reads: arguments of the forward pass, and the gradient dy of its result y.
template <class T>
struct DenseInputs {
    const T *dy, *x, *weight, *y;  // y may be null if there is no activation
    Activation activation;
};

// The gradients that the backward pass writes, where dz (batch, out) is the one before the activation. A
// gradient whose address is null is left out.
template <class T>
struct DenseGradients {
    T *dx, *dweight, *dbias, *dz = nullptr;
};

template <class T>
void dense_backward(const DenseShape&, const DenseInputs<T>&, const DenseGradients<T>&);

// A weight with its optimizer states, and the arrays dz and x, whose product dz^T x is its gradient.
template <class T>
struct DenseUpdate {
    DenseShape shape;
    const T *dz, *x;
    typename Stepper<T>::Array weight;
};

// Takes an optimizer step on each weight, with the same bits as dense_backward followed by Stepper. Each
// block of the gradient is used while it is in the first cache, and the gradient is never written to memory.
template <class T>
void dense_update(const std::vector<DenseUpdate<T>>&, const T* coefficients);

}  // namespace pyoptim::core
