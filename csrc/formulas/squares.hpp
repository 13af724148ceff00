// Sums of squares in double whose root is a double although they are not: of elements beyond 1e154, whose
// squares are infinite, or below 1e-154, whose squares have lost bits or are 0. Such a sum is taken anew, of
// scaled elements, and kept as minus its root. Includes nothing, like rules.hpp.
#pragma once

#include "formulas/rules.hpp"

namespace pyoptim {

// Whether a sum of squares, as it came, has lost nothing. NaN has not, and is the sum.
PYOPTIM_FN bool is_sound(double sum) { return !(sum < 0x1p-900) && !(sum > 0x1p900); }

// What the elements are multiplied by if it has.
PYOPTIM_FN double square_scale(double sum) { return sum < 1 ? 0x1p600 : 0x1p-600; }

// What is kept of the sum of the squares of elements that were multiplied by `scale`.
PYOPTIM_FN double kept_squares(double sum, double scale) { return sum > 0 ? -(square_root(sum) / scale) : 0; }

// The root, and the sum of squares as it would have come, of what is kept.
PYOPTIM_FN double root_of(double kept) { return kept < 0 ? -kept : square_root(kept); }
PYOPTIM_FN double squares_of(double kept) { return kept < 0 ? kept * kept : kept; }

// A term of a sum of what is kept, scaled if `scale` is not 1.
PYOPTIM_FN double term_of(double kept, double scale) {
    if (scale == 1) return squares_of(kept);
    const double root = root_of(kept) * scale;
    return root * root;
}

}  // namespace pyoptim
