// The optimizer step over contiguous arrays: one loop for every rule, which the compiler vectorises, so
// body and tail are the same expression.
#pragma once

#include <type_traits>

#include "cpu/kernels.hpp"
#include "cpu/lanes.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

#if defined(__AVX512F__)
template <class Rule, class... Others>
constexpr bool kIsOneOf = (std::is_same_v<Rule, Others> || ...);
template <class Rule>
constexpr bool kTakesRoot = kIsOneOf<Rule, rules::Adagrad, rules::RMSprop, rules::RMSpropMomentum,
                                     rules::RMSpropCentered, rules::RMSpropCenteredMomentum, rules::Adadelta,
                                     rules::Adam, rules::AMSGrad, rules::NAdam, rules::RAdam>;

template <class Coefficients, class E>
PYOPTIM_INLINE Coefficients repeated(const double* coefficients) {
    Coefficients result;
    E* fields = reinterpret_cast<E*>(&result);
    for (size_t k = 0; k < sizeof result / sizeof(E); ++k) fields[k] = E::all(coefficients[k]);
    return result;
}

// The loop of step() by `count` vectors from element i on, while there are so many; a single one may be
// filled in part. Returns where it ended.
template <class Rule, int count>
PYOPTIM_INLINE size_t step_by_vectors(size_t i, size_t n, double* param, const double* grad,
                                      double* const* state, const double* coefficients) {
    constexpr int kStates = Rule::state_count;
    using E = Lanes<count>;
    using Shared = Common::Coefficients<E>;
    using Own = typename Rule::template Coefficients<E>;
    const Shared shared = repeated<Shared, E>(coefficients);
    const Own own = repeated<Own, E>(coefficients + Common::coefficient_count);
    double* s[kStates];
    for (int k = 0; k < kStates; ++k) s[k] = state[k];

    for (; count == 1 ? i < n : i + E::size <= n; i += E::size) {
        E p = E::load(param + i, n - i);
        E g = E::load(grad + i, n - i);
        typename Rule::template State<E> local;
        E* fields = reinterpret_cast<E*>(&local);
        for (int k = 0; k < kStates; ++k) fields[k] = E::load(s[k] + i, n - i);
        Common::apply(shared, p, g);
        Rule::apply(own, p, g, local);
        for (int k = 0; k < kStates; ++k) fields[k].store(s[k] + i, n - i);
        p.store(param + i, n - i);
    }
    return i;
}
#endif

// State<T> is a struct of T only; its fields are loaded and stored in order.
template <class Rule, class T>
void step(size_t n, T* param, const T* grad, T* const* state, const T* coefficients) {
    constexpr int kStates = Rule::state_count;
    static_assert(kStates <= kMaxStates, "raise kMaxStates");
#if defined(__AVX512F__)
    if constexpr (kTakesRoot<Rule> && std::is_same_v<T, double>) {
        const size_t done = step_by_vectors<Rule, 3>(0, n, param, grad, state, coefficients);
        step_by_vectors<Rule, 1>(done, n, param, grad, state, coefficients);
        return;
    }
#endif
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
