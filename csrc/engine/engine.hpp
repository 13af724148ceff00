// The training engine: a chain of layers, its loss and its optimizer step, run over many mini-batches
// without an allocation. Memory of parameters, gradients and states is the caller's; each layer kind is
// one case of `forward` and one of `backward` in engine.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/kernels.hpp"
#include "formulas/random.hpp"
#include "layers/dense.hpp"
#include "layers/penalty.hpp"
#include "optim/stepper.hpp"
#include "pyoptim/optimizer.hpp"

namespace pyoptim::core {

enum class LayerKind {
    dense,
    activation,
    batch_norm,
    layer_norm,
    rescale,
    dropout,
    gaussian_noise,
    residual
};

// A layer with the addresses of its arrays; null where it has none.
template <class T>
struct LayerView {
    LayerKind kind = LayerKind::dense;
    std::ptrdiff_t in = 0, out = 0;  // elements of an example
    cpu::Activation activation = cpu::Activation::identity;
    double a = 0, b = 0;  // activation: its parameters
    T *weight = nullptr, *bias = nullptr, *dweight = nullptr, *dbias = nullptr;
    bool trainable = true;  // without, there are no gradients, and batch_norm takes running statistics

    // batch_norm: of `in` elements, `channels` times space; layer_norm: rows of `channels`
    std::ptrdiff_t channels = 0;
    double eps = 0, momentum = 0;  // momentum < 0: the cumulative mean
    bool unbiased = true;
    T *running_mean = nullptr, *running_var = nullptr;
    std::int64_t* tracked = nullptr;

    T scale = 1, shift = 0;  // rescale

    double amount = 0;  // dropout: the drop probability; gaussian_noise: the standard deviation
    std::int64_t *seed = nullptr, *step = nullptr;  // of them: a step is a training pass

    std::size_t begin = 0;  // residual: the layer whose input is added, where the block begins that ends here
};

enum class LossKind { cross_entropy, kl_divergence, pointwise };

template <class T>
struct LossView {
    LossKind kind;
    cpu::Pointwise<T> pointwise;  // which
    const T* class_weight;        // of cross_entropy; or null
    double smoothing;             // likewise
    double temperature;           // of kl_divergence

    static LossView of(LossKind kind) {
        return {kind, {cpu::PointwiseKind::squared, T(1), nullptr}, nullptr, 0, 1};
    }
};

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
    bool keep_gradients = false;  // where they lie; else those of dense weights may be 0 after a run
};

// What ran: adds up over calls, but for `wrong`.
struct Outcome {
    std::size_t steps = 0, skipped = 0;
    std::ptrdiff_t wrong = -1;  // the array whose gradient is not finite, where that ended the run
    double loss = 0;            // the sum over examples
    std::size_t correct = 0;
};

template <class T>
class Engine {
  public:
    // No batch will be larger than `capacity`.
    Engine(std::vector<LayerView<T>> layers, const LossView<T>& loss, std::size_t capacity);

    void clear();  // of what add() added
    // `array` is updated with the gradient at `gradient`. coefficients: where its row begins.
    void add(const typename Stepper<T>::Array& array, const T* gradient);

    void set_penalty(Penalized<T> penalty) { penalty_ = std::move(penalty); }
    void set_noise(const WeightNoise<T>&);

    // Trains on the examples [begin, end) of the order, in batches. rows: the coefficients of each step,
    // `row` elements each, with the factor 1 on the gradient.
    void train(const Examples<T>&, std::size_t begin, std::size_t end, std::size_t batch, const T* rows,
               std::size_t row, const StepOptions&, Outcome&);

    // Outputs for n <= capacity examples, in evaluation.
    const T* predict(const T* x, std::size_t n);

    std::size_t inputs() const { return static_cast<std::size_t>(layers_.front().in); }
    std::size_t outputs() const { return static_cast<std::size_t>(layers_.back().out); }
    std::size_t capacity() const { return capacity_; }
    std::size_t arrays() const { return gradients_.size(); }

  private:
    const T* gather(const Examples<T>&, std::size_t begin, std::size_t n);
    void forward(const T* x, std::size_t n, bool training);
    void backward(const T* x, std::size_t n, bool fused);
    double loss(const Examples<T>&, std::size_t begin, std::size_t n, Outcome&);
    bool update(const T* row, std::size_t length, const StepOptions&, Outcome&);
    void norm_forward(std::size_t i, const T* x, std::size_t n, bool training);

    std::vector<LayerView<T>> layers_;
    LossView<T> loss_;
    std::size_t capacity_;
    std::size_t first_trainable_;
    std::vector<std::vector<T>> outputs_;                  // of each layer
    std::vector<std::vector<T>> mean_, inv_std_, unused_;  // of each normalisation
    std::vector<std::vector<T>> shortcut_;                 // of each residual: the gradient of its output
    std::vector<std::vector<std::size_t>> rejoined_;       // by layer: the residuals whose block begins there
    std::vector<T> input_, targets_, weight_, gradient_, other_gradient_;
    std::vector<std::int64_t> labels_;
    std::vector<bool> of_this_batch_;
    bool training_ = false;  // the last forward
    Stepper<T> stepper_;
    std::vector<const T*> gradients_;

    Penalized<T> penalty_{};
    WeightNoise<T> noise_{};
    std::vector<T> kept_;  // the parameters without noise

    // Gradient and step at once: the weights of dense layers, and the rest of what add() added.
    std::vector<typename Stepper<T>::Array> weights_;  // by layer; empty where it is among the rest
    Stepper<T> rest_;
    std::vector<const T*> rest_gradients_;
    std::vector<std::vector<T>> dz_;  // of dense layers
    std::vector<DenseUpdate<T>> updates_;
    bool zeroed_ = false;     // the gradients that are not written
    std::vector<T> clipped_;  // a row of coefficients
};

}  // namespace pyoptim::core
