// The coefficients and scalars of Adafactor, the same on processors and GPUs. Includes nothing, like
// rules.hpp.
#pragma once

#include "formulas/rules.hpp"

namespace pyoptim {

// A group's row of coefficients, in double: Common's, then
struct Adafactor {
    double scale, weight_decay, param_scale;  // the decay is 0: it is in param_scale
    double rate;                              // the largest relative step
    double fresh;                             // the share of the new moments
    double eps;                               // below 0: the type's own
    double smallest;                          // a parameter's least size
    double threshold;                         // of clipping
};
constexpr int kAdafactorLength = sizeof(Adafactor) / sizeof(double);

// A floor for the square root of a variance.
template <class T>
PYOPTIM_FN double least_root(const Adafactor& c) {
    return c.eps >= 0 ? c.eps : sizeof(T) == sizeof(float) ? 1.0 / (1 << 23) : 1.0 / (1LL << 52);
}

// Moves `old` towards the newly measured value.
template <class T>
PYOPTIM_FN T moved_towards(T old, double fresh, double now) {
    return T(double(old) + fresh * (now - double(old)));
}

// The factor that multiplies the direction of n elements, from the sums of squares of the direction and the
// parameter.
PYOPTIM_FN double adafactor_rate(const Adafactor& c, double n, double param, double direction) {
    const double root = square_root(n);
    const double size = square_root(param) / root, length = square_root(direction) / (root * c.threshold);
    return c.rate * (size > c.smallest ? size : c.smallest) / (length > 1 ? length : 1);  // NaN is neither
}

}  // namespace pyoptim
