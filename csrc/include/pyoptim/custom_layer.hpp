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
/// Files do not hold such a layer: Network::save() refuses it. An exception that it throws leaves the call of
/// the network that ran it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "pyoptim/export.hpp"

namespace pyoptim {

/// The forward pass over n examples, one a row. The layer writes y (n, outputs).
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
    /// Elements of an example's output, where its input has `inputs`. Called when a network is made, before
    /// everything else; an std::invalid_argument refuses the layer.
    virtual std::size_t outputs(std::size_t inputs) { return inputs; }
    virtual std::size_t parameter_count() const { return 0; }
};

/// Derive from this one. A network calls the object from one thread at a time, and keeps it alive; do not
/// put one object into two networks that are used at the same time, nor twice into one.
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
