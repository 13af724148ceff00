// The norm of many gradients, and clipping by it, on the tables of step_kernel.cuh.
#pragma once

#include "cuda/kernels/step_kernel.cuh"

namespace pyoptim::cuda {

// Sums of squares are written as formulas/squares.hpp keeps them.

// Writes the sum of squares of each chunk. A block per chunk.
template <class T>
PYOPTIM_KERNEL sum_of_squares(const StepArray* arrays, const StepChunk* chunks, const T* const* grads,
                              double* partial) {
    const StepChunk at = chunks[block()];
    const Index begin = at.chunk * kChunk, n = smaller(kChunk, arrays[at.array].size - begin);
    const T* const grad = grads[at.array] + begin;
    double sum = 0;
    for (Index i = thread(); i < n; i += kThreads) sum += double(grad[i]) * double(grad[i]);
    sum = kept_block_sum<T>(block_sum(sum), n, [&](Index i) { return double(grad[i]); });
    if (thread() == 0) partial[block()] = sum;
}

// The sums of squares of one array of n elements; a block per kChunk elements.
template <class T>
PYOPTIM_KERNEL chunk_squares(Index n, const T* x, double* partial) {
    const Index begin = block() * kChunk, end = smaller(n, begin + kChunk);
    double sum = 0;
    for (Index i = begin + thread(); i < end; i += kThreads) sum += double(x[i]) * double(x[i]);
    sum = kept_block_sum<T>(block_sum(sum), end - begin, [&](Index i) { return double(x[begin + i]); });
    if (thread() == 0) partial[block()] = sum;
}

// *out = scale times the sum of n values, divided by *divisor unless that is null. T is double. One block.
template <class T>
PYOPTIM_KERNEL total(Index n, const T* partial, double scale, const double* divisor, double* out) {
    double sum = 0;
    for (Index i = thread(); i < n; i += kThreads) sum += partial[i];
    sum = block_sum(sum);
    if (thread() > 0) return;
    const double by = divisor != nullptr ? *divisor : 1;
    *out = by == 0 ? sum * 0 : scale * sum / by;
}

// *out = scale times the sum of n sums of squares. T is double. One block.
template <class T>
PYOPTIM_KERNEL total_squares(Index n, const T* partial, double scale, double* out) {
    double sum = 0;
    for (Index i = thread(); i < n; i += kThreads) sum += squares_of(partial[i]);
    sum = kept_block_sum<T>(block_sum(sum), n, [&](Index i) { return root_of(partial[i]); });
    if (thread() == 0) *out = sum < 0 ? square_root(scale) * sum : scale * sum;
}

// The factor that brings the norm of the gradients to at most max_norm; pyoptim/gradients.py has the same
// formula. T is double. The grid has one block.
template <class T>
PYOPTIM_KERNEL clip_factor(const T* sum_of_squares, double max_norm, T* factor) {
    if (thread() > 0) return;
    const double ratio = max_norm / (root_of(*sum_of_squares) + 1e-6);
    *factor = ratio >= 1 ? 1 : ratio;  // NaN stays NaN
}

// The factor that brings the norm of the gradients to a length, or less where the norm is so small that float
// could not hold that factor. T is double. The grid has one block.
template <class T>
PYOPTIM_KERNEL ascent_factor(const T* sum_of_squares, double length, T* factor) {
    if (thread() > 0) return;
    const double norm = root_of(*sum_of_squares);
    constexpr double kLeast = 1e-12;
    *factor = length / (norm < kLeast ? kLeast : norm);
}

// Multiplies gradients in place; a factor of 1 leaves memory untouched. A block per chunk.
template <class T>
PYOPTIM_KERNEL scale(const StepArray* arrays, const StepChunk* chunks, T* const* grads,
                     const double* factor) {
    if (*factor == 1) return;
    const StepChunk at = chunks[block()];
    const Index begin = at.chunk * kChunk, n = smaller(kChunk, arrays[at.array].size - begin);
    T* const grad = grads[at.array] + begin;
    const T by = T(*factor);
    for (Index i = thread(); i < n; i += kThreads) grad[i] = grad[i] * by;
}

}  // namespace pyoptim::cuda
