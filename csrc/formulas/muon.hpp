// The coefficients and scalars of Muon, the same on processors and GPUs. Includes nothing, like rules.hpp.
#pragma once

#include "formulas/squares.hpp"

namespace pyoptim {

// A group's row of coefficients, in double: Common's, those of the rule that takes the gradient into the
// momentum, then
struct MuonCoefficients {
    double scale, weight_decay, param_scale;  // the decay is 0: it is in param_scale
    double momentum[4];                       // the last is 0 where the rule has three
    double lr;
    double like_adamw;           // 1: the rate has the size of AdamW's
    double steps, eps, a, b, c;  // of the iteration
};
constexpr int kMuonLength = sizeof(MuonCoefficients) / sizeof(double);

PYOPTIM_FN double muon_rate(const MuonCoefficients& c, double rows, double cols) {
    if (c.like_adamw != 0) return c.lr * 0.2 * square_root(rows > cols ? rows : cols);
    const double ratio = rows / (cols > 1 ? cols : 1);
    return c.lr * square_root(ratio > 1 ? ratio : 1);
}

// The divisor applied first to a matrix with this sum of squares, which is as squares.hpp keeps it; NaN for
// NaN.
PYOPTIM_FN double muon_divisor(const MuonCoefficients& c, double sum_of_squares) {
    const double norm = root_of(sum_of_squares);
    return norm < c.eps ? c.eps : norm;
}

}  // namespace pyoptim
