// Activations over arrays: formulas/activations.hpp says what each computes.
#pragma once

#include "cpu/kernels.hpp"
#include "cpu/vector_math.hpp"
#include "formulas/activations.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class A, class T>
void activate_with(size_t n, const T* x, T* y, T a, T b) {
    for (size_t i = 0; i < n; ++i) y[i] = A::value(x[i], a, b);
}
template <class A, class T>
void gradient_with(size_t n, const T* dy, const T* kept, T* dx, T a, T b) {
    for (size_t i = 0; i < n; ++i) dx[i] = A::gradient(dy[i], kept[i], a, b);
}

template <class T>
void exponential(size_t n, const T* x, T* y) {
    for (size_t i = 0; i < n; ++i) y[i] = exponential(x[i]);
}

template <class T>
void activate(const ActivationSpec& it, size_t n, const T* x, T* y) {  // x may be y
    switch (it.kind) {
#define X(name)            \
    case Activation::name: \
        return activate_with<math::name##_activation>(n, x, y, T(it.a), T(it.b));
        PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
        case Activation::count:
            return;
    }
}

// The arrays dx and dy may be the same.
template <class T>
void activation_backward(const ActivationSpec& it, size_t n, const T* dy, const T* kept, T* dx) {
    switch (it.kind) {
#define X(name)            \
    case Activation::name: \
        return gradient_with<math::name##_activation>(n, dy, kept, dx, T(it.a), T(it.b));
        PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
        case Activation::count:
            return;
    }
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
