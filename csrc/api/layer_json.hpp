// Layers and losses as JSON: the form in which files store them and Python passes them to the engine.
#pragma once

#include <string>
#include <vector>

#include "api/json.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim::core {

// These functions read descriptions like {"type": "Dropout", "p": 0.3}. An option that is missing has its
// default. They throw std::runtime_error for JSON that is not valid, for unknown types of layers and for
// options that are unknown or not valid, and loss_from throws std::invalid_argument for an unknown type of
// loss. `with_init` allows the init of a Dense too, which files do not have.
std::vector<Layer> layers_from(const Json& list, bool with_init = false);
std::vector<Layer> layers_from(const std::string& json, bool with_init = false);
Loss loss_from(const std::string& json);

// Returns the JSON that layers_from reads.
std::string described(const std::vector<Layer>& layers);

}  // namespace pyoptim::core
