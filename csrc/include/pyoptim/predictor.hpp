/// Predictions in servers and in firmware: const, by several threads at once, without an allocation.
///
///     const auto predictor = pyoptim::Predictor<float>::load("model.safetensors");
///     predictor.predict(x, 1, y);  // from any thread
///
/// Outputs have the bits of Network::predict for the same batch. A program that uses nothing else of the
/// library links neither training nor optimizers; -Wl,--gc-sections leaves them out of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pyoptim/export.hpp"
#include "pyoptim/network.hpp"

namespace pyoptim {

struct PredictorOptions {
    /// The largest batch of a call; 0: any, up to 2^32 - 1 examples. A small number takes less memory:
    /// without large batches, weights are mostly multiplied where they are, and not from a copy.
    std::size_t most_examples = 0;
    /// How many threads may compute at once, each in working memory of its own; others sleep until one of
    /// these is done.
    /// 0: as many as get_num_threads() says.
    int callers = 0;
};

/// The arrays of a network in memory that the caller keeps, as long as the predictor lives, and does not
/// change: `parameters` as Network::parameters() has them, `buffers` of each BatchNorm, in the order of the
/// layers, its running mean and then its running variance. A Residual's block comes in its place.
template <class T>
struct ModelArrays {
    const T* parameters = nullptr;
    std::size_t parameter_count = 0;
    const T* buffers = nullptr;
    std::size_t buffer_count = 0;
};

/// T is float or double. Each call computes on the thread that makes it; all const members may be called by
/// several threads at once. A predictor that was moved from can only be destroyed or assigned to.
template <class T>
class PYOPTIM_API Predictor {
  public:
    /// A copy of the network as it is now. Throws std::invalid_argument for layers whose outputs depend on
    /// the other examples of a batch (BatchNorm without running statistics), and for custom layers.
    explicit Predictor(const Network<T>& network, const PredictorOptions& options = {});
    /// Without a copy of the arrays, but of weights that large batches need in another order.
    Predictor(const std::vector<Layer>& layers, const ModelArrays<T>& arrays,
              const PredictorOptions& options = {});
    /// A file that Python's `save` or Network::save wrote; std::runtime_error as Network::load.
    static Predictor load(const std::string& path, const PredictorOptions& options = {});
    /// The bytes of such a file, such as Network::save() returns; they may go afterwards.
    static Predictor load(const void* bytes, std::size_t size, const PredictorOptions& options = {});
    ~Predictor();
    Predictor(Predictor&&) noexcept;
    Predictor& operator=(Predictor&&) noexcept;

    std::size_t inputs() const;  ///< elements of an example
    std::size_t outputs() const;

    /// y (examples, outputs) for x (examples, inputs): logits, not probabilities. Nothing is allocated.
    /// Throws std::invalid_argument for null pointers and for more examples than most_examples.
    void predict(const T* x, std::size_t examples, T* y) const;
    void predict(const std::uint8_t* x, std::size_t examples, T* y) const;

  private:
    struct Impl;
    explicit Predictor(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace pyoptim
