// LARS and LAMB on the tables of step_kernel.cuh, whose chunks here are of kSumBlock elements: the sums have
// the partition and the order of csrc/optim/trust_stepper.hpp, so that these steps too have the CPU's bits.
#pragma once

#include "cuda/kernels/step_kernel.cuh"
#include "formulas/trust.hpp"

namespace pyoptim::cuda {

// The sums of squares of two vectors of n elements, for out[0] and out[1], as formulas/squares.hpp keeps
// them; visit(i, a, b) gives element i of both, which x[0] and x[1] have afterwards. The block reads a tile;
// then one warp adds up the first vector and another the second, each lane its own elements in order, as
// csrc/cpu/reduce.hpp does.
template <class T, class Visit>
__device__ inline void two_sums_of_squares(Index n, Visit visit, const T* const (&x)[2], double* out) {
    constexpr Index kTile = 8 * kThreads;
    __shared__ T tile[2][kTile];
    __shared__ double lanes[2][kWarp];
    const Index which = thread() / kWarp;
    double sum = 0;
    for (Index begin = 0; begin < n; begin += kTile) {
        const Index count = smaller(kTile, n - begin);
        for (Index i = thread(); i < count; i += kThreads) visit(begin + i, tile[0][i], tile[1][i]);
        __syncthreads();
        for (Index i = lane(); which < 2 && i < count; i += kWarp) {
            sum += double(tile[which][i]) * double(tile[which][i]);
        }
        __syncthreads();
    }
    if (which < 2) lanes[which][lane()] = sum;
    __syncthreads();
    for (int k = 0; k < 2; ++k) {
        double total = 0;
        for (int l = 0; l < kWarp; ++l) total += lanes[k][l];
        total = kept_block_sum<T>(total, n, [&](Index i) { return double(x[k][i]); });
        if (thread() == 0) out[k] = total;
    }
}

// squares (blocks, 2) receives the sums of squares of the parameters and of the gradients. A block per chunk.
template <class T>
PYOPTIM_KERNEL lars_squares(const StepArray* arrays, const StepChunk* chunks, const T* const* grads,
                            double* squares) {
    const StepChunk at = chunks[block()];
    const Index begin = at.chunk * kSumBlock, n = smaller(kSumBlock, arrays[at.array].size - begin);
    const T* const param = reinterpret_cast<const T*>(arrays[at.array].param) + begin;
    const T* const grad = grads[at.array] + begin;
    const auto visit = [&](Index i, T& a, T& b) {
        a = param[i];
        b = grad[i];
    };
    two_sums_of_squares<T>(n, visit, {param, grad}, squares + 2 * block());
}

// Writes the direction of each array: the step that Adam takes from 0, with the decay. squares (blocks, 2)
// receives the sums of squares of the parameters and of the directions. rows has a row per group, kRowLength
// apart. A block per chunk.
template <class T>
PYOPTIM_KERNEL lamb_direction(const StepArray* arrays, const StepChunk* chunks, const T* const* grads,
                              const T* rows, const Trust* trusts, T* const* directions, double* squares) {
    using Rule = rules::Adam;
    const StepChunk at = chunks[block()];
    const StepArray& array = arrays[at.array];
    const Index begin = at.chunk * kSumBlock, n = smaller(kSumBlock, array.size - begin);
    const T* const param = reinterpret_cast<const T*>(array.param) + begin;
    const T* const grad = grads[at.array] + begin;
    T* const direction = directions[at.array] + begin;
    T* state[Rule::state_count];
    for (int k = 0; k < Rule::state_count; ++k) state[k] = reinterpret_cast<T*>(array.state[k]) + begin;
    const auto update = Update<Rule, T>::of_row(rows + array.row * kRowLength);
    const double decay = trusts[array.row].weight_decay;
    const Update<rules::SGD, T> along = {{1, 0, 1}, {T(decay)}};  // the direction is downhill already
    const auto visit = [&](Index i, T& a, T& b) {
        Rule::State<T> local;
        T* const fields = reinterpret_cast<T*>(&local);
        for (int k = 0; k < Rule::state_count; ++k) fields[k] = state[k][i];
        const T p = param[i];
        T d = 0;
        update(d, grad[i], local);
        for (int k = 0; k < Rule::state_count; ++k) state[k][i] = fields[k];
        rules::SGD::State<T> none;
        if (decay != 0) along(d, p, none);
        direction[i] = d;
        a = p;
        b = d;
    };
    two_sums_of_squares<T>(n, visit, {param, direction}, squares + 2 * block());
}

// Writes the coefficients of the final step of each array: a step of momentum, or, if `directed`, a descent
// along the direction. begins holds the first square of each array and, last, the end of all. rows and trusts
// have an entry per group; *factor, unless factor is null, also multiplies the gradients. A block per array.
template <class T>
PYOPTIM_KERNEL trust_rows(bool directed, const StepArray* arrays, const Index* begins, const double* squares,
                          const double* rows, const Trust* trusts, const double* factor, T* out) {
    __shared__ double tile[2][kThreads], sums[2];
    const Index begin = begins[block()], end = begins[block() + 1];
    double sum = 0;
    for (Index first = begin; first < end; first += kThreads) {
        const Index count = smaller(Index(kThreads), end - first);
        for (int k = 0; k < 2 && thread() < count; ++k) {
            tile[k][thread()] = squares[2 * (first + thread()) + k];
        }
        __syncthreads();
        for (Index i = 0; thread() < 2 && i < count; ++i) sum += squares_of(tile[thread()][i]);
        __syncthreads();
    }
    if (thread() < 2) sums[thread()] = sum;
    __syncthreads();
    double kept[2];
    for (int k = 0; k < 2; ++k) {
        const auto root = [&](Index i) { return root_of(squares[2 * (begin + i) + k]); };
        kept[k] = kept_block_sum<T>(sums[k], end - begin, root);
    }
    if (thread() > 0) return;
    const Index group = arrays[block()].row;
    Trust trust = trusts[group];
    if (factor != nullptr) trust.grad_scale *= *factor;
    const T rate = T(trust_rate(trust, directed, kept[0], kept[1]));
    T* const to = out + block() * kRowLength;
    const double* const row = rows + group * kRowLength;
    constexpr int kOwn = Common::coefficient_count;
    for (int k = 0; k < kRowLength; ++k) to[k] = T(k == 0 && factor != nullptr ? row[0] * *factor : row[k]);
    if (!directed) {
        reinterpret_cast<rules::Momentum::Coefficients<T>*>(to + kOwn)->grad_in = rate;
        return;
    }
    to[0] = -1;
    to[1] = 0;
    to[2] = 1;
    to[kOwn] = rate;
}

}  // namespace pyoptim::cuda
