// Layers and losses as JSON: the form in which files store them and Python passes them to the engine.
#pragma once

#include <string>
#include <vector>

#include "api/json.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim::core {

// Each function reads descriptions like {"type": "Dropout", "p": 0.3}; a missing option has its default. They
// throw std::runtime_error for unknown types and options.
std::vector<Layer> layers_from(const Json& list);
std::vector<Layer> layers_from(const std::string& json);
Loss loss_from(const std::string& json);

std::string described(const std::vector<Layer>& layers);

}  // namespace pyoptim::core
