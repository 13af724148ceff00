// Activations. Their derivatives are functions of the output y, so the input need not be kept.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

// libm by its C names: std::exp is an inline overload (see kernels.hpp).
inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }
inline float hyperbolic_tangent(float x) { return __builtin_tanhf(x); }
inline double hyperbolic_tangent(double x) { return __builtin_tanh(x); }

template <class T>
void activate(Activation kind, size_t n, const T* x, T* y) {  // x may be y
    switch (kind) {
        case Activation::identity:
            if (x != y) {
                for (size_t i = 0; i < n; ++i) y[i] = x[i];
            }
            return;
        case Activation::relu:  // NaN stays NaN
            for (size_t i = 0; i < n; ++i) y[i] = x[i] <= T(0) ? T(0) : x[i];
            return;
        case Activation::sigmoid:
            for (size_t i = 0; i < n; ++i) y[i] = T(1) / (T(1) + exponential(-x[i]));
            return;
        case Activation::tanh:
            for (size_t i = 0; i < n; ++i) y[i] = hyperbolic_tangent(x[i]);
            return;
    }
}

template <class T>
void activation_backward(Activation kind, size_t n, const T* dy, const T* y, T* dx) {  // dx may be dy
    switch (kind) {
        case Activation::identity:
            for (size_t i = 0; i < n; ++i) dx[i] = dy[i];
            return;
        case Activation::relu:
            for (size_t i = 0; i < n; ++i) dx[i] = y[i] > T(0) ? dy[i] : T(0);
            return;
        case Activation::sigmoid:
            for (size_t i = 0; i < n; ++i) dx[i] = dy[i] * (y[i] * (T(1) - y[i]));
            return;
        case Activation::tanh:
            for (size_t i = 0; i < n; ++i) dx[i] = dy[i] * (T(1) - y[i] * y[i]);
            return;
    }
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
