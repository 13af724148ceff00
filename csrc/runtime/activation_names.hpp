// Activations by the names that Python and saved models use.
#pragma once

#include <stdexcept>
#include <string>

#include "cpu/kernels.hpp"

namespace pyoptim::runtime {

// "" is the identity. Throws std::invalid_argument.
inline cpu::Activation activation_named(const std::string& name) {
    if (name.empty()) return cpu::Activation::identity;
    if (name == "relu") return cpu::Activation::relu;
    if (name == "sigmoid") return cpu::Activation::sigmoid;
    if (name == "tanh") return cpu::Activation::tanh;
    throw std::invalid_argument("there is no activation named '" + name + "'");
}

}  // namespace pyoptim::runtime
