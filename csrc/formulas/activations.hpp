// The activations, once: the CPU's kernels, CUDA's and NVRTC's compile these lines, and
// pyoptim/formulas/activations.py has the same in Python. Names and derivatives at kinks are PyTorch's.
//
// To add one: a line in the list, its PYOPTIM_ACTIVATION below in the same order, and its twin in Python.
#pragma once

#include "formulas/math.hpp"

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

namespace math {

// An activation: its value is a function of (x, a, b), its gradient one of (dy, from, a, b), where `from` is
// what the forward pass keeps: its input x, or its output y. NaN stays NaN.
#define PYOPTIM_ACTIVATION(name, from, value_, gradient_)      \
    struct name##_activation {                                 \
        static constexpr bool keeps_input = #from[0] == 'x';   \
        template <class T>                                     \
        static PYOPTIM_FN T value(T x, T a, T b) {             \
            static_cast<void>(a), static_cast<void>(b);        \
            value_;                                            \
        }                                                      \
        template <class T>                                     \
        static PYOPTIM_FN T gradient(T dy, T from, T a, T b) { \
            static_cast<void>(a), static_cast<void>(b);        \
            gradient_;                                         \
        }                                                      \
    };

constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSeluScale = 1.0507009873554804934193349852946;

template <class T>
PYOPTIM_FN T elu_value(T x, T alpha) {
    const T below = alpha * exponential_minus_1(x > T(0) ? T(0) : x);
    return x > T(0) ? x : below;
}
// The argument of tanh in the approximation of GELU by tanh.
template <class T>
PYOPTIM_FN T gelu_inner(T x) {
    return T(0.79788456080286535588) * (x + T(0.044715) * (x * x * x));
}

PYOPTIM_ACTIVATION(identity, y, return x, static_cast<void>(y); return dy)
// T{} stands instead of T(0), so that T may also be a vector of neighbouring elements.
PYOPTIM_ACTIVATION(relu, y, return x <= T{} ? T{} : x, return y <= T{} ? T{} : dy)
PYOPTIM_ACTIVATION(sigmoid, y, return logistic(x), return dy * (y * (T(1) - y)))
PYOPTIM_ACTIVATION(tanh, y, return hyperbolic_tangent(x), return dy * (T(1) - y * y))
PYOPTIM_ACTIVATION(leaky_relu, y, return x > T(0) ? x : x * a, return y > T(0) ? dy : dy * a)
PYOPTIM_ACTIVATION(elu, y, return elu_value(x, a), return y > T(0) ? dy : dy * (y + a))
PYOPTIM_ACTIVATION(selu, y, return T(kSeluScale) * elu_value(x, T(kSeluAlpha)),
                   const T below = y + T(kSeluScale * kSeluAlpha);
                   return dy * (y > T(0) ? T(kSeluScale) : below))
PYOPTIM_ACTIVATION(gelu, x, return x * standard_normal(x).distribution,
                   const Normal<T> at = standard_normal(x);
                   return dy * (at.distribution + x * at.density))
// (1 + tanh(u))/2 is 1/(1 + exp(-2u)).
PYOPTIM_ACTIVATION(gelu_tanh, x, return x / one_and_exponential_of_minus(T(2) * gelu_inner(x)),
                   const T half = logistic_of_number(T(2) * gelu_inner(x));
                   const T slope = T(1.59576912160573071176) * (T(1) + T(0.134145) * (x * x));
                   const T curved = half * (T(1) - half) * (x * slope); return dy * (half + curved))
PYOPTIM_ACTIVATION(silu, x, return x / one_and_exponential_of_minus(x), const T s = logistic_of_number(x);
                   return (dy * s) * (T(1) + x * (T(1) - s)))
// log(1 + exp(a x))/a
PYOPTIM_ACTIVATION(softplus, x, const T z = a * x;
                   return (at_least(T(0), z) +
                           logarithm_1_plus(exponential_of_minus(lesser_size(z, T(Format<T>::highest))))) *
                              (T(1) / a),
                          return dy * logistic(a * x))
PYOPTIM_ACTIVATION(hardtanh, x, const T above = x < a ? a : x;
                   return above > b ? b : above, const bool flat = (x <= a) | (x >= b);
                   return flat ? T(0) : dy)
PYOPTIM_ACTIVATION(hardsigmoid, x, const T z = x + T(3); const T above = z < T(0) ? T(0) : z;
                   return (above > T(6) ? T(6) : above) / T(6), const bool inside = (x > T(-3)) & (x < T(3));
                   return inside ? dy / T(6) : T(0))
PYOPTIM_ACTIVATION(hardswish, x, const T z = x + T(3); const T above = z < T(0) ? T(0) : z;
                   return x * (above > T(6) ? T(6) : above) / T(6), const T within = dy * (x / T(3) + T(0.5));
                   const T right = x >= T(3) ? dy : within; return x <= T(-3) ? T(0) : right)

#undef PYOPTIM_ACTIVATION

// Calls visit with the formula of this kind, as an object without data.
template <class Visit>
PYOPTIM_FN void with_activation(Activation kind, Visit visit) {
    switch (kind) {
#define X(name)            \
    case Activation::name: \
        return visit(name##_activation());
        PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
        case Activation::count:
            return;
    }
}

// z, or its ReLU, for kernels that compute it in the same pass. T may be a vector of neighbours.
template <class T>
PYOPTIM_FN T relu_if(bool wanted, T z) {
    return wanted ? relu_activation::value(z, T{}, T{}) : z;
}

}  // namespace math
}  // namespace pyoptim
