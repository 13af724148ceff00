// The optimizer step over contiguous arrays: one loop for every rule, which the compiler vectorises, so
// body and tail are the same expression.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

// State<T> is a struct of T only; its fields are loaded and stored in order.
template <class Rule, class T>
void step(size_t n, T* param, const T* grad, T* const* state, const T* coefficients) {
    constexpr int kStates = Rule::state_count;
    static_assert(kStates <= kMaxStates, "raise kMaxStates");
    using Shared = Common::Coefficients<T>;
    using Own = typename Rule::template Coefficients<T>;
    const Shared shared = *reinterpret_cast<const Shared*>(coefficients);
    const Own own = *reinterpret_cast<const Own*>(coefficients + Common::coefficient_count);
    T* s[kStates + 1];
    for (int k = 0; k < kStates; ++k) s[k] = state[k];

    PYOPTIM_NO_OVERLAP
    for (size_t i = 0; i < n; ++i) {
        T p = param[i];
        T g = grad[i];
        typename Rule::template State<T> local;
        T* fields = reinterpret_cast<T*>(&local);
        for (int k = 0; k < kStates; ++k) fields[k] = s[k][i];
        Common::apply(shared, p, g);
        Rule::apply(own, p, g, local);
        for (int k = 0; k < kStates; ++k) s[k][i] = fields[k];
        param[i] = p;
    }
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
