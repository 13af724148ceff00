// Layers and losses on raw pointers: the work is split over threads here, by shape alone, so that results
// do not depend on their number. Arrays are contiguous and row-major; nothing overlaps.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.hpp"

namespace pyoptim::runtime {

using cpu::Activation;

// Means over the batch (squared_error: over all elements); the gradient of the mean, unless null.
template <class T>
double softmax_cross_entropy(std::ptrdiff_t batch, std::ptrdiff_t classes, const T* logits,
                             const std::int64_t* labels, T* dlogits);
template <class T>
double squared_error(std::size_t n, const T* prediction, const T* target, T* dprediction);

}  // namespace pyoptim::runtime
