// The losses of one output and its target, and the formula of cross-entropy, once: the CPU's kernels, CUDA's
// and NVRTC's compile these lines. pyoptim/formulas/losses.py has the same in Python.
//
// To add a loss of one output: its name in the list, its PYOPTIM_LOSS below in the same order, its twin in
// Python.
#pragma once

#include "formulas/math.hpp"

namespace pyoptim {

#define PYOPTIM_FOR_EACH_POINTWISE_LOSS(X) X(squared) X(absolute) X(huber) X(binary) X(hinge) X(poisson)
enum class PointwiseKind : int {
#define X(name) name,
    PYOPTIM_FOR_EACH_POINTWISE_LOSS(X)
#undef X
        count
};

namespace math {

// A loss: its value and its slope, the derivative with respect to x, are functions of (output x, target t,
// parameter a). NaN stays NaN. The cost of an element says how many are worth waking a thread for.
enum class Cost { arithmetic, exponential };
#define PYOPTIM_LOSS(name, cost_, value_, slope_)       \
    struct name##_loss {                                \
        static constexpr Cost cost = Cost::cost_;       \
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

PYOPTIM_LOSS(squared, arithmetic, const double d = double(x) - double(t); return d * d, return T(2) * (x - t))
PYOPTIM_LOSS(absolute, arithmetic, return absolute(double(x) - double(t)), const T d = x - t;
             const T side = d > T(0) ? T(1) : T(-1); return d == T(0) || d != d ? d : side)
PYOPTIM_LOSS(huber, arithmetic, const double d = absolute(double(x) - double(t));
             const double delta = double(a); const double near = d <= delta ? d : delta;
             return near * (d - 0.5 * near) + (d - d), return clamp(x - t, -a, a))
// With the positive examples' weight a: (1 - t) x + (1 + (a - 1) t) log(1 + exp(-x)).
PYOPTIM_LOSS(binary, exponential, const T below = x < T(0) ? -x : T(0); const T both = T(1) + (a - T(1)) * t;
             const T soft = logarithm_1_plus(exponential(-absolute(x)));
             return double((T(1) - t) * x) + double(both) * (double(soft) + double(below)),
                    const T e = exponential(-absolute(x));
             const T p = (x < T(0) ? e : T(1)) / (T(1) + e); return p * (T(1) + (a - T(1)) * t) - a * t)
PYOPTIM_LOSS(hinge, arithmetic, const double m = 1 - double(t) * double(x);
             return m <= 0 ? 0 : m, const T m = T(1) - t * x; const T inside = m != m ? m : -t;
             return m <= T(0) ? T(0) : inside)
// Half the deviance of Poisson's distribution with mean exp(x), in double since its terms cancel where exp(x)
// is about t; t log(t) is 0 for t = 0.
PYOPTIM_LOSS(poisson, exponential, const double own = double(t) * (logarithm(double(t)) - 1);
             return exponential(double(x)) - double(t) * double(x) + (t == T(0) ? 0 : own),
                    return exponential(x) - t)

#undef PYOPTIM_LOSS

// ---- cross-entropy of a row of logits x ------------------------------------------------------------
//
// With weights q of the classes, a temperature T and z = x - max(x) the loss is
// T (T sum(q) log_sum - sum(q z)), where log_sum is log(sum(exp(z/T))). Two things stay with the loops: the
// exponentials, since the CPU's take a vector of arguments that are not positive, which is faster than CUDA's
// for any argument; and the gradient, since the CPU's is compiled with contraction and has its bits from the
// place where it stands.

// The target of a row before the weights of classes: q_j = spread + keep t_j.
struct SmoothedTarget {
    double keep, spread;
    PYOPTIM_FN SmoothedTarget(double weight, double smoothing, double classes)
        : keep(weight * (1 - smoothing)), spread(weight * smoothing / classes) {}
};

// The term -q z of one class. A logit of -infinity whose q is 0 costs nothing.
template <class T>
PYOPTIM_FN double linear_cost(double q, T largest, T x) {
    const double term = q * (double(largest) - double(x));
    return q == 0 ? 0 : term;
}

// The loss of a row; `total` is the sum of q, and `linear` is the sum of linear_cost.
PYOPTIM_FN double cross_entropy_of_row(double total, double linear, double log_sum, double temperature) {
    return temperature * (temperature * total * log_sum + linear);
}

// 1/T, by which differences of logits are multiplied. It is neither 0 nor infinity, since those of infinite
// or equal logits would become NaN.
template <class T>
PYOPTIM_FN T inverse_temperature(double temperature) {
    const double least = double(from_bits<T>(typename Format<T>::Bits(1) << Format<T>::fraction));
    const double most = double(from_bits<T>(bits_of(infinity<T>()) - 1));
    return T(at_most(most, at_least(least, 1 / temperature)));
}

// The term q log(t) of one class in the divergence from shares t, whose q is t times a weight: 0 log 0 = 0.
template <class T>
PYOPTIM_FN double surprise(double q, T t) {
    const double term = q * logarithm(double(t));
    return t == T(0) ? 0 : term;
}

}  // namespace math
}  // namespace pyoptim
