/// Networks: layers, training by whole epochs, and the files that Python reads and writes.
///
///     pyoptim::Network<float> network({pyoptim::dense(784, 256, "relu"), pyoptim::dense(256, 10)}, 0);
///     pyoptim::Adam<float> adam(network.parameter_count());
///     pyoptim::FitOptions options;
///     options.epochs = 5;
///     network.fit({x, labels, examples}, adam, options);
///     network.save("model.safetensors");
///
/// Arrays are row-major, one example a row. Errors are std::invalid_argument (what was asked for cannot be)
/// and std::runtime_error (a file); nothing is changed then, but for a schedule that fails on its way: the
/// steps before are done. Inputs that are NaN or infinite are refused. after_epoch must not train, load or
/// move the network. No exception leaves a thread of ours. A network is used by one thread at a time. One
/// that was moved from can only be destroyed or assigned to; the addresses that it gave before are those of
/// the network that it was moved to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "pyoptim/custom_layer.hpp"
#include "pyoptim/export.hpp"
#include "pyoptim/optimizer.hpp"
#include "pyoptim/schedules.hpp"

namespace pyoptim {

/// A layer's description: the functions below make one. A kind of layer reads the members that are named
/// after it, with the meaning and the range of the Python class's arguments, and leaves the others alone.
struct Layer {
    std::string type;  ///< the Python class: "Dense", "BatchNorm", "ReLU", "Flatten", "Residual", …
    std::ptrdiff_t in = 0, out = 0;     ///< Dense; of BatchNorm `in` is the number of features
    bool bias = true;                   ///< Dense
    std::string activation;             ///< Dense: "relu", "sigmoid", "tanh"; BatchNorm: "relu"; "": none
    std::string init = "glorot";        ///< Dense: "glorot" or "he"
    double eps = 1e-5, momentum = 0.1;  ///< BatchNorm; LayerNorm has eps. momentum < 0: the cumulative mean
    bool affine = true;                 ///< BatchNorm, LayerNorm
    bool track_running_stats = true, unbiased = true;  ///< BatchNorm
    double scale = 1, shift = 0;                       ///< Rescale
    std::vector<Layer> block;                          ///< Residual
    /// Without, fit() and step() leave the parameters as they are, and a BatchNorm normalises by its running
    /// statistics and does not change them. Of Residual: of all layers in its block.
    bool trainable = true;
    std::vector<std::ptrdiff_t> features;    ///< LayerNorm: the last dimensions, which it normalises together
    double p = 0.5;                          ///< Dropout: the probability that an element is dropped
    double deviation = 0.1;                  ///< GaussianNoise: the standard deviation
    double slope = 0.01;                     ///< LeakyReLU
    double alpha = 1;                        ///< ELU
    double beta = 1;                         ///< Softplus
    double low = -1, high = 1;               ///< Hardtanh
    bool approximate = false;                ///< GELU: by the hyperbolic tangent
    std::shared_ptr<AnyCustomLayer> custom;  ///< of custom(): the layer of your own
};

/// y = activation(x W^T + b), W of shape (out, in). init: "glorot" or "he"; the bias begins at 0.
PYOPTIM_API Layer dense(std::ptrdiff_t in, std::ptrdiff_t out, const std::string& activation = "",
                        const std::string& init = "glorot");
PYOPTIM_API Layer batch_norm(std::ptrdiff_t features);  ///< change the rest in the result
PYOPTIM_API Layer layer_norm(std::ptrdiff_t features);
PYOPTIM_API Layer dropout(double p);
PYOPTIM_API Layer gaussian_noise(double deviation);
PYOPTIM_API Layer activation(const std::string& name);  ///< by the formula's name: "relu", "leaky_relu", …
PYOPTIM_API Layer rescale(double scale, double shift = 0);        ///< scale * x + shift
PYOPTIM_API Layer residual(std::vector<Layer> block);             ///< x + block(x)
PYOPTIM_API Layer custom(std::shared_ptr<AnyCustomLayer> layer);  ///< of your own: see custom_layer.hpp
PYOPTIM_API Layer layer(const std::string& type);  ///< any, e.g. "GELU"; change its options in the result

/// What is minimised. A kind of loss reads the members that are named after it.
struct Loss {
    /// The Python class: "CrossEntropy", "KLDiv", "MSE", "L1", "Huber", "BinaryCrossEntropy", "Hinge"
    /// or "Poisson". "": CrossEntropy for labels, MSE for targets.
    std::string type;
    std::vector<double> class_weight = {};  ///< CrossEntropy: of each class; empty: all are 1
    double label_smoothing = 0;             ///< CrossEntropy
    double temperature = 1;                 ///< KLDiv
    double delta = 1;                       ///< Huber
    double pos_weight = 1;                  ///< BinaryCrossEntropy
    std::vector<double> pos_weights = {};  ///< BinaryCrossEntropy: instead of pos_weight, one for each output
};

/// Examples to learn from: inputs as T or as bytes; targets as labels, which CrossEntropy takes, or as T.
/// CrossEntropy and KLDiv take each class's share as T. Labels are of any integer type; those that are not
/// std::int64_t are copied.
template <class T>
struct Dataset {
    const T* x = nullptr;
    const std::uint8_t* bytes = nullptr;   ///< instead of x
    const std::int64_t* labels = nullptr;  ///< classes, of outputs that are logits
    const T* targets = nullptr;            ///< instead of labels: (examples, outputs)
    std::size_t examples = 0;
    /// Numbers >= 0 that multiply each example's loss, or null. As in Python, a batch's loss is the sum
    /// divided by what it is divided by without them, not by the sum of the weights.
    const T* weight = nullptr;

    Dataset() = default;
    Dataset(const T* inputs, const std::int64_t* classes, std::size_t n)
        : x(inputs), labels(classes), examples(n) {}
    Dataset(const std::uint8_t* inputs, const std::int64_t* classes, std::size_t n)
        : bytes(inputs), labels(classes), examples(n) {}
    Dataset(const T* inputs, const T* values, std::size_t n) : x(inputs), targets(values), examples(n) {}
    template <class Input, class Label,
              class = std::enable_if_t<std::is_integral_v<Label> && !std::is_same_v<Label, std::int64_t>>>
    Dataset(const Input* inputs, const Label* classes, std::size_t n)
        : Dataset(inputs, static_cast<const std::int64_t*>(nullptr), n) {
        if (classes == nullptr) return;
        converted = std::make_shared<const std::vector<std::int64_t>>(classes, classes + n);
        labels = converted->data();
    }

    std::shared_ptr<const std::vector<std::int64_t>> converted;  ///< labels of another type, as std::int64_t
};

/// What an epoch measured, as the parameters moved: means over the examples, of which those of skipped steps
/// do not count; NaN if there were no others.
struct EpochResult {
    double loss = 0;      ///< with class_weight: the weighted mean
    double accuracy = 0;  ///< of CrossEntropy; an example with a NaN among its outputs is never right
    /// Of the validation data after the epoch; NaN where there are none.
    double validation_loss = std::numeric_limits<double>::quiet_NaN();
    double validation_accuracy = std::numeric_limits<double>::quiet_NaN();
};

/// Added to the loss and its gradient, as Python's nn.Penalty: l2/2 sum(w^2) + l1 sum(|w|) over the weights
/// of layers that are not frozen.
struct WeightPenalty {
    double l2 = 0, l1 = 0;
    bool biases = false, batch_norm = false;  ///< whether to count biases, and the parameters of BatchNorm
};

/// Ends a training when the loss of the validation data, or without such the training's, has not improved for
/// `patience` epochs: the rules of Python's EarlyStopping.
struct EarlyStopping {
    int patience = 1;          ///< 0 means the same as 1
    double min_delta = 0;      ///< what counts as improvement: the loss is less by more than this
    bool restore_best = true;  ///< leave parameters and running statistics as they were after the best epoch
};

/// How far a fit has come within an epoch.
struct FitProgress {
    int epoch = 0;                       ///< counted from 0
    std::size_t done = 0, examples = 0;  ///< examples of this epoch, or of this block of it
};

struct FitOptions {
    int epochs = 1;
    std::size_t batch_size = 32;  ///< 0: the full batch
    bool shuffle = true;
    /// Of the order of the examples. Without a seed the network's own random numbers go on from fit to fit,
    /// so that a fit in a loop visits a new order each time; those of a new network begin as with the seed 0.
    std::optional<std::uint64_t> seed;
    /// Called after each epoch (counted from 0); false ends the training.
    std::function<bool(int, const EpochResult&)> after_epoch;
    /// Called every few steps; false ends the training, after which after_epoch is not called. It may change
    /// the numbers of the optimizer, but neither its rule, its states, clipping nor the policy for gradients
    /// that are not finite, which is std::invalid_argument: those after_epoch may change.
    std::function<bool(const FitProgress&)> progress;
    std::optional<EarlyStopping> early_stopping;
    WeightPenalty penalty;
    /// Each gradient is taken at parameters to which normal noise of this standard deviation was added; its
    /// random numbers follow from `seed`.
    double weight_noise = 0;
    /// Threads take mini-batches of their own, of 1 to 16 examples, and do not wait for each other, as in
    /// Python's `fit(parallel="hogwild")`, which says what this needs. Results depend on which comes first.
    bool hogwild = false;
    Loss loss;
    bool drop_last = false;  ///< leave out the last batch of each epoch where it has fewer than batch_size
    /// The radius rho of sharpness-aware minimisation (Foret et al. 2021), as Python's
    /// `Trainer(sharpness_aware=rho)`: each step takes the gradient at p + rho * g / norm(g). 0: at p.
    double sharpness_aware = 0;
};

/// An array of a network, by the name that it has in the state_dict of a Python model. The network owns the
/// memory.
template <class T>
struct NamedArray {
    std::string name;  ///< such as "0.weight"
    std::vector<std::ptrdiff_t> shape;
    std::size_t size = 0;           ///< elements
    T* values = nullptr;            ///< of a parameter, or of a buffer such as a running mean
    T* gradients = nullptr;         ///< of a parameter
    std::int64_t* count = nullptr;  ///< instead of values: a counter, such as the position in random numbers
    bool trainable = false;         ///< whether it is a parameter that learns
};

/// All parameters, buffers and counters of a network at some time, end to end.
template <class T>
struct Snapshot {
    std::vector<T> values;
    std::vector<std::int64_t> counts;
    std::vector<std::string> arrays;  ///< what each of them is, such as "0.weight (8, 4)"
};

/// T is float or double.
template <class T>
class PYOPTIM_API Network {
  public:
    explicit Network(const std::vector<Layer>& layers, std::uint64_t seed = 0);
    ~Network();
    Network(Network&&) noexcept;
    Network& operator=(Network&&) noexcept;

    std::size_t inputs() const;  ///< elements of an example
    std::size_t outputs() const;
    const std::vector<Layer>& layers() const;

    /// All parameters as one vector, layer by layer, weight before bias; and their gradients, of the last
    /// step() or backward(). What these hold after fit() is not specified. Both addresses stay for as long as
    /// the network lives.
    T* parameters();
    T* gradients();
    std::size_t parameter_count() const;

    /// Freezes layers()[layer], or thaws it; of a Residual all layers in its block. An optimizer goes on
    /// as it is: it leaves the parameters of frozen layers and their states alone.
    void set_trainable(std::size_t layer, bool trainable);

    /// Every array, layer by layer: parameters and what layers keep besides.
    std::vector<NamedArray<T>> arrays();
    /// The parameters that learn, for Optimizer::set_arrays.
    std::vector<ParameterArray> parameter_arrays() const;
    /// Parameters, running statistics and the positions in random numbers: whatever training changes.
    Snapshot<T> snapshot() const;
    /// Throws std::invalid_argument, and writes nothing, for a snapshot of other arrays and for counts below
    /// 0.
    void restore(const Snapshot<T>&);
    /// A network of its own memory that trains on to the same bits. Custom layers are the same objects.
    Network clone() const;
    /// The most threads that calls of this network use, from 1 on; 0: as many as get_num_threads() says. For
    /// networks that run in threads of the program's own.
    void limit_threads(int n);

    /// Trains by mini-batches. The optimizer is one of `parameter_count()` elements. The validation data, if
    /// there are any, are measured after each epoch.
    /// Returns the last epoch's result. Under NonFinite::raise throws std::domain_error for a gradient that
    /// is not finite; the steps before are done, and that one changes nothing. Labels that another thread
    /// changes meanwhile are checked at each step: std::invalid_argument.
    EpochResult fit(const Dataset<T>& data, Optimizer<T>& optimizer, const FitOptions& options = {},
                    const Dataset<T>* validation = nullptr);

    /// The examples of an epoch in blocks, for data that do not fit into memory: function of the epoch and of
    /// the number of blocks before, both from 0. One without examples ends the epoch.
    using Blocks = std::function<Dataset<T>(int epoch, std::size_t block)>;
    /// Trains as fit() does, on one block after the other; the order is drawn anew within each. A block that
    /// cannot be trained on is an error after those before it.
    EpochResult fit_blocks(const Blocks& blocks, Optimizer<T>& optimizer, const FitOptions& options = {},
                           const Dataset<T>* validation = nullptr);

    /// The loss and the accuracy of the data as a whole, in evaluation, as Python's Trainer.evaluate.
    EpochResult evaluate(const Dataset<T>& data, const Loss& loss = {}) const;

    /// Makes the running statistics of BatchNorm anew, as Python's averages.update_bn: the mean of those of
    /// each batch of data's x or bytes. Averaged weights need it, whose statistics training has not seen.
    /// Dropout and noise draw as in training; layers that are frozen or keep no statistics stay as they are.
    /// Where the last batch would be of one example, all batches are smaller.
    void update_bn(const Dataset<T>& data, std::size_t batch_size = 1024);

    /// One step on all of `data` as one batch; returns the loss before it.
    double step(const Dataset<T>& data, Optimizer<T>& optimizer, const Loss& loss = {});

    /// For a loss of your own: passes x (n, inputs) through all layers, in training or in evaluation, and
    /// returns y (n, outputs). Its memory is the network's and stays as it is up to the next forward(),
    /// whatever else is called; it may be part of the next x. In training, BatchNorm takes and keeps
    /// statistics, and Dropout and GaussianNoise draw anew.
    const T* forward(const T* x, std::size_t n, bool training = true);
    /// Takes the gradient of the loss by that y, writes gradients(), those of frozen layers aside, and
    /// returns the gradient by x (n, inputs), in the network's memory, which stays as it is up to the next
    /// backward(), whatever else is called. After a forward() in evaluation, statistics are constants.
    /// Parameters must not have changed since forward(). A dy that is not finite makes such gradients, with
    /// which update() does what Optimizer::nonfinite says.
    const T* backward(const T* dy);
    /// A step by gradients(), which leaves frozen layers alone; else it is
    /// optimizer.step(parameters(), gradients()). With the gradient of a loss that step() knows, the bits
    /// are those of step(). Throws std::domain_error as fit() does. A step that is skipped, or that
    /// throws for its gradients or a schedule, sets running statistics and counters back to what they were
    /// before the last forward() in training, unless something else has changed them since.
    void update(Optimizer<T>& optimizer);

    /// y (examples, outputs) for x (examples, inputs), in evaluation: logits, not probabilities. The network
    /// keeps the memory of this, with copies of its weights, for the next call. Where x is refused, y is
    /// unspecified.
    void predict(const T* x, std::size_t examples, T* y) const;

    /// A copy for predictions: each BatchNorm with running statistics that follows a Dense without an
    /// activation becomes part of its weight and bias, computed in double and rounded once. Outputs differ by
    /// rounding. Without such a layer it is a plain copy.
    Network folded() const;

    /// A safetensors file that `pyoptim.nn.Sequential.load` reads, with a checksum. A file of that name is
    /// replaced at once, and its mode is kept; a symbolic link stays one, and its target is replaced. A
    /// process that is killed leaves a temporary file in the folder, which the next save to that folder
    /// removes.
    void save(const std::string& path) const;
    /// One that Python's `save`, or ours, wrote; of the same dtype. A file that does not have its checksum,
    /// and one whose layers need other memory than it holds, is refused.
    static Network load(const std::string& path);
    std::vector<std::uint8_t> save() const;  ///< the bytes of that file
    static Network load(const void* bytes, std::size_t size);

  private:
    template <class>
    friend class Predictor;
    struct Impl;
    explicit Network(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// Threads that every kernel may use, for the whole process: from 1 to four times the number of processors,
/// or to 64 if that is more. Initially one per processor.
PYOPTIM_API void set_num_threads(int n);
PYOPTIM_API int get_num_threads();

}  // namespace pyoptim
