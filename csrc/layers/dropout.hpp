// Dropout and Gaussian noise on raw pointers, over threads.
#pragma once

#include <cstddef>

#include "formulas/random.hpp"

namespace pyoptim::core {

// Drops each element with probability p, in [0, 1), and divides the others by 1 - p. The same stream drops
// the same elements, so this function is also the backward pass. y may be x.
template <class T>
void dropout(const RandomStream&, double p, std::size_t n, const T* x, T* y);

// Adds normal noise of this standard deviation; y may be x.
template <class T>
void gaussian_noise(const RandomStream&, double deviation, std::size_t n, const T* x, T* y);

}  // namespace pyoptim::core
