// The description of a kind of loss: one LossEntry, and one class that computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/options.hpp"
#include "formulas/losses.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim::core {

// The outputs of a batch (rows, columns) and their expected values: labels (rows), or targets (rows,
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

template <class>
using LossOf = Loss;
using LossMakers = Makers<CompiledLoss, LossOf>;

struct LossEntry {
    const char* type;  // the Python class
    std::vector<Option<Loss>> options;
    // Make the object that computes a loss, from its description and the number of output columns.
    LossMakers makers;
    // Of a loss that a formula of single outputs computes. Its options are the formula's parameter: a number,
    // or one for each output column.
    PointwiseKind formula = PointwiseKind::count;
    bool classification = false;  // whether labels will do for targets, and the right ones are counted
    // The range of valid targets.
    Interval targets = kFinite;
    // Whether only the two ends of that range are valid targets.
    bool only_ends = false;
    // Throws std::invalid_argument unless the loss suits this many outputs.
    void (*check)(const Loss&, std::size_t outputs) = [](const Loss&, std::size_t) {};
};

// Every kind of loss.
const std::vector<LossEntry>& loss_entries();
// The entry of a type. Throws std::invalid_argument for an unknown type.
const LossEntry& loss_entry(const std::string& type);

// Creates the loss for this number of output columns. Throws std::invalid_argument for invalid options.
template <class T>
std::unique_ptr<CompiledLoss<T>> make_loss(const Loss&, std::size_t outputs);

}  // namespace pyoptim::core
