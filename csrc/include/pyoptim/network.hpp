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
/// steps before are done. after_epoch must not train, load or move the network. No exception leaves a thread
/// of ours. A network is used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pyoptim/export.hpp"
#include "pyoptim/optimizer.hpp"

namespace pyoptim {

/// A layer's description: what the functions below make.
struct Layer {
    std::string type;  ///< the Python class: "Dense", "BatchNorm", "Activation", "Flatten", "Rescale",
                       ///< "Residual"
    std::ptrdiff_t in = 0, out = 0;
    bool bias = true;
    std::string activation;  ///< "relu", "sigmoid", "tanh"; "": none. Of BatchNorm: "relu" or none
    std::string init = "glorot";
    double eps = 1e-5, momentum = 0.1;  ///< momentum < 0: the cumulative mean
    bool affine = true, track_running_stats = true, unbiased = true;
    double scale = 1, shift = 0;
    std::vector<Layer> block;  ///< of Residual
    /// Without, fit() and step() leave the parameters as they are, and a BatchNorm normalises by its running
    /// statistics and does not change them. Of Residual: of all layers in its block.
    bool trainable = true;
};

/// y = activation(x W^T + b), W of shape (out, in). init: "glorot" or "he"; the bias begins at 0.
PYOPTIM_API Layer dense(std::ptrdiff_t in, std::ptrdiff_t out, const std::string& activation = "",
                        const std::string& init = "glorot");
PYOPTIM_API Layer batch_norm(std::ptrdiff_t features);  ///< change the rest in the result
PYOPTIM_API Layer activation(const std::string& name);
PYOPTIM_API Layer rescale(double scale, double shift = 0);  ///< scale * x + shift
PYOPTIM_API Layer residual(std::vector<Layer> block);       ///< x + block(x)

/// Examples to learn from: inputs as T or as bytes, targets as labels (cross-entropy) or as T (mean
/// squared error).
template <class T>
struct Dataset {
    const T* x = nullptr;
    const std::uint8_t* bytes = nullptr;   ///< instead of x
    const std::int64_t* labels = nullptr;  ///< classes, of outputs that are logits
    const T* targets = nullptr;            ///< instead of labels: (examples, outputs)
    std::size_t examples = 0;

    Dataset() = default;
    Dataset(const T* inputs, const std::int64_t* classes, std::size_t n)
        : x(inputs), labels(classes), examples(n) {}
    Dataset(const std::uint8_t* inputs, const std::int64_t* classes, std::size_t n)
        : bytes(inputs), labels(classes), examples(n) {}
    Dataset(const T* inputs, const T* values, std::size_t n) : x(inputs), targets(values), examples(n) {}
};

/// What an epoch measured, as the parameters moved.
struct EpochResult {
    double loss = 0, accuracy = 0;  ///< accuracy: of labels
};

struct FitOptions {
    int epochs = 1;
    std::size_t batch_size = 32;  ///< 0: the full batch
    bool shuffle = true;
    std::uint64_t seed = 0;
    /// Called after each epoch (counted from 0); false ends the training.
    std::function<bool(int, const EpochResult&)> after_epoch;
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

    /// All parameters as one vector, layer by layer, weight before bias; and their gradients,
    /// of the last step(). What they hold after fit() is not specified.
    T* parameters();
    T* gradients();
    std::size_t parameter_count() const;

    /// Freezes layers()[layer], or thaws it; of a Residual all layers in its block. An optimizer goes on
    /// as it is: it leaves the parameters of frozen layers and their states alone.
    void set_trainable(std::size_t layer, bool trainable);

    /// Trains by mini-batches. The optimizer is one of `parameter_count()` elements.
    /// Returns the last epoch's result. Under NonFinite::raise throws std::domain_error for a gradient that
    /// is not finite; the steps before are done.
    EpochResult fit(const Dataset<T>& data, Optimizer<T>& optimizer, const FitOptions& options = {});

    /// One step on all of `data` as one batch; returns the loss before it.
    double step(const Dataset<T>& data, Optimizer<T>& optimizer);

    /// y (examples, outputs) for x (examples, inputs), in evaluation: logits, not probabilities.
    void predict(const T* x, std::size_t examples, T* y) const;

    /// A safetensors file that `pyoptim.nn.Sequential.load` reads, replaced at once.
    void save(const std::string& path) const;
    /// One that Python's `save`, or ours, wrote; of the same dtype.
    static Network load(const std::string& path);

  private:
    struct Impl;
    explicit Network(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

/// Threads that every kernel may use, for the whole process; n >= 1. Initially one per processor.
PYOPTIM_API void set_num_threads(int n);
PYOPTIM_API int get_num_threads();

}  // namespace pyoptim
