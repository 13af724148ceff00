// Layers that have no parameters and are not activations.
#include <cstring>

#include "engine/layer.hpp"
#include "formulas/random.hpp"
#include "layers/dropout.hpp"

namespace pyoptim::core {

namespace {

template <class T>
class RescaleLayer final : public CompiledLayer<T> {
  public:
    RescaleLayer(const LayerView<T>& of, std::size_t)
        : scale_(static_cast<T>(of.layer->scale)),
          shift_(static_cast<T>(of.layer->shift)),
          width_(static_cast<std::size_t>(of.in.size)) {}

    void forward(const Forward<T>& to) override {
        const std::size_t size = to.n * width_;
        const T *const x = to.x, scale = scale_, shift = shift_;
        T* const y = to.y;
        for (std::size_t j = 0; j < size; ++j) y[j] = x[j] * scale + shift;
    }

    void backward(const Backward<T>& of) override {
        const std::size_t size = of.n * width_;
        const T scale = scale_;
        T* const dy = of.dy;
        for (std::size_t j = 0; j < size; ++j) dy[j] *= scale;
    }

    bool works_in_place() const override { return true; }

  private:
    T scale_, shift_;
    std::size_t width_;
};

// The common state of layers that are random in training: a seed, and a step that counts the training passes.
template <class T>
class RandomLayer : public CompiledLayer<T> {
  public:
    explicit RandomLayer(const LayerView<T>& of)
        : seed_(of.array("seed").count),
          step_(of.array("step").count),
          width_(static_cast<std::size_t>(of.in.size)) {}

    void forward(const Forward<T>& to) final {
        const std::size_t size = to.n * width_;
        if (!to.training) {
            std::memcpy(to.y, to.x, size * sizeof(T));
            return;
        }
        last_ = {static_cast<std::uint64_t>(*seed_), static_cast<std::uint64_t>(*step_)};
        ++*step_;
        apply(last_, size, to.x, to.y);
    }

    bool works_in_place() const final { return true; }

  protected:
    virtual void apply(const RandomStream&, std::size_t n, const T* x, T* y) = 0;

    std::int64_t *seed_, *step_;
    std::size_t width_;
    RandomStream last_{};  // the random numbers of the last training pass
};

template <class T>
class DropoutLayer final : public RandomLayer<T> {
  public:
    DropoutLayer(const LayerView<T>& of, std::size_t) : RandomLayer<T>(of), p_(of.layer->p) {}

    void backward(const Backward<T>& of) override {
        dropout(this->last_, p_, of.n * this->width_, of.dy, of.dy);
    }

  private:
    void apply(const RandomStream& stream, std::size_t n, const T* x, T* y) override {
        dropout(stream, p_, n, x, y);
    }
    double p_;
};

template <class T>
class GaussianNoiseLayer final : public RandomLayer<T> {
  public:
    GaussianNoiseLayer(const LayerView<T>& of, std::size_t)
        : RandomLayer<T>(of), deviation_(of.layer->deviation) {}

    void backward(const Backward<T>&) override {}

  private:
    void apply(const RandomStream& stream, std::size_t n, const T* x, T* y) override {
        gaussian_noise(stream, deviation_, n, x, y);
    }
    double deviation_;
};

std::vector<ArrayInfo> random_arrays(const Layer&) {
    return {{"seed", {}, Role::counter, Initial::seed}, {"step", {}, Role::counter}};
}

}  // namespace

std::vector<LayerEntry> other_entries() {
    LayerEntry flatten{"Flatten", {}};
    flatten.output = [](Layer&, const Width& in) { return Width{in.size, in.size}; };
    flatten.flattens = flatten.changes_nothing = true;
    LayerEntry residual{"Residual", {}};
    residual.has_block = true;
    LayerEntry dropout{"Dropout", {{"p", &Layer::p, kBelowOne}}};
    LayerEntry noise{"GaussianNoise", {{"std", &Layer::deviation, kNotNegative}}};
    dropout.arrays = noise.arrays = random_arrays;
    dropout.only_in_training = noise.only_in_training = true;
    return {
        flatten, residual, dropout, noise, {"Rescale", {{"scale", &Layer::scale}, {"shift", &Layer::shift}}}};
}

template <class T, bool trains>
LayerMakers<T> other_makers() {
    LayerMakers<T> all = {{"Rescale", make_object<RescaleLayer<T>, T>}};
    if constexpr (trains) {  // predictions leave these out
        all.emplace_back("Dropout", make_object<DropoutLayer<T>, T>);
        all.emplace_back("GaussianNoise", make_object<GaussianNoiseLayer<T>, T>);
    }
    return all;
}

#define X(T)                                         \
    template LayerMakers<T> other_makers<T, true>(); \
    template LayerMakers<T> other_makers<T, false>();
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
