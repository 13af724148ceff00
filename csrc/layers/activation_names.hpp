// Activations by the names that Python and saved models use.
#pragma once

#include <stdexcept>
#include <string>

#include "formulas/activations.hpp"

namespace pyoptim::core {

inline constexpr const char* kActivationNames[] = {
#define X(name) #name,
    PYOPTIM_FOR_EACH_ACTIVATION(X)
#undef X
};

// The activation of this name. Throws std::invalid_argument if there is none.
inline Activation any_activation_named(const std::string& name) {
    for (int i = 0; i < static_cast<int>(Activation::count); ++i) {
        if (name == kActivationNames[i]) return static_cast<Activation>(i);
    }
    throw std::invalid_argument("there is no activation named '" + name + "'");
}

// The activations that other layers apply themselves.
inline constexpr Activation kFusedActivations[] = {Activation::relu, Activation::sigmoid, Activation::tanh};

// One of the fused activations; "" is the identity. Throws std::invalid_argument.
inline Activation activation_named(const std::string& name) {
    if (name.empty()) return Activation::identity;
    for (const Activation fused : kFusedActivations) {
        if (name == kActivationNames[static_cast<int>(fused)]) return fused;
    }
    throw std::invalid_argument("there is no activation named '" + name + "'");
}

}  // namespace pyoptim::core
