/// Layers of your own, which take part in a network beside those of the library.
///
///     struct Square final : pyoptim::CustomLayer<float> {
///         void forward(const pyoptim::CustomForward<float>& to) override {
///             for (std::size_t i = 0; i < to.n * to.inputs; ++i) to.y[i] = to.x[i] * to.x[i];
///         }
///         void backward(const pyoptim::CustomBackward<float>& of) override {
///             for (std::size_t i = 0; i < of.n * of.inputs && of.dx; ++i) of.dx[i] = 2 * of.x[i] * of.dy[i];
///         }
///     };
///     pyoptim::Network<float> network({pyoptim::dense(4, 8), pyoptim::custom(std::make_shared<Square>())});
///
/// Files do not hold such a layer: Network::save() refuses it. Snapshots hold its parameters, and nothing
/// else that it keeps. An exception that it throws leaves the call of the network that ran it, and the step
/// that it was part of changes no parameter, statistic or counter.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "pyoptim/export.hpp"

namespace pyoptim {

/// The forward pass over n examples, one a row. The layer writes y (n, outputs), where outputs is what it has
/// said.
template <class T>
struct CustomForward {
    std::size_t n, inputs;  ///< examples, and elements of an example in x
    const T* x;             ///< stays as it is until the backward pass is done
    T* y;
    const T* parameters;  ///< null without
    bool training;        ///< false: evaluation
};

/// The backward pass that belongs to the last forward pass in training. The layer writes dx and gradients,
/// and adds to neither.
template <class T>
struct CustomBackward {
    std::size_t n, inputs;
    const T *x, *y, *dy;  ///< input and output of the forward pass, and the gradient of the output
    T* dx;                ///< the gradient of x; null if nobody reads it
    const T* parameters;
    T* gradients;  ///< of the parameters; null without, and if the layer is frozen
};

/// What does not depend on the element type.
class PYOPTIM_API AnyCustomLayer {
  public:
    virtual ~AnyCustomLayer() = default;
    /// Elements of an example's input, or 0 for any number. A layer that is a network's first, and whose
    /// output is of another number, must say it: without, a network takes as its inputs what its next layer
    /// with a number of inputs states.
    virtual std::size_t inputs() const { return 0; }
    /// Elements of an example's output, where its input has `inputs`. Called when a network is made, before
    /// everything else but inputs(); an std::invalid_argument refuses the layer.
    virtual std::size_t outputs(std::size_t inputs) { return inputs; }
    virtual std::size_t parameter_count() const { return 0; }
};

/// Derive from this one. A network calls the object from one thread at a time, and keeps it alive; hogwild,
/// and an object that stands twice in one network, are refused. Network::clone() and folded() make networks
/// with the same object: do not use two networks that share one at the same time, nor pass forward through
/// one between forward() and backward() of the other.
template <class T>
class PYOPTIM_API CustomLayer : public AnyCustomLayer {
  public:
    virtual void initialize(T* parameters, std::uint64_t /*seed*/) {
        std::fill_n(parameters, this->parameter_count(), T(0));
    }
    virtual void forward(const CustomForward<T>&) = 0;
    virtual void backward(const CustomBackward<T>&) = 0;
};

}  // namespace pyoptim
