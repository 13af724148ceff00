// The coefficients and scalars of Adafactor, the same on processors and GPUs. Includes nothing, like
// rules.hpp.
#pragma once

#include "formulas/squares.hpp"

namespace pyoptim {

// The coefficients of a group, in double: first those of Common, then those of Adafactor.
struct AdafactorCoefficients {
    double scale, weight_decay, param_scale;  // the decay is 0: it is in param_scale
    double rate;                              // upper bound of the relative step
    double fresh;                             // weight of the new moments
    double eps;                               // negative: the epsilon of the type
    double smallest;                          // lower bound of the size of a parameter
    double threshold;                         // threshold of clipping
};
constexpr int kAdafactorLength = sizeof(AdafactorCoefficients) / sizeof(double);

// A floor for the square root of a variance.
template <class T>
PYOPTIM_FN double least_root(const AdafactorCoefficients& c) {
    return c.eps >= 0 ? c.eps : sizeof(T) == sizeof(float) ? 1.0 / (1 << 23) : 1.0 / (1LL << 52);
}

// Moves `old` towards the newly measured value.
template <class T>
PYOPTIM_FN T moved_towards(T old, double fresh, double now) {
    return T(double(old) + fresh * (now - double(old)));
}

// The factor that multiplies the direction of n elements, from the sums of squares of the direction and the
// parameter, which are as squares.hpp keeps them.
PYOPTIM_FN double adafactor_rate(const AdafactorCoefficients& c, double n, double param, double direction) {
    const double root = square_root(n);
    const double size = root_of(param) / root, length = root_of(direction) / (root * c.threshold);
    return c.rate * (size > c.smallest ? size : c.smallest) / (length > 1 ? length : 1);  // NaN is neither
}

}  // namespace pyoptim
