// Dense layers in 8 bits over threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.hpp"

namespace pyoptim::core {

// Computes `rows` rows of y. x is (rows, in) with in <= layer.k: its rows are brought to 8 bits, as
// x * inverse + zero, and padded with zeros, for which layer.x need not be set, nor layer.vnni.
void quantized_dense(std::size_t rows, std::size_t in, const float* x, float inverse, float zero,
                     cpu::QuantizedDense layer);

}  // namespace pyoptim::core
