// Layers and losses as JSON: what a model's file holds, and what Python says to the engine.
#pragma once

#include <string>
#include <vector>

#include "api/json.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim::core {

// Each reads descriptions like {"type": "Dropout", "p": 0.3}; an option that is missing has its default.
// They throw std::runtime_error for what is not of ours.
std::vector<Layer> layers_from(const Json& list);
std::vector<Layer> layers_from(const std::string& json);
Loss loss_from(const std::string& json);

std::string described(const std::vector<Layer>& layers);

}  // namespace pyoptim::core
