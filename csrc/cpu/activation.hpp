// Activations over arrays: formulas/activations.hpp says what each computes.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/vector_math.hpp"
#include "formulas/activations.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class T>
void exponential(size_t n, const T* x, T* y) {
    for (size_t i = 0; i < n; ++i) y[i] = exponential(x[i]);
}

// The arrays x and y may be the same.
template <class T>
void activate(const ActivationSpec& it, size_t n, const T* x, T* y) {
    const T a = T(it.a), b = T(it.b);
    math::with_activation(it.kind, [=](auto formula) __attribute__((always_inline)) {
        for (size_t i = 0; i < n; ++i) y[i] = formula.value(x[i], a, b);
    });
}

// The arrays dx and dy may be the same.
template <class T>
void activation_backward(const ActivationSpec& it, size_t n, const T* dy, const T* kept, T* dx) {
    const T a = T(it.a), b = T(it.b);
    math::with_activation(it.kind, [=](auto formula) __attribute__((always_inline)) {
        for (size_t i = 0; i < n; ++i) dx[i] = formula.gradient(dy[i], kept[i], a, b);
    });
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
