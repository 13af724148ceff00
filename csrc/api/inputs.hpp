// What is refused in inputs.
#pragma once

#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>

#include "runtime/reduce.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim::core {

// Names the first element of x (examples, inputs) that is not finite; there is one.
template <class T>
[[noreturn]] void refuse_inputs(const T* x, std::size_t inputs) {
    std::size_t i = 0;
    while (std::isfinite(x[i])) ++i;
    throw std::invalid_argument("x[" + std::to_string(i / inputs) + ", " + std::to_string(i % inputs) +
                                "] is " +
                                (std::isnan(x[i]) ? "nan"
                                 : x[i] < 0       ? "-inf"
                                                  : "inf") +
                                ", expected finite values");
}

// Refuses inputs that are not finite: a NaN need not reach the outputs, where it would be noticed.
template <class T>
void check_inputs(const T* x, std::size_t examples, std::size_t inputs) {
    if (!all_finite(checked_product("examples", examples, inputs), x)) refuse_inputs(x, inputs);
}

}  // namespace pyoptim::core
