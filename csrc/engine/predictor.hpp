// Predictions: the outputs of a chain of layers in evaluation mode.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/layer.hpp"
#include "runtime/scratch.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim::core {

template <class T>
class Predictor {
  public:
    // What the views refer to must outlive the predictor. Their values may change between predictions.
    explicit Predictor(std::vector<LayerView<T>> layers);

    // Some examples of a batch: n of them, in x or, if x is null, in `bytes`. Outputs (n, outputs) go to y.
    struct Batch {
        std::size_t n;
        const T* x;
        const std::uint8_t* bytes;
        T* y;
    };
    // Writes the outputs of examples of a batch of `whole`, with the bits of the layers one by one on all of
    // that batch. A layer that takes statistics of the batch needs it in one call. Returns false, with y
    // unspecified, if an element of x is not finite; unless `looks` it may return true then.
    bool predict(const Batch&, std::size_t whole, bool looks = false);
    bool needs_whole() const { return needs_whole_; }

    // For parameters that stay as they are: freeze() reads them once, for batches of up to `most` examples,
    // and predict_frozen() computes such a batch on this thread alone, in memory for room(rows) elements,
    // without an allocation. Several threads may call it at once. Layers must not need whole batches.
    void freeze(std::size_t most);
    void predict_frozen(const Batch&, T* memory, std::size_t rows) const;
    std::size_t room(std::size_t rows) const { return checked_product("an example", total_, rows); }
    // How many examples at a time keep the caches warm.
    std::size_t block() const;

    // Of one example: its multiply-adds, and the elements that its widest layer reads and writes.
    std::size_t work() const { return weights_ + widest_; }

    std::size_t inputs() const { return static_cast<std::size_t>(layers_.front().in.size); }
    std::size_t outputs() const { return static_cast<std::size_t>(layers_.back().out.size); }

  private:
    // A step of the forward pass: y = layer(x), or y = shortcut + x if the layer has a block. The numbers are
    // of places, where the output of a layer is kept until nobody reads it any more.
    struct Step {
        std::size_t layer;
        int x, shortcut, y;
        std::size_t width;  // the elements of an example in y
    };
    // Memory of all places for so many examples.
    struct Room {
        T* memory;
        std::size_t rows;
    };
    void make_layers(std::size_t capacity);
    // `whole`: the number of examples of the batch, or 0 for a pass by layers.
    bool run(const Batch&, const Room&, std::size_t whole, bool looks) const;
    bool run_blocks(const Batch&, std::size_t whole, int most, bool looks);

    std::vector<LayerView<T>> layers_;
    std::vector<std::unique_ptr<CompiledLayer<T>>>
        compiled_;              // by layer; null if it has a block or only trains
    std::size_t capacity_ = 0;  // the largest batch that they take as a whole
    std::vector<Step> steps_;
    std::vector<std::size_t> starts_;  // where the places are in memory for one example; the input is at 0
    std::size_t total_ = 0;            // the elements of that memory
    bool needs_whole_ = false;         // whether a layer takes statistics of the batch
    std::size_t weights_ = 0;          // the number of parameters
    std::size_t widest_ = 0;           // the most elements of an example in a layer's input and output
    Memory<T> memory_;
};

}  // namespace pyoptim::core
