// Activations by the names that Python and saved models use.
#pragma once

#include <stdexcept>
#include <string>

#include "cpu/kernels.hpp"

namespace pyoptim::runtime {

inline constexpr const char* kActivationNames[] = {
#define X(name) #name,
    PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
};

// Throws std::invalid_argument.
inline Activation any_activation_named(const std::string& name) {
    for (int i = 0; i < static_cast<int>(Activation::count); ++i) {
        if (name == kActivationNames[i]) return static_cast<Activation>(i);
    }
    throw std::invalid_argument("there is no activation named '" + name + "'");
}

// Those that other layers apply themselves; "" is the identity. Throws std::invalid_argument.
inline cpu::Activation activation_named(const std::string& name) {
    if (name.empty()) return cpu::Activation::identity;
    if (name == "relu") return cpu::Activation::relu;
    if (name == "sigmoid") return cpu::Activation::sigmoid;
    if (name == "tanh") return cpu::Activation::tanh;
    throw std::invalid_argument("there is no activation named '" + name + "'");
}

}  // namespace pyoptim::runtime
