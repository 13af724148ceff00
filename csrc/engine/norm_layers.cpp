#include <algorithm>
#include <limits>

#include "engine/layer.hpp"
#include "layers/layer_norm.hpp"
#include "layers/norm.hpp"

namespace pyoptim::core {

namespace {

// Gamma, beta and where their gradients go: to memory of this object if the layer does not learn.
template <class T>
struct Affine {
    Affine(const LayerView<T>& of, std::ptrdiff_t features)
        : weight(of.array("weight").value),
          bias(of.array("bias").value),
          dweight(of.array("weight").gradient),
          dbias(of.array("bias").gradient) {
        if (of.learns()) return;
        unread.resize(2 * static_cast<std::size_t>(features));
        dweight = unread.data();
        dbias = dweight + features;
    }
    const T *weight, *bias;
    T *dweight, *dbias;
    std::vector<T> unread;  // gradients that nobody reads
};

template <class T, bool trains>
class BatchNormLayer final : public CompiledLayer<T> {
  public:
    BatchNormLayer(const LayerView<T>& of, std::size_t)
        : channels_(of.layer->in),
          space_(of.in.size / channels_),
          momentum_(of.layer->momentum),
          options_{0, of.layer->eps, false, of.layer->unbiased, !of.layer->activation.empty()},
          trainable_(of.layer->trainable),
          affine_(of, channels_),
          running_{of.array("running_mean").value, of.array("running_var").value},
          tracked_(of.array("num_batches_tracked").count),
          mean_(static_cast<std::size_t>(channels_)),
          inv_std_(static_cast<std::size_t>(channels_)),
          evaluated_(channels_, space_) {}

    void forward(const Forward<T>& to) override {
        options_.training = to.training && trainable_;
        options_.momentum = momentum_;
        if (options_.training && tracked_ != nullptr) {
            if (momentum_ < 0) options_.momentum = 1.0 / static_cast<double>(*tracked_ + 1);
            ++*tracked_;
        }
        of_this_batch_ = options_.training || tracked_ == nullptr;
        norm_forward<T>(shape(to.n), to.x, {affine_.weight, affine_.bias}, running_, options_, to.y,
                        mean_.data(), inv_std_.data());
    }

    void prepare(std::size_t) override {
        evaluated_.prepare({affine_.weight, affine_.bias}, running_, options_.eps);
    }
    void evaluate(std::size_t, std::size_t n, const T* x, T* y) override {
        evaluated_.apply(static_cast<std::ptrdiff_t>(n), options_.relu, x, y);
    }

    void backward([[maybe_unused]] const Backward<T>& of) override {
        if constexpr (trains) {
            norm_backward<T>(shape(of.n), of.dy, of.x, {affine_.weight, affine_.bias},
                             {mean_.data(), inv_std_.data(), of_this_batch_, options_.relu}, of.dx,
                             affine_.dweight, affine_.dbias);
        }
    }

  private:
    NormShape shape(std::size_t n) const { return {static_cast<std::ptrdiff_t>(n), channels_, space_}; }

    std::ptrdiff_t channels_, space_;
    double momentum_;  // a negative one stands for the cumulative mean
    NormOptions options_;
    bool trainable_;
    Affine<T> affine_;
    NormRunning<T> running_;
    std::int64_t* tracked_;  // the number of batches that the running statistics have seen; null without them
    std::vector<T> mean_, inv_std_;  // the statistics that the last forward pass used
    bool of_this_batch_ = false;     // whether they are those of its batch, or else running statistics
    RunningNorm<T> evaluated_;
};

Width batch_norm_output(Layer& layer, const Width& in) {
    if (layer.in <= 0 || in.size % layer.in != 0) {
        throw std::invalid_argument("cannot normalise " + std::to_string(in.size) + " values");
    }
    if (!layer.activation.empty() && layer.activation != "relu") {
        throw std::invalid_argument("has the activation '" + layer.activation + "', expected relu or none");
    }
    layer.out = layer.in;
    return in;
}

std::vector<ArrayInfo> batch_norm_arrays(const Layer& layer) {
    std::vector<ArrayInfo> all;
    if (layer.affine) {
        all.push_back({"weight", {layer.in}, Role::parameter, Initial::ones});
        all.push_back({"bias", {layer.in}});
    }
    if (layer.track_running_stats) {
        all.push_back({"running_mean", {layer.in}, Role::buffer});
        all.push_back({"running_var", {layer.in}, Role::buffer, Initial::ones});
        all.push_back({"num_batches_tracked", {}, Role::counter});
    }
    return all;
}

template <class T, bool trains>
class LayerNormLayer final : public CompiledLayer<T> {
  public:
    LayerNormLayer(const LayerView<T>& of, std::size_t capacity)
        : features_(of.layer->in),
          rows_(of.in.size / features_),
          eps_(of.layer->eps),
          affine_(of, features_),
          mean_(capacity * static_cast<std::size_t>(rows_)),
          inv_std_(mean_.size()) {
        if (affine_.weight != nullptr) return;
        plain_.assign(2 * static_cast<std::size_t>(features_), T(0));
        std::fill_n(plain_.data(), features_, T(1));
        affine_.weight = plain_.data();
        affine_.bias = plain_.data() + features_;
    }

    void forward(const Forward<T>& to) override {
        layer_norm_forward<T>(shape(to.n), to.x, affine_.weight, affine_.bias, eps_, to.y, mean_.data(),
                              inv_std_.data());
    }

    void evaluate(std::size_t, std::size_t n, const T* x, T* y) override {
        constexpr std::ptrdiff_t kRows = 64;
        T mean[kRows], inv_std[kRows];  // which nobody reads
        const std::ptrdiff_t rows = shape(n).rows;
        for (std::ptrdiff_t i = 0; i < rows; i += kRows) {
            layer_norm_forward<T>({std::min(kRows, rows - i), features_}, x + i * features_, affine_.weight,
                                  affine_.bias, eps_, y + i * features_, mean, inv_std);
        }
    }

    void backward([[maybe_unused]] const Backward<T>& of) override {
        if constexpr (trains) {
            layer_norm_backward<T>(shape(of.n), {of.dy, of.x, mean_.data(), inv_std_.data()}, affine_.weight,
                                   of.dx, affine_.dweight, affine_.dbias);
        }
    }

  private:
    LayerNormShape shape(std::size_t n) const { return {static_cast<std::ptrdiff_t>(n) * rows_, features_}; }

    std::ptrdiff_t features_, rows_;  // the length of a row, and the number of rows of an example
    double eps_;
    Affine<T> affine_;
    std::vector<T> plain_;           // gamma and beta of a layer without: ones and zeros
    std::vector<T> mean_, inv_std_;  // the statistics of each row of the last forward pass
};

// Returns how many values are normalised together, or 0 for features that no example can have.
std::ptrdiff_t values_of(const Layer& layer) {
    std::ptrdiff_t values = layer.features.empty() ? 0 : 1;
    for (const std::ptrdiff_t n : layer.features) {
        if (n <= 0 || values > std::numeric_limits<std::ptrdiff_t>::max() / n) return 0;
        values *= n;
    }
    return values;
}

Width layer_norm_output(Layer& layer, const Width& in) {
    layer.in = layer.out = values_of(layer);
    if (layer.in <= 0 || in.size % layer.in != 0) {
        throw std::invalid_argument("cannot normalise " + std::to_string(in.size) + " values");
    }
    return in;
}

std::vector<ArrayInfo> layer_norm_arrays(const Layer& layer) {
    if (!layer.affine) return {};
    return {{"weight", layer.features, Role::parameter, Initial::ones}, {"bias", layer.features}};
}

}  // namespace

std::vector<LayerEntry> norm_entries() {
    const Option<Layer> eps = {"eps", &Layer::eps, kNotNegative}, affine = {"affine", &Layer::affine};
    LayerEntry batch_norm{"BatchNorm",
                          {{"features", &Layer::in},
                           eps,
                           {"momentum", &Layer::momentum, kShare, true},
                           affine,
                           {"track_running_stats", &Layer::track_running_stats},
                           {"running_var", &Layer::unbiased, kFinite, false, "unbiased", "biased"},
                           {"activation", &Layer::activation}}};
    batch_norm.output = batch_norm_output;
    batch_norm.arrays = batch_norm_arrays;
    batch_norm.inputs = [](const Layer& layer) { return layer.in; };
    batch_norm.statistics = [](const Layer& layer, std::ptrdiff_t in, bool training) {
        const bool takes = (training && layer.trainable) || !layer.track_running_stats;
        return takes ? in / layer.in : 0;
    };
    LayerEntry layer_norm{"LayerNorm", {{"features", &Layer::features}, eps, affine}};
    layer_norm.output = layer_norm_output;
    layer_norm.arrays = layer_norm_arrays;
    layer_norm.inputs = values_of;
    return {batch_norm, layer_norm};
}

template <class T, bool trains>
LayerMakers<T> norm_makers() {
    return {{"BatchNorm", make_object<BatchNormLayer<T, trains>, T>},
            {"LayerNorm", make_object<LayerNormLayer<T, trains>, T>}};
}

#define X(T)                                        \
    template LayerMakers<T> norm_makers<T, true>(); \
    template LayerMakers<T> norm_makers<T, false>();
X(float)
X(double)
#undef X

}  // namespace pyoptim::core
