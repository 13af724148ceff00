// The losses of one output and its target, and what those of rows are made of, once: the CPU's kernels,
// CUDA's and NVRTC's compile these lines.
#pragma once

#include "formulas/math.hpp"

namespace pyoptim {

#define PYOPTIM_FOR_EACH_POINTWISE_LOSS(X) X(squared) X(absolute) X(huber) X(binary) X(hinge)
enum class PointwiseKind : int {
#define X(name) name,
    PYOPTIM_FOR_EACH_POINTWISE_LOSS(X)
#undef X
        count
};

namespace math {

// Functions of (output x, target t, parameter a). NaN stays NaN.
#define PYOPTIM_LOSS(name, value_, slope_)              \
    struct name##_loss {                                \
        template <class T>                              \
        static PYOPTIM_FN double value(T x, T t, T a) { \
            static_cast<void>(a);                       \
            value_;                                     \
        }                                               \
        template <class T>                              \
        static PYOPTIM_FN T slope(T x, T t, T a) {      \
            static_cast<void>(a);                       \
            slope_;                                     \
        }                                               \
    };

PYOPTIM_LOSS(squared, const double d = double(x) - double(t); return d * d, return T(2) * (x - t))
PYOPTIM_LOSS(absolute, return absolute(double(x) - double(t)), const T d = x - t;
             const T side = d > T(0) ? T(1) : T(-1); return d == T(0) || d != d ? d : side)
PYOPTIM_LOSS(huber, const double d = absolute(double(x) - double(t)); const double delta = double(a);
             const double near = d <= delta ? d : delta;
             return near * (d - 0.5 * near) + (d - d), return clamp(x - t, -a, a))
// With the positive examples' weight a: (1 - t) x + (1 + (a - 1) t) log(1 + exp(-x)).
PYOPTIM_LOSS(binary, const T below = x < T(0) ? -x : T(0); const T both = T(1) + (a - T(1)) * t;
             const T soft = logarithm_1_plus(exponential(-absolute(x)));
             return double((T(1) - t) * x) + double(both) * (double(soft) + double(below)),
                    const T e = exponential(-absolute(x));
             const T p = (x < T(0) ? e : T(1)) / (T(1) + e); return p * (T(1) + (a - T(1)) * t) - a * t)
PYOPTIM_LOSS(hinge, const double m = 1 - double(t) * double(x);
             return m <= 0 ? 0 : m, const T m = T(1) - t * x; const T inside = m != m ? m : -t;
             return m <= T(0) ? T(0) : inside)

#undef PYOPTIM_LOSS

// What differences of logits are multiplied with: neither 0 nor infinity, of which infinite or equal ones
// would make NaN.
template <class T>
PYOPTIM_FN T inverse_temperature(double temperature) {
    const double least = double(from_bits<T>(typename Format<T>::Bits(1) << Format<T>::fraction));
    const double most = double(from_bits<T>(bits_of(infinity<T>()) - 1));
    return T(at_most(most, at_least(least, 1 / temperature)));
}

// q log(t) for a target's share t and q = t times some weight: 0 log 0 = 0.
template <class T>
PYOPTIM_FN double surprise(double q, T t) {
    const double term = q * logarithm(double(t));
    return t == T(0) ? 0 : term;
}

}  // namespace math
}  // namespace pyoptim
