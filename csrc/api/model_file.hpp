// The files of models, for whoever has memory of their arrays.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "engine/chain.hpp"

namespace pyoptim::core {

// Reads a model's file, or its bytes. `make` is given its layers, and returns a chain of them that has memory
// for all arrays. Throws std::runtime_error, which names the file, as Network::load does.
template <class T>
using MakeModel = std::function<Chain<T>&(const std::vector<Layer>&)>;
template <class T>
void read_model(const std::string& path, const MakeModel<T>& make);
template <class T>
void read_model(const void* bytes, std::size_t size, const MakeModel<T>& make);

// Whether a file, or its bytes, says that its arrays are float64. False for what is no model.
bool is_of_float64(const std::string& path);
bool is_of_float64(const void* bytes, std::size_t size);

}  // namespace pyoptim::core
