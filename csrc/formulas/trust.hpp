// The rates of LARS and LAMB, which follow from the norms of an array. Includes nothing, like rules.hpp.
#pragma once

#include "formulas/squares.hpp"

namespace pyoptim {

// The coefficients of a group, beside those of its rule.
struct Trust {
    double lr, weight_decay;
    double grad_scale, trust, eps;  // LARS only
};

// `other` is the sum of squares of the gradient (LARS) or of the direction (LAMB: `directed`); both sums are
// as squares.hpp keeps them.
PYOPTIM_FN double trust_rate(const Trust& c, bool directed, double param, double other) {
    const double p = root_of(param);
    const double q = (directed ? 1 : c.grad_scale) * root_of(other);
    if (!(p > 0 && q > 0)) return c.lr;
    return directed ? c.lr * p / q : c.lr * (c.trust * p / (q + c.weight_decay * p + c.eps));
}

}  // namespace pyoptim
