// Dense layers on raw pointers, row-major; nothing overlaps. A call is one parallel region or two; a
// forward pass of more than 512 inputs to few outputs may be two for each 512.
#pragma once

#include <cstddef>

#include <vector>

#include "cpu/kernels.hpp"
#include "optim/stepper.hpp"
#include "runtime/pieces.hpp"
#include "runtime/scratch.hpp"

namespace pyoptim::core {

using cpu::Activation;

// The work that pays for another thread: so many weights that are read for one example, which takes as long
// as eight times as many multiply-adds on weights that are in the first cache.
constexpr std::size_t kDenseGrain = 1 << 16;
constexpr std::ptrdiff_t kDenseReuse = 8;
// A copy of up to so many weights is made by the calling thread alone, which saves a region.
constexpr std::ptrdiff_t kPackedAlone = 16384;

struct DenseShape {
    std::ptrdiff_t batch, in, out;
};

// Computes y (batch, out) = activation(x (batch, in) weight (out, in)^T + bias (out)). bias may be null.
template <class T>
void dense_forward(const DenseShape&, const T* x, const T* weight, const T* bias, Activation, T* y);

// The same for some rows of a batch that does without a copy of its weight, on this thread alone.
template <class T>
void dense_alone(const DenseShape& rows, const T* x, const T* weight, const T* bias, Activation, T* y);

// The weight of a dense layer as the forward pass of large batches takes it, kept from one prediction to the
// next. Threads then compute parts of the rows of a batch on their own, with the bits of dense_forward for
// the whole batch.
template <class T>
class DenseCopy {
  public:
    // Whether the forward pass of a batch of this shape is by a copy.
    static bool pays(const DenseShape& whole);
    // Makes room for the copy.
    void prepare(const DenseShape& whole);
    // Brings one of several parts of the copy up to date. Nobody tells when a weight changes, so this
    // compares it with what it was; to write the copy anew costs much more, since other threads have read it.
    void update(const DenseShape&, const T* weight, int part, int parts);
    // Computes y (rows.batch, out) on this thread alone.
    void forward(const DenseShape& rows, const T* x, const T* bias, Activation, T* y) const;

  private:
    Memory<T> copy_;
    Memory<T> weight_;               // the weight of which it is a copy
    const void* kernels_ = nullptr;  // for which instruction set it has been laid out
    bool is_old_ = false;            // whether there was a copy before this prediction
};

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

// A layer with a weight of up to kPackedAlone elements, whose gradients are sums over pieces of the batch
// (runtime/pieces.hpp): what dense_forward and dense_backward do for a whole batch, with the same bits, by
// functions that compute some rows on this thread alone. A thread has memory() elements to itself, to which
// copy() writes the weight as forward() takes it. backward() writes dz, if there is an activation, and the
// gradients of its rows; add_pieces() adds those of all pieces.
template <class T>
struct DenseRows {
    DenseShape whole;
    const T *weight, *bias;
    Activation activation;

    static bool suits(const DenseShape&);
    std::size_t memory() const;
    void copy(T* memory) const;
    void forward(std::ptrdiff_t rows, const T* x, T* y, T* memory) const;
    void backward(std::ptrdiff_t rows, const DenseInputs<T>& of, const DenseGradients<T>& to,
                  T* memory) const;
};
// The elements [begin, end) of the sum of `count` arrays of `size` elements that lie end to end.
template <class T>
void add_pieces(std::size_t count, std::size_t size, const T* pieces, std::size_t begin, std::size_t end,
                T* out);

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
