// Layers as a model's file describes them.
#pragma once

#include <string>
#include <vector>

#include "pyoptim/network.hpp"

namespace pyoptim::core {

std::vector<Layer> layers_from(const std::string& json);  // throws std::runtime_error

}  // namespace pyoptim::core
