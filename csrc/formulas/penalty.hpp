// The penalty that training adds to the loss to keep weights small, defined once: the kernels of the CPU, of
// CUDA and of NVRTC compile these lines. `penalty` of pyoptim/backends/reference is the same in Python.
#pragma once

#include "formulas/rules.hpp"

namespace pyoptim {

// l2/2 sum(w^2) + l1 sum(abs(w)). A term whose factor is 0 is left out: 0 times infinity would be NaN.
struct Penalty {
    double l2, l1;

    // Returns g plus the gradient of the penalty of one weight; elementwise, so the bits are the same
    // everywhere.
    template <class T>
    PYOPTIM_FN T gradient(T w, T g) const {
        if (l2 != 0) g = g + T(l2) * w;
        if (l1 != 0) g = g + T(l1) * sign(w);
        return g;
    }
    // Returns the penalty of weights whose squares and whose absolute values sum up to these.
    PYOPTIM_FN double value(double squares, double sizes) const {
        const double of_squares = l2 != 0 ? l2 / 2 * squares : 0;
        return l1 != 0 ? of_squares + l1 * sizes : of_squares;
    }
};

}  // namespace pyoptim
