// The training engine: a chain of layers, its loss and its optimizer step, run over many mini-batches
// without an allocation. Memory of parameters, gradients and states is the caller's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "engine/chain.hpp"
#include "engine/loss.hpp"
#include "formulas/random.hpp"
#include "layers/dense.hpp"
#include "layers/penalty.hpp"
#include "layers/sparse.hpp"
#include "optim/stepper.hpp"
#include "pyoptim/optimizer.hpp"

namespace pyoptim::core {

// Examples to train on, one a row. The caller owns the memory.
template <class T>
struct Examples {
    const T* x;                  // the inputs (examples, inputs), or null
    const std::uint8_t* bytes;   // the inputs as bytes, if x is null
    const std::int64_t* labels;  // the class of each example, or null
    const T* targets;            // the expected outputs (examples, outputs), if labels is null
    const std::int64_t* order;   // the indices of the examples in the order of the training; null: 0, 1, 2, …
    const T* weight;             // the weight of each example in the loss, or null
    SparseRows<T> sparse;        // the inputs, if x and bytes are null
    std::size_t count = 0;       // of examples: the rows of `sparse`
};

// Normal noise that is added to the parameters while a gradient is taken, and then removed.
template <class T>
struct WeightNoise {
    T* parameters;        // of the whole network; the caller owns them
    std::size_t size;     // the number of parameters, or 0 for no noise
    double deviation;     // the standard deviation
    RandomStream stream;  // the random numbers of the next step
};

// What a mean loss is, if not the loss's own: the sum of factor * weight * loss over the examples, plus the
// penalty, both divided by the sum of the weights.
struct WeightedMean {
    bool wanted = false;
    double factor = 1;
};

// What a step that somebody else takes came to: see StepOptions::step.
enum class StepTaken { yes, skipped, refused };

// Replaces the gradients of a part of a batch, which lie where the layers write them, by those of the mean
// loss of the whole batch, of which other processes have the other parts. It receives the mean loss of the
// part and its divisor, and returns the mean loss of the whole batch. The gradients that it finds are those
// of the mean loss times the divisor: of the sum of the part's losses, 0 if the part is empty.
using Exchange = std::function<double(double loss, double divisor)>;

struct StepOptions {
    double max_grad_norm = 0;  // the norm to which gradients are scaled down; 0 leaves them as they are
    NonFinite nonfinite = NonFinite::ignore;
    // How far the parameters move along their gradients, the penalty's included, before the gradient of the
    // step is taken, at p + sharpness_aware * g / norm(g) (Foret et al. 2021, "SAM"); 0 takes the step by g.
    double sharpness_aware = 0;
    // Whether all gradients of the last step must be in memory after train(). Otherwise those of dense
    // weights may be 0 there, since fused updates do not write them. Where train() throws after some steps,
    // they are unspecified: they may lack the penalty.
    bool keep_gradients = false;
    // Takes each step instead of the engine, by the gradients that are in memory, or is null. One that it
    // skips or refuses is treated as one by gradients that are not finite.
    const std::function<StepTaken()>* step = nullptr;
    // Where the batch of each step ends in the order of the examples; empty for batches of one size. It is
    // for parts of batches whose other parts other processes have: only with an exchange a batch may be
    // empty.
    std::vector<std::int64_t> ends;
};

// How many of the n examples a network classifies right, by its outputs and by labels or, if these are null,
// by the largest of the targets.
template <class T>
std::size_t count_right(std::size_t n, std::size_t classes, const T* outputs, const std::int64_t* labels,
                        const T* targets);

// What train() measured on the batches of the steps that changed the parameters. A step that is left out, or
// that ends the run, adds to none of these sums.
struct Sums {
    double loss = 0;           // the losses of the batches, with the penalty, each times its divisor
    double divisor = 0;        // the divisors: what the losses of a batch are divided by for their mean
    std::size_t correct = 0;   // examples that were classified correctly
    std::size_t examples = 0;  // all examples of these batches
    double penalty = 0;        // the penalty's part of the sum of losses

    // The mean loss; 0 where no example has any weight, and NaN without examples.
    double mean_loss() const {
        if (examples == 0) return std::numeric_limits<double>::quiet_NaN();
        return divisor == 0 ? loss : loss / divisor;
    }
    double accuracy() const { return static_cast<double>(correct) / static_cast<double>(examples); }
    void add(const Sums& other) {
        loss += other.loss;
        penalty += other.penalty;
        divisor += other.divisor;
        correct += other.correct;
        examples += other.examples;
    }
};

// What train() did. Each call adds to the numbers of earlier calls, except for `wrong` and `last`.
struct Outcome {
    std::size_t steps = 0;      // steps that changed the parameters
    std::size_t skipped = 0;    // steps that were left out under NonFinite::skip
    std::ptrdiff_t wrong = -1;  // the index of the array whose gradient ended the run, or -1
    Sums sums;
    double last = 0;  // the mean loss of the last batch, be it counted or not
};

template <class T>
class Engine {
  public:
    // No batch may be larger than `capacity`. The objects that the views refer to must outlive the engine.
    // If `to_inputs`, backward passes go on through all layers to the gradient of the inputs. Without a loss
    // the engine is for pass_forward() and pass_backward() alone.
    // Throws std::invalid_argument for a loss that does not suit the last layer.
    Engine(std::vector<LayerView<T>> layers, const std::optional<Loss>& loss, std::size_t capacity,
           bool to_inputs = false);

    // Removes the arrays that add() added.
    void clear();
    // Adds an array that each step updates by the gradient at `gradient`, which is part of the gradients that
    // the layers write. Its `coefficients` is the offset of its row in those of a step.
    void add(const typename Stepper<T>::Array& array, const T* gradient);

    void set_penalty(Penalized<T> penalty) { penalty_ = std::move(penalty); }
    void set_noise(const WeightNoise<T>&);
    void set_mean(const WeightedMean& mean) { mean_ = mean; }
    // Lets each step exchange its gradients before the penalty is added. An empty function ends that.
    void set_exchange(Exchange exchange) { exchange_ = std::move(exchange); }

    // Trains on the examples [begin, end) of the order, in batches of `batch`, or of at most so many if the
    // options say where each ends. `rows` holds the coefficients of each step, `row` elements per step, with
    // a factor of 1 on the gradient. A step that is left out, or that ends the run, changes neither
    // parameters nor buffers nor counters. Throws std::invalid_argument for a label that is not a class,
    // before its step: labels are the caller's memory, which may change at any time. A step on whose way a
    // custom layer throws changes nothing either.
    void train(const Examples<T>&, std::size_t begin, std::size_t end, std::size_t batch, const T* rows,
               std::size_t row, const StepOptions&, Outcome&);

    // Measures the examples [begin, end) as one batch, of which no parameter and no buffer changes. Layers
    // compute as in training, but those that are random do nothing. The sums receive what train() adds to
    // them, without penalty. If `total` is not null, it receives the gradients of all parameters, which the
    // layers write to `gradients`: `size` numbers, each times the divisor of the batch, are added to it.
    // Throws as train() does.
    void measure(const Examples<T>&, std::size_t begin, std::size_t end, const T* gradients, double* total,
                 std::size_t size, Sums&);

    // The passes of a step whose loss somebody else computes. pass_forward() copies x and returns the
    // outputs, which stay until the next one; it computes as train() does or, unless `training`, in
    // evaluation. pass_backward() takes their gradient, writes those of all parameters, and returns that of
    // the inputs; the engine must be one that goes on to these. undo_pass() sets buffers and counters back to
    // what they were before the last pass_forward() in training, as one that throws does itself.
    const T* pass_forward(const T* x, std::size_t n, bool training);
    const T* pass_backward(const T* dy, std::size_t n);
    // take_undo() lets it do so for another engine of the same layers.
    void undo_pass() { restore_buffers(before_); }
    void take_undo(Engine& from) { before_ = std::move(from.before_); }

    std::size_t inputs() const { return static_cast<std::size_t>(layers_.front().in.size); }
    std::size_t outputs() const { return static_cast<std::size_t>(layers_.back().out.size); }
    std::size_t capacity() const { return capacity_; }
    std::size_t arrays() const { return gradients_.size(); }

  private:
    // Each works on the n examples of a batch, which begins at `begin` in the order of the training;
    // engine.cpp says what each returns.
    void reserve(const Examples<T>&);
    void make_room(std::size_t n);
    void take_labels(const Examples<T>&, std::size_t begin, std::size_t n);
    bool is_sparse(const Examples<T>&) const;
    void gather_sparse(const Examples<T>&, std::size_t begin, std::size_t n);
    bool gather_rows(const Examples<T>&, std::size_t begin, std::size_t end, T* to) const;
    const T* gather(const Examples<T>&, std::size_t begin, std::size_t n);
    void forward(const T* x, std::size_t n);
    T* backward(const T* x, std::size_t n, bool fused);
    void weigh(std::size_t n, bool given);
    LossBatch<T> expected(const Examples<T>&, std::size_t begin, std::size_t n);
    double loss(const Examples<T>&, std::size_t begin, std::size_t n, Sums&);
    // These are in pieces.cpp.
    double pass_pieces(const Examples<T>&, std::size_t begin, std::size_t n, const T* x, Sums&);
    void place_pieces(const Pieces&, std::size_t n);
    std::size_t pass_piece(const LossBatch<T>& piece, std::size_t n, const T* x, T* own, T* gradients,
                           std::size_t number);
    void add_gradients(const Pieces&, const T* gradients);
    void scale_gradient(std::size_t n, double divisor);
    void clear_gradients();
    double backpropagate(const Examples<T>&, std::size_t begin, std::size_t n, const T* x, bool fused, Sums&);
    double differentiate(const Examples<T>&, std::size_t begin, const T* x, std::size_t n, double rho,
                         bool fused, Sums&);
    bool update(const T* row, std::size_t length, const StepOptions&, Outcome&);
    double penalty_divisor() const;
    double penalize();
    bool penalty_is_decay() const;
    bool takes_decay(const T* row) const;
    double norm() const;
    void ascend(double distance, const Examples<T>&, std::size_t begin, const T* x, std::size_t n);
    void descend();

    std::vector<LayerView<T>> layers_;
    std::vector<std::unique_ptr<CompiledLayer<T>>> compiled_;  // by layer; null for one that has a block
    std::unique_ptr<CompiledLoss<T>> compiled_loss_;
    bool classification_;   // whether the examples that the network gets right are counted
    std::size_t capacity_;  // the most examples of a batch
    bool to_inputs_;        // whether backward passes go on to the inputs
    // Whether there is a custom layer, whose passes may throw.
    bool may_throw_ = false;
    bool takes_pieces_ = false;  // whether all layers take pieces of a batch
    std::size_t
        first_trainable_;  // the index of the layer where the backward pass ends: the first that learns
    // The most examples of the batches that were passed whole, for which the arrays of such passes have room.
    std::size_t room_ = 0;
    std::vector<std::vector<T>> outputs_;  // the output of each layer
    // For each layer that has a block, the gradient of its output, while the backward pass is in the block.
    std::vector<std::vector<T>> shortcut_;
    // For each layer, the indices of the layers whose block begins with it: the gradient of its input gets
    // their shortcut_ added.
    std::vector<std::vector<std::size_t>> rejoined_;
    // The batch, as far as it does not lie in the caller's memory one example after the other.
    std::vector<T> input_, targets_, weight_;
    std::vector<std::int64_t> labels_;
    // The sparse rows of the batch, and a view of them, if the first layer takes them as they are.
    std::vector<T> sparse_values_;
    std::vector<std::int32_t> sparse_columns_;
    std::vector<std::int64_t> sparse_begins_;
    SparseRows<T> sparse_;
    std::vector<T> gradient_, other_gradient_;  // the gradients of a layer's output and of its input
    std::size_t widest_ = 0;                    // their elements for each example
    // Whether the current batch is passed through the layers in pieces, and copied then.
    bool in_pieces_ = false, gathers_pieces_ = false;
    static constexpr std::size_t kMostArrays = 2;  // of a layer that takes pieces
    // Where a thread has what it needs for a piece, in elements: its inputs are at 0, all else of a layer is
    // listed by layer. The gradients of all pieces are elsewhere, in one block: those of an array of a layer
    // lie end to end.
    struct PiecePlaces {
        std::vector<std::size_t> outputs, memory;
        std::vector<std::array<std::size_t, kMostArrays>> gradients;
        std::size_t dy, dx, total, all_gradients;
    };
    PiecePlaces places_{};
    Memory<T> piece_memory_;            // the gradients of all pieces, and what each thread has
    std::vector<double> piece_losses_;  // the sum of the losses of each piece
    Stepper<T> stepper_;                // updates all arrays that add() added
    std::vector<const T*> gradients_;   // the gradient of each of these arrays

    // The buffers and counters of all layers.
    std::vector<LayerArray<T>> buffers_;
    // What these held at some time, so that they can be set back.
    struct Kept {
        std::vector<T> values;
        std::vector<std::int64_t> counts;
    };
    Kept before_;     // before a step
    Kept after_one_;  // after the first of two forward passes of a step
    void keep_buffers(Kept&) const;
    void restore_buffers(const Kept&);
    bool random_ = true;    // whether layers that are random in training are
    bool training_ = true;  // whether the other layers compute as in training

    Stepper<T> ascent_;          // moves all arrays that add() added along their gradients
    std::vector<T> unascended_;  // their elements as they were before that

    Penalized<T> penalty_{};
    // Whether the current step adds the gradient of the penalty as weight decay, which reads each weight
    // anyway, and not to the gradients in memory.
    bool decays_ = false;
    WeightNoise<T> noise_{};
    WeightedMean mean_;
    Exchange exchange_;            // or empty
    double weights_of_batch_ = 0;  // the sum of the weights of its examples, if mean_ is wanted
    std::vector<T> kept_;          // the parameters as they are without noise

    // A fused update computes the gradient of a weight and its step at once. It serves the weights of layers
    // with a fusible gradient; rest_ updates all other arrays that add() added.
    std::vector<typename Stepper<T>::Array> weights_;  // by layer; of size 0 if the layer has no such weight
    Stepper<T> rest_;
    std::vector<const T*> rest_gradients_;
    Stepper<T> dense_;  // updates the same weights by gradients that are in memory
    std::vector<const T*> dense_gradients_;
    std::vector<DenseUpdate<T>> updates_;  // the fused updates of the current step
    // Whether the gradients that fused updates leave out are 0 in memory. The first fused step sets them to
    // 0, so that no reader takes an old gradient for a new one; a step that is not fused writes them.
    bool zeroed_ = false;
    // The coefficients of the current step, with the factor of clipping or the penalty as weight decay.
    std::vector<T> changed_;
};

}  // namespace pyoptim::core
