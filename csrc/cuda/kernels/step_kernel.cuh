// The optimizer step: one launch updates all arrays of a rule, whatever their number and sizes.
#pragma once

#include "cuda/kernels/device.cuh"

namespace pyoptim::cuda {

// The update of one element by a rule.
template <class Rule, class T>
struct Update {
    typename Common::Coefficients<T> shared;
    typename Rule::template Coefficients<T> own;

    __device__ void operator()(T& p, T g, typename Rule::template State<T>& state) const {
        Common::apply(shared, p, g);
        Rule::apply(own, p, g, state);
    }

    // The coefficients of Common come first in a row.
    static __device__ Update of_row(const T* row) {
        Update made;
        T* const shared = reinterpret_cast<T*>(&made.shared);
        T* const own = reinterpret_cast<T*>(&made.own);
        for (int k = 0; k < Common::coefficient_count; ++k) shared[k] = row[k];
        for (int k = 0; k < Rule::coefficient_count; ++k) own[k] = row[Common::coefficient_count + k];
        return made;
    }
};

template <class Rule, class T, int width>
struct Step {
    static constexpr int states = Rule::state_count;
    Update<Rule, T> update;

    __device__ void operator()(T* param, const T* grad, T* const* state, Index i) const {
        Pack<T, width> p = load<width>(param + i), s[states + 1];
        const Pack<T, width> g = load<width>(grad + i);
        for (int k = 0; k < states; ++k) s[k] = load<width>(state[k] + i);
        for (int j = 0; j < width; ++j) {
            typename Rule::template State<T> local;
            T* const fields = reinterpret_cast<T*>(&local);
            for (int k = 0; k < states; ++k) fields[k] = s[k].value[j];
            update(p.value[j], g.value[j], local);
            for (int k = 0; k < states; ++k) s[k].value[j] = fields[k];
        }
        store(param + i, p);
        for (int k = 0; k < states; ++k) store(state[k] + i, s[k]);
    }
};

// `parts` blocks per chunk, 1, 2 or 4: several where there are few chunks, so that all multiprocessors work.
// grads has an address per array; rows, unless null, are in device memory, kRowLength apart: a captured graph
// reads them anew at each launch. In float at least four blocks share a multiprocessor: at 64 registers
// little or nothing is spilled, and more loads are under way.
template <class Rule, class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 4 : 1)
    step(Index parts, const StepArray* arrays, const StepChunk* chunks, const T* const* grads, const T* rows,
         const StepRows<T> by_value) {
    static_assert(Rule::state_count <= 4, "raise the number of states in StepArray");
    static_assert(Common::coefficient_count + Rule::coefficient_count <= kRowLength, "raise kRowLength");
    const unsigned of = unsigned(parts), part = blockIdx.x % of;
    const StepChunk at = chunks[blockIdx.x / of];
    const StepArray& array = arrays[at.array];
    const Index length = kChunk / of, begin = at.chunk * kChunk + part * length;
    const Index n = smaller(length, array.size - begin);
    if (n <= 0) return;
    T* const param = reinterpret_cast<T*>(array.param) + begin;
    const T* const grad = grads[at.array] + begin;
    const Index head = to_aligned(param);
    bool aligned = is_aligned(grad + head);
    T* state[Rule::state_count + 1];
    for (int k = 0; k < Rule::state_count; ++k) {
        state[k] = reinterpret_cast<T*>(array.state[k]) + begin;
        aligned = aligned && is_aligned(state[k] + head);
    }
    const T* const row = (rows != nullptr ? rows : by_value.value) + array.row * kRowLength;
    const auto one = Update<Rule, T>::of_row(row);
    each_of_block<T>(n, head, aligned, [&](Index i, auto width) {
        const Step<Rule, T, decltype(width)::value> all = {one};
        all(param, grad, state, i);
    });
}

// Casts rows from double to T, after their first coefficient, the scale of the gradient, is multiplied by
// *factor, unless factor is null. If `at` is not null, rows holds those of many steps. One block.
template <class T>
PYOPTIM_KERNEL scale_rows(Index count, const double* rows, const Position* at, const double* factor, T* out) {
    if (at != nullptr) rows += at->row * count * kRowLength;
    for (Index i = thread(); i < count * kRowLength; i += kThreads) {
        out[i] = T(i % kRowLength == 0 && factor != nullptr ? rows[i] * *factor : rows[i]);
    }
}

}  // namespace pyoptim::cuda
