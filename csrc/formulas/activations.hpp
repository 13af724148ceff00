// The activations, once: pyoptim/activations.py has the same in Python. Names and derivatives at kinks are
// PyTorch's.
#pragma once

#include "formulas/rules.hpp"

namespace pyoptim {

#define PYOPTIM_FOR_EACH_ACTIVATION(X) \
    X(identity)                        \
    X(relu)                            \
    X(sigmoid)                         \
    X(tanh)                            \
    X(leaky_relu)                      \
    X(elu)                             \
    X(selu)                            \
    X(gelu)                            \
    X(gelu_tanh)                       \
    X(silu)                            \
    X(softplus)                        \
    X(hardtanh)                        \
    X(hardsigmoid)                     \
    X(hardswish)

enum class Activation : int {
#define X(name) name,
    PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
        count
};

// An activation with its parameters: leaky_relu's slope, elu's alpha, softplus's beta; hardtanh's bounds.
struct ActivationSpec {
    Activation kind;
    double a = 0, b = 0;
    PYOPTIM_FN constexpr ActivationSpec(Activation kind_, double a_ = 0, double b_ = 0)
        : kind(kind_), a(a_), b(b_) {}
};

}  // namespace pyoptim
