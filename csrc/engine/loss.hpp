// The description of a kind of loss: one LossEntry, and one class that computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/options.hpp"
#include "formulas/losses.hpp"
#include "layers/losses.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim::core {

// The outputs of a batch and what they should be: labels or, if these are null, targets.
template <class T>
struct LossBatch {
    std::size_t rows, columns;
    const T* output;             // (rows, columns)
    const std::int64_t* labels;  // (rows)
    const T* targets;            // (rows, columns)
    const T* weight;             // the weight of each example (rows), or null
    T* gradient;                 // receives the gradient of the output (rows, columns)
    // What CompiledLoss::divisor() returns for the batch of which these are some rows, or all of them.
    double divisor = 0;
};

template <class T>
class CompiledLoss {
  public:
    virtual ~CompiledLoss() = default;
    // Returns the mean loss of the batch, and writes the gradient.
    virtual double compute(const LossBatch<T>&) const = 0;
    // Returns what the sum of the losses of the batch is divided by for that mean. The mean of several
    // batches is the sum of their losses, each times its divisor, divided by the sum of the divisors.
    virtual double divisor(const LossBatch<T>& of) const { return static_cast<double>(of.rows); }
    // What compute() does, for some rows of a batch, on this thread alone: sum() returns the sum of their
    // losses and writes their gradient, which is that of the mean over the batch; mean() returns that mean by
    // the sum over the batch.
    virtual double sum(const LossBatch<T>&) const = 0;
    virtual double mean(const LossBatch<T>& of, double sum) const { return mean_of(sum, of.divisor); }
};

struct LossEntry {
    const char* type;  // the name of the Python class
    std::vector<Option<Loss>> options;
    // The formula of a loss of single outputs; its options are then the parameter of the formula: a number,
    // or a number for each output column. The value `count` stands for all other losses.
    PointwiseKind formula = PointwiseKind::count;
    // Whether the loss takes labels as well as targets, so that the engine counts the examples it gets right.
    bool classification = false;
    Interval targets = kFinite;  // the range of valid targets
    bool only_ends = false;      // whether only the two ends of that range are valid
    // Throws std::invalid_argument unless the loss suits this many outputs.
    void (*check)(const Loss&, std::size_t outputs) = [](const Loss&, std::size_t) {};
};

// The table of all kinds of losses.
const std::vector<LossEntry>& loss_entries();
// Returns the entry of a type. Throws std::invalid_argument for an unknown type.
const LossEntry& loss_entry(const std::string& type);

// Creates the loss for this number of output columns. Throws std::invalid_argument for invalid options.
template <class T>
std::unique_ptr<CompiledLoss<T>> make_loss(const Loss&, std::size_t outputs);

}  // namespace pyoptim::core
