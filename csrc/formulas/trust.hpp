// The rates of LARS and LAMB, which follow from the norms of an array. Includes nothing, like rules.hpp.
#pragma once

#include "formulas/rules.hpp"

namespace pyoptim {

// The coefficients of a group, beside those of its rule.
struct Trust {
    double lr, weight_decay;
    double grad_scale, trust, eps;  // LARS only
};

// `other` is the sum of squares of the gradient (LARS) or of the direction (LAMB: `directed`).
PYOPTIM_FN double trust_rate(const Trust& c, bool directed, double param, double other) {
    const double p = square_root(param);
    const double q = (directed ? 1 : c.grad_scale) * square_root(other);
    if (!(p > 0 && q > 0)) return c.lr;
    return directed ? c.lr * p / q : c.lr * (c.trust * p / (q + c.weight_decay * p + c.eps));
}

}  // namespace pyoptim
