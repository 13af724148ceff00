// The kernels of a training step besides its layers, loss and optimizer: batches, a penalty, and the measures
// of an epoch.
#pragma once

#include "cuda/kernels/device.cuh"
#include "formulas/penalty.hpp"

namespace pyoptim::cuda {

// Returns p itself without a position. In a captured step, which has one, p points to an address: that
// address is returned, so that one capture serves data anywhere in memory. Null stays null.
template <class T>
__device__ inline const T* found(const T* p, const Position* at) {
    return at != nullptr && p != nullptr ? *reinterpret_cast<const T* const*>(p) : p;
}

// Copies rows of x, or of bytes if those are not null, to out (batch, cols). Row i of out is row order[first
// + i], or row first + i if there is no order. Without a position, first is 0. With one it is the position's
// example, and order, x and bytes point to addresses, as found() says. A block per row.
template <class T>
PYOPTIM_KERNEL gather_rows(const Position* at, const Index* order, Index cols, const T* x,
                           const unsigned char* bytes, T* out) {
    order = found(order, at), x = found(x, at), bytes = found(bytes, at);
    Index row = (at != nullptr ? at->example : 0) + block();
    if (order != nullptr) row = order[row];
    const auto value = [&](Index j) {
        return bytes != nullptr ? T(bytes[row * cols + j]) : x[row * cols + j];
    };
    each_ahead<4>(thread(), cols, kThreads, value, [&](Index j, T it) { out[block() * cols + j] = it; });
}

// Adds the gradient of the penalty of n weights to their gradient, and writes the penalty of each chunk to
// `partial`. A block per kChunk elements.
template <class T>
PYOPTIM_KERNEL penalty(Index n, double l2, double l1, const T* w, T* gradient, double* partial) {
    const Penalty by = {l2, l1};
    const Index begin = block() * kChunk, end = smaller(n, begin + kChunk);
    struct Weight {
        T value, gradient;
    };
    double sum = 0;
    each_ahead<4>(
        begin + thread(), end, kThreads, [&](Index i) { return Weight{w[i], gradient[i]}; },
        [&](Index i, Weight at) {
            gradient[i] = by.gradient(at.value, at.gradient);
            const double exact = double(at.value);
            sum += by.value(exact * exact, absolute(exact));
        });
    sum = block_sum(sum);
    if (thread() == 0) partial[block()] = sum;
}

// The largest value met so far and its index, the first if several are equal; NaN is larger than any number,
// as in NumPy's argmax.
template <class T>
struct Largest {
    T value;
    Index at;
    __device__ void meet(T other, Index where) {
        const bool unknown = value != value, first = where < at;
        const bool larger =
            unknown ? other != other && first : other != other || other > value || (other == value && first);
        if (larger) value = other, at = where;
    }
};
// The index of the largest of n elements, searched by a warp and returned to all its lanes.
template <class T>
__device__ inline Index place_of_largest(Index n, const T* x) {
    Largest<T> largest = {x[0], 0};
    for (Index j = lane(); j < n; j += kWarp) largest.meet(x[j], j);
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        const T value = __shfl_xor_sync(0xFFFFFFFFu, largest.value, mask);
        largest.meet(value, __shfl_xor_sync(0xFFFFFFFFu, largest.at, mask));
    }
    return largest.at;
}

// Counts the rows whose largest output belongs to the label or, if labels is null, to the largest share. A
// row of which that is NaN or infinite is never right: it has no softmax. A warp per row.
template <class T>
PYOPTIM_KERNEL count_right(Index rows, Index classes, const T* output, const Index* labels, const T* shares,
                           Position* at) {
    const Index r = warp_row();
    double right = 0;
    if (r < rows) {
        const T* const row = output + r * classes;
        const Index place = place_of_largest(classes, row);
        const Index wanted = labels != nullptr ? labels[r] : place_of_largest(classes, shares + r * classes);
        const bool finite = row[place] - row[place] == 0;
        right = lane() == 0 && finite && place == wanted ? 1 : 0;
    }
    right = block_sum(right);
    if (thread() == 0) atomicAdd(&at->right, static_cast<unsigned long long>(right));  // exact in any order
}

// Ends a step on a number of examples: adds their loss, times its divisor, and moves the position on. Without
// a divisor that is the number of examples. T is double. One block.
template <class T>
PYOPTIM_KERNEL finish_step(Index batch, const T* divisor, const T* loss, Position* at) {
    if (thread() > 0) return;
    const T by = divisor != nullptr ? *divisor : T(batch);
    at->loss += *loss * by;
    at->divisor += by;
    at->steps += 1;
    at->example += batch;
    at->row += 1;
}

}  // namespace pyoptim::cuda
