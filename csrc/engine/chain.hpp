// The layers of a network in order, built from what the C++ API, a file or Python describes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "engine/layer.hpp"

namespace pyoptim::core {

// Returns the shape of an example, as the layers state it. Throws std::invalid_argument if none does.
Width inputs_of(const std::vector<Layer>& layers);

template <class T>
class Chain {
  public:
    // Throws std::invalid_argument for layers that cannot follow each other, or if no layer has parameters.
    Chain(std::vector<Layer> layers, const Width& input);
    Chain(const Chain&) = delete;  // views refer to its layers
    Chain& operator=(const Chain&) = delete;

    // Gives the layers their parameters and gradients, parameter_count() elements of each: the arrays of a
    // layer follow those of the layer before. A chain that only predicts needs no gradients. The caller owns
    // this memory, keeps it for as long as the chain or an engine of its views lives, and sets the memory of
    // buffers and counters in views() itself.
    void bind(T* parameters, T* gradients);

    std::vector<Layer>& layers() { return layers_; }
    const std::vector<Layer>& layers() const { return layers_; }
    std::vector<LayerView<T>>& views() { return views_; }
    const std::vector<LayerView<T>>& views() const { return views_; }
    std::size_t parameter_count() const { return parameters_; }

  private:
    void add(Layer& layer, const std::string& name, Width& width);

    std::vector<Layer> layers_;
    // A view of each layer that the engine computes, in the order of the forward pass: the layers of a block
    // come before the layer that has the block. A layer that changes no value has no view.
    std::vector<LayerView<T>> views_;
    std::size_t parameters_ = 0;
};

// Freezes a layer and the layers in its block, or thaws them.
void set_trainable(Layer& layer, bool trainable);

}  // namespace pyoptim::core
