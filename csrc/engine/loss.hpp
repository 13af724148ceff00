// What a kind of loss says about itself: one LossEntry for each kind, and one class that computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/options.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim::core {

// The outputs of a batch (rows, columns) and what they should be: labels (rows), or else targets (rows,
// columns).
template <class T>
struct LossBatch {
    std::size_t rows, columns;
    const T* output;
    const std::int64_t* labels;
    const T* targets;
    const T* weight;  // of each example, or null
    T* gradient;      // of the output; it is written
};

template <class T>
class CompiledLoss {
  public:
    virtual ~CompiledLoss() = default;
    virtual double compute(const LossBatch<T>&) const = 0;
};

struct LossEntry {
    const char* type;  // the Python class
    std::vector<Option<Loss>> options;
    bool classification = false;  // whether labels will do for targets, and the right ones are counted
    // Which targets make sense.
    Interval targets = kFinite;
    // Whether targets are at one of the ends of that range.
    bool only_ends = false;
    // Throws std::invalid_argument unless the loss suits this many outputs.
    void (*check)(const Loss&, std::size_t outputs) = [](const Loss&, std::size_t) {};
    std::unique_ptr<CompiledLoss<float>> (*make_float)(const Loss&, std::size_t outputs) = nullptr;
    std::unique_ptr<CompiledLoss<double>> (*make_double)(const Loss&, std::size_t outputs) = nullptr;
};

// Every kind of loss.
const std::vector<LossEntry>& loss_entries();
// Throws std::invalid_argument for a type that there is not.
const LossEntry& loss_entry(const std::string& type);

// The loss over outputs of this number of columns. Throws std::invalid_argument for one that cannot be.
template <class T>
std::unique_ptr<CompiledLoss<T>> make_loss(const Loss&, std::size_t outputs);

}  // namespace pyoptim::core
