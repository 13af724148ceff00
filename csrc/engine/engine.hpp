// The training engine: a chain of layers, its loss and its optimizer step, run over many mini-batches
// without an allocation. Memory of parameters, gradients and states is the caller's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "engine/chain.hpp"
#include "engine/loss.hpp"
#include "formulas/random.hpp"
#include "layers/dense.hpp"
#include "layers/penalty.hpp"
#include "optim/stepper.hpp"
#include "pyoptim/optimizer.hpp"

namespace pyoptim::core {

// Examples in rows: x holds T, or bytes. Targets are labels (of cross-entropy) or (examples, outputs).
template <class T>
struct Examples {
    const T* x;
    const std::uint8_t* bytes;  // instead of x
    const std::int64_t* labels;
    const T* targets;
    const std::int64_t* order;  // which example comes when; null: as they lie
    const T* weight;            // of each example in the loss, or null
};

// Normal noise on the parameters while a gradient is taken.
template <class T>
struct WeightNoise {
    T* parameters;
    std::size_t size;  // 0: none
    double deviation;
    RandomStream stream;  // of the next step
};

struct StepOptions {
    double max_grad_norm = 0;  // 0: gradients are not clipped
    NonFinite nonfinite = NonFinite::ignore;
    bool keep_gradients = false;  // where they lie; else fusible ones may be 0 after a run
};

// The totals of what ran, which add up over calls, except for `wrong`.
struct Outcome {
    std::size_t steps = 0, skipped = 0;
    std::ptrdiff_t wrong = -1;  // the array whose gradient is not finite, where that ended the run
    double loss = 0;            // the sum over examples
    std::size_t correct = 0;
};

template <class T>
class Engine {
  public:
    // No batch may be larger than `capacity`. The objects that the views refer to must outlive the engine.
    // Throws std::invalid_argument for a loss that does not suit the last layer.
    Engine(std::vector<LayerView<T>> layers, const Loss& loss, std::size_t capacity);

    void clear();  // removes the arrays that add() added
    // Adds an array to update with the gradient at `gradient`; its `coefficients` is the offset of its row.
    void add(const typename Stepper<T>::Array& array, const T* gradient);

    void set_penalty(Penalized<T> penalty) { penalty_ = std::move(penalty); }
    void set_noise(const WeightNoise<T>&);

    // Trains on the examples [begin, end) of the order, in batches. `rows` holds the coefficients of each
    // step, `row` elements per step, with a factor of 1 on the gradient.
    void train(const Examples<T>&, std::size_t begin, std::size_t end, std::size_t batch, const T* rows,
               std::size_t row, const StepOptions&, Outcome&);

    // Returns the outputs for n <= capacity examples, in evaluation mode. The engine owns the memory.
    const T* predict(const T* x, std::size_t n);

    std::size_t inputs() const { return static_cast<std::size_t>(layers_.front().in.size); }
    std::size_t outputs() const { return static_cast<std::size_t>(layers_.back().out.size); }
    std::size_t capacity() const { return capacity_; }
    std::size_t arrays() const { return gradients_.size(); }

  private:
    const T* gather(const Examples<T>&, std::size_t begin, std::size_t n);
    void forward(const T* x, std::size_t n, bool training);
    void backward(const T* x, std::size_t n, bool fused);
    double loss(const Examples<T>&, std::size_t begin, std::size_t n, Outcome&);
    bool update(const T* row, std::size_t length, const StepOptions&, Outcome&);

    std::vector<LayerView<T>> layers_;
    std::vector<std::unique_ptr<CompiledLayer<T>>> compiled_;  // by layer; null: a Residual
    std::unique_ptr<CompiledLoss<T>> compiled_loss_;
    bool classification_;  // whether the loss is one of classes, of which the right ones are counted
    std::size_t capacity_;
    std::size_t first_trainable_;
    std::vector<std::vector<T>> outputs_;             // by layer
    std::vector<std::vector<T>> shortcut_;            // by Residual: the gradient of its output
    std::vector<std::vector<std::size_t>> rejoined_;  // by layer: the Residuals whose block begins with it
    std::vector<T> input_, targets_, weight_, gradient_, other_gradient_;
    std::vector<std::int64_t> labels_;
    Stepper<T> stepper_;
    std::vector<const T*> gradients_;

    Penalized<T> penalty_{};
    WeightNoise<T> noise_{};
    std::vector<T> kept_;  // the parameters without noise

    // Fused updates compute a gradient and its step at once. They serve the weights of layers with a fusible
    // gradient; rest_ updates the other arrays that add() added.
    std::vector<typename Stepper<T>::Array> weights_;  // by layer; empty where it is among the rest
    Stepper<T> rest_;
    std::vector<const T*> rest_gradients_;
    std::vector<DenseUpdate<T>> updates_;
    bool zeroed_ = false;     // whether the gradients that fused updates skip are 0
    std::vector<T> clipped_;  // a row of coefficients
};

}  // namespace pyoptim::core
