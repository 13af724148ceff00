// The layers of a network in order. A chain is built from the layers that the C++ API, a file or Python
// describes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "engine/layer.hpp"

namespace pyoptim::core {

// The shape of an example, as stated by the layers. Throws std::invalid_argument if no layer states it.
Width inputs_of(const std::vector<Layer>& layers);

template <class T>
class Chain {
  public:
    // Throws std::invalid_argument for layers that cannot follow each other, or if no layer has parameters.
    Chain(std::vector<Layer> layers, const Width& input);
    Chain(const Chain&) = delete;  // views refer to its layers
    Chain& operator=(const Chain&) = delete;

    // Assigns the memory of parameters and gradients: each layer's arrays follow those of the layer before.
    // The caller owns both.
    void bind(T* parameters, T* gradients);

    std::vector<Layer>& layers() { return layers_; }
    const std::vector<Layer>& layers() const { return layers_; }
    std::vector<LayerView<T>>& views() { return views_; }
    const std::vector<LayerView<T>>& views() const { return views_; }
    std::size_t parameter_count() const { return parameters_; }

  private:
    void add(Layer& layer, const std::string& name, Width& width);

    std::vector<Layer> layers_;
    std::vector<LayerView<T>>
        views_;  // of what the engine computes: blocks before their Residual, no Flatten
    std::size_t parameters_ = 0;
};

// Freezes a layer and the layers in its block, or thaws them.
void set_trainable(Layer& layer, bool trainable);

}  // namespace pyoptim::core
