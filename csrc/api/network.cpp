#include "pyoptim/network.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>

#include "api/network_impl.hpp"
#include "api/optimizer_impl.hpp"
#include "layers/activation_names.hpp"
#include "runtime/parallel.hpp"

namespace pyoptim {

namespace {

constexpr std::size_t kPredictBatch = 1024;
constexpr std::ptrdiff_t kMost = 1 << 30;  // inputs or outputs of a layer
constexpr std::size_t kChunk = 256;        // steps whose coefficients are computed together

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

double uniform(std::mt19937_64& rng) { return static_cast<double>(rng() >> 11) * 0x1p-53; }

double normal(std::mt19937_64& rng) {  // Box & Muller 1958
    const double radius = std::sqrt(-2 * std::log(1 - uniform(rng)));
    return radius * std::cos(6.283185307179586 * uniform(rng));
}

// The inputs that the first layer to say so has; 0: none says.
std::ptrdiff_t first_inputs(const std::vector<Layer>& layers) {
    for (const Layer& layer : layers) {
        const std::ptrdiff_t inputs = layer.in > 0 ? layer.in : first_inputs(layer.block);
        if (inputs > 0) return inputs;
    }
    return 0;
}

void mark(Layer& layer, bool trainable) {
    layer.trainable = trainable;
    for (Layer& inner : layer.block) mark(inner, trainable);
}

// The elements of a layer's weight and bias.
template <class T>
std::size_t parameters_of(const core::LayerView<T>& view) {
    if (view.weight == nullptr) return 0;
    const bool dense = view.kind == core::LayerKind::dense;
    const std::ptrdiff_t outputs = dense ? view.out : view.channels;
    return static_cast<std::size_t>(outputs * ((dense ? view.in : 1) + (view.bias != nullptr ? 1 : 0)));
}

}  // namespace

Layer dense(std::ptrdiff_t in, std::ptrdiff_t out, const std::string& activation, const std::string& init) {
    Layer layer;
    layer.type = "Dense";
    layer.in = in;
    layer.out = out;
    layer.activation = activation;
    layer.init = init;
    return layer;
}

Layer batch_norm(std::ptrdiff_t features) {
    Layer layer;
    layer.type = "BatchNorm";
    layer.in = layer.out = features;
    return layer;
}

Layer activation(const std::string& name) {
    Layer layer;
    layer.type = "Activation";
    layer.activation = name;
    return layer;
}

Layer residual(std::vector<Layer> block) {
    Layer layer;
    layer.type = "Residual";
    layer.block = std::move(block);
    return layer;
}

Layer rescale(double scale, double shift) {
    Layer layer;
    layer.type = "Rescale";
    layer.scale = scale;
    layer.shift = shift;
    return layer;
}

template <class T>
Network<T>::Impl::Impl(const std::vector<Layer>& given) : layers(given) {
    std::ptrdiff_t width = first_inputs(layers);
    if (width <= 0) refuse("layers: none of them says how many inputs it has");
    for (std::size_t i = 0; i < layers.size(); ++i) add(layers[i], std::to_string(i), width);
    bind();
}

// Checks a layer and adds its view. name: "3" or "3.block.0"; width: of its inputs, then of its outputs.
template <class T>
void Network<T>::Impl::add(Layer& layer, const std::string& name, std::ptrdiff_t& width) {
    const std::string label = "layers[" + name + "] (" + layer.type + ")";
    core::LayerView<T> view;
    view.in = view.out = width;
    view.trainable = layer.trainable;
    if (layer.type == "Dense") {
        if (layer.in != width || layer.out <= 0 || layer.in > kMost || layer.out > kMost) {
            refuse(label + " has " + std::to_string(layer.in) + " inputs and " + std::to_string(layer.out) +
                   " outputs, expected " + std::to_string(width) +
                   " inputs and at least one output, of each at most 2^30");
        }
        view.out = width = layer.out;
        view.activation = core::activation_named(layer.activation);
    } else if (layer.type == "BatchNorm") {
        if (layer.in <= 0 || width % layer.in != 0 || !(layer.eps >= 0) || !(layer.momentum <= 1)) {
            refuse(label + " cannot normalise " + std::to_string(width) + " values");
        }
        view.kind = core::LayerKind::batch_norm;
        view.channels = layer.in;
        view.eps = layer.eps;
        view.momentum = layer.momentum;
        view.unbiased = layer.unbiased;
        view.activation = core::activation_named(layer.activation);
        if (!layer.activation.empty() && layer.activation != "relu") {
            refuse(label + " has the activation '" + layer.activation + "', expected relu or none");
        }
    } else if (layer.type == "Activation") {
        if (layer.activation.empty()) refuse(label + " is an activation without a name");
        view.kind = core::LayerKind::activation;
        view.activation = core::activation_named(layer.activation);
    } else if (layer.type == "Rescale") {
        view.kind = core::LayerKind::rescale;
        view.scale = static_cast<T>(layer.scale);
        view.shift = static_cast<T>(layer.shift);
    } else if (layer.type == "Residual") {
        if (layer.block.empty()) refuse(label + " has an empty block");
        if (!layer.trainable) mark(layer, false);
        view.kind = core::LayerKind::residual;
        view.begin = views.size();
        for (std::size_t i = 0; i < layer.block.size(); ++i) {
            add(layer.block[i], name + ".block." + std::to_string(i), width);
        }
        if (width != view.in) {
            refuse(label + " has a block that makes " + std::to_string(width) + " values of " +
                   std::to_string(view.in) + ", expected as many");
        }
    } else if (layer.type != "Flatten") {
        refuse(label + " is no layer of the C++ API");
    }
    if (layer.type == "Flatten") return;
    views.push_back(view);
    origin.push_back(&layer);
    names.push_back(name + ".");
}

// Parameters and gradients get their memory here, each layer's after the last one's.
template <class T>
void Network<T>::Impl::bind() {
    std::size_t total = 0;
    for (const Layer* const layer : origin) {
        if (layer->type == "Dense")
            total += static_cast<std::size_t>(layer->out * (layer->in + (layer->bias ? 1 : 0)));
        if (layer->type == "BatchNorm" && layer->affine) total += static_cast<std::size_t>(2 * layer->in);
    }
    if (total == 0) refuse("layers: there are no parameters to train");
    parameters.resize(total);
    gradients.resize(total);
    statistics.resize(views.size());
    T* parameter = parameters.data();
    T* gradient = gradients.data();
    const auto take = [&](std::ptrdiff_t n, T*& value, T*& derivative) {
        value = std::exchange(parameter, parameter + n);
        derivative = std::exchange(gradient, gradient + n);
    };
    for (std::size_t k = 0; k < views.size(); ++k) {
        core::LayerView<T>& view = views[k];
        const Layer& layer = *origin[k];
        if (layer.type == "Dense") {
            take(layer.in * layer.out, view.weight, view.dweight);
            if (layer.bias) take(layer.out, view.bias, view.dbias);
        } else if (layer.type == "BatchNorm") {
            const auto channels = static_cast<std::size_t>(layer.in);
            if (layer.affine) {
                take(layer.in, view.weight, view.dweight);
                take(layer.in, view.bias, view.dbias);
                std::fill(view.weight, view.weight + channels, T(1));
            }
            if (layer.track_running_stats) {
                statistics[k].mean.assign(channels, T(0));
                statistics[k].var.assign(channels, T(1));
                view.running_mean = statistics[k].mean.data();
                view.running_var = statistics[k].var.data();
                view.tracked = &statistics[k].tracked;
            }
        }
    }
}

template <class T>
void Network<T>::Impl::initialize(std::uint64_t seed) {
    std::mt19937_64 rng(seed);
    for (std::size_t k = 0; k < views.size(); ++k) {
        const Layer& layer = *origin[k];
        if (layer.type != "Dense") continue;
        const auto in = static_cast<double>(layer.in), out = static_cast<double>(layer.out);
        const double limit = std::sqrt(6 / (in + out)), deviation = std::sqrt(2 / in);
        if (layer.init != "glorot" && layer.init != "he") {
            refuse("init is '" + layer.init + "', expected glorot or he");
        }
        for (std::ptrdiff_t j = 0; j < layer.in * layer.out; ++j) {
            views[k].weight[j] =
                static_cast<T>(layer.init == "he" ? deviation * normal(rng) : limit * (2 * uniform(rng) - 1));
        }
    }
}

template <class T>
core::Engine<T>& Network<T>::Impl::engine_for(const Dataset<T>& data, Optimizer<T>& optimizer,
                                              std::size_t batch) {
    if ((data.x == nullptr) == (data.bytes == nullptr)) refuse("data: expected either x or bytes");
    if ((data.labels == nullptr) == (data.targets == nullptr))
        refuse("data: expected either labels or targets");
    if (data.examples == 0) refuse("data has no examples");
    if (optimizer.size() != parameters.size()) {
        refuse("optimizer is of " + std::to_string(optimizer.size()) + " elements, expected " +
               std::to_string(parameters.size()) + ", the number of parameters");
    }
    const std::size_t rest = data.examples % batch;
    for (const auto& view : views) {
        const std::ptrdiff_t values = static_cast<std::ptrdiff_t>(rest == 0 ? batch : rest) *
                                      (view.channels > 0 ? view.in / view.channels : 2);
        const bool takes_statistics = view.trainable || view.running_mean == nullptr;
        if (values < 2 && takes_statistics)
            refuse("a batch of 1 example cannot be normalised: choose another batch size");
    }
    if (data.labels != nullptr) {
        for (std::size_t i = 0; i < data.examples; ++i) {
            if (data.labels[i] < 0 || data.labels[i] >= views.back().out) {
                refuse("labels[" + std::to_string(i) + "] is " + std::to_string(data.labels[i]) +
                       ", expected a class in [0, " + std::to_string(views.back().out) + ")");
            }
        }
    }
    const auto kind = data.labels != nullptr ? core::LossKind::cross_entropy : core::LossKind::pointwise;
    if (engine == nullptr || engine->capacity() < batch || loss != kind) {
        engine = std::make_unique<core::Engine<T>>(views, core::LossView<T>::of(kind), batch);
        loss = kind;
    }
    optimizer.prepare();
    engine->clear();
    const auto all = optimizer.impl_->array(parameters.data());
    std::size_t begin = 0, end = 0;  // of parameters that are trained, and follow each other
    const auto add_part = [&] {
        if (begin < end) engine->add(core::part_of<T>(all, begin, end), gradients.data() + begin);
    };
    for (const auto& view : views) {
        const std::size_t size = parameters_of(view);
        if (!view.trainable) {
            add_part();
            begin = end + size;
        }
        end += size;
    }
    add_part();
    if (engine->arrays() == 0) refuse("all layers are frozen: there is nothing to train");
    return *engine;
}

template <class T>
void Network<T>::Impl::run(core::Engine<T>& with, const core::Examples<T>& of, std::size_t examples,
                           std::size_t batch, Optimizer<T>& optimizer, bool keep_gradients,
                           core::Outcome& outcome) {
    optimizer.prepare();  // its options may have changed since the last epoch
    optimizer.check();
    core::StepOptions options;
    options.keep_gradients = keep_gradients;
    options.max_grad_norm = optimizer.max_grad_norm;
    options.nonfinite = optimizer.nonfinite;
    for (std::size_t begin = 0; begin < examples; begin += kChunk * batch) {
        const std::size_t end = std::min(examples, begin + kChunk * batch);
        std::size_t filled = 0, width = 0;
        after.assign(1, optimizer.progress());
        for (std::size_t at = begin; at < end; at += batch) {
            Progress now;
            const Row row = optimizer.next(after.back(), now);
            after.push_back(now);
            width = static_cast<std::size_t>(row.count);
            rows.resize(std::max(rows.size(), kChunk * width));
            for (std::size_t i = 0; i < width; ++i) rows[filled++] = static_cast<T>(row.values[i]);
        }
        const std::size_t steps = outcome.steps, skipped = outcome.skipped;
        with.train(of, begin, end, batch, rows.data(), width, options, outcome);
        optimizer.impl_->progress = after[outcome.steps - steps];
        optimizer.skipped += outcome.skipped - skipped;
        if (outcome.wrong >= 0) throw std::domain_error("a gradient holds NaN or infinity");
    }
}

template <class T>
Network<T>::Network(const std::vector<Layer>& layers, std::uint64_t seed)
    : impl_(std::make_unique<Impl>(layers)) {
    impl_->initialize(seed);
}
template <class T>
Network<T>::Network(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
template <class T>
Network<T>::~Network() = default;
template <class T>
Network<T>::Network(Network&&) noexcept = default;
template <class T>
Network<T>& Network<T>::operator=(Network&&) noexcept = default;

template <class T>
std::size_t Network<T>::inputs() const {
    return static_cast<std::size_t>(impl_->views.front().in);
}
template <class T>
std::size_t Network<T>::outputs() const {
    return static_cast<std::size_t>(impl_->views.back().out);
}
template <class T>
const std::vector<Layer>& Network<T>::layers() const {
    return impl_->layers;
}
template <class T>
T* Network<T>::parameters() {
    return impl_->parameters.data();
}
template <class T>
T* Network<T>::gradients() {
    return impl_->gradients.data();
}
template <class T>
std::size_t Network<T>::parameter_count() const {
    return impl_->parameters.size();
}

template <class T>
void Network<T>::set_trainable(std::size_t layer, bool trainable) {
    if (layer >= impl_->layers.size()) {
        refuse("layer is " + std::to_string(layer) + ", expected less than " +
               std::to_string(impl_->layers.size()));
    }
    const typename Impl::Busy busy(*impl_);
    mark(impl_->layers[layer], trainable);
    for (std::size_t k = 0; k < impl_->views.size(); ++k) {
        impl_->views[k].trainable = impl_->origin[k]->trainable;
    }
    impl_->engine.reset();  // which has copies of the views
}

template <class T>
EpochResult Network<T>::fit(const Dataset<T>& data, Optimizer<T>& optimizer, const FitOptions& options) {
    if (options.epochs < 1) refuse("epochs is " + std::to_string(options.epochs) + ", expected at least 1");
    const std::size_t batch =
        options.batch_size == 0 ? data.examples : std::min(options.batch_size, data.examples);
    if (data.examples == 0) refuse("data has no examples");
    const typename Impl::Busy busy(*impl_);
    core::Engine<T>& engine = impl_->engine_for(data, optimizer, batch);
    std::mt19937_64 rng(options.seed);
    std::vector<std::int64_t> order(data.examples);
    std::iota(order.begin(), order.end(), 0);
    const core::Examples<T> of = {
        data.x, data.bytes, data.labels, data.targets, options.shuffle ? order.data() : nullptr, nullptr};
    EpochResult result;
    for (int epoch = 0; epoch < options.epochs; ++epoch) {
        if (options.shuffle) {  // Fisher and Yates
            for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[rng() % (i + 1)]);
        }
        core::Outcome outcome;
        impl_->run(engine, of, data.examples, batch, optimizer, false, outcome);
        const auto examples = static_cast<double>(data.examples);
        result = {outcome.loss / examples, static_cast<double>(outcome.correct) / examples};
        if (options.after_epoch && !options.after_epoch(epoch, result)) break;
    }
    return result;
}

template <class T>
double Network<T>::step(const Dataset<T>& data, Optimizer<T>& optimizer) {
    if (data.examples == 0) refuse("data has no examples");
    const typename Impl::Busy busy(*impl_);
    core::Engine<T>& engine = impl_->engine_for(data, optimizer, data.examples);
    core::Outcome outcome;
    impl_->run(engine, {data.x, data.bytes, data.labels, data.targets, nullptr, nullptr}, data.examples,
               data.examples, optimizer, true, outcome);
    return outcome.loss / static_cast<double>(data.examples);
}

template <class T>
void Network<T>::predict(const T* x, std::size_t examples, T* y) const {
    core::Engine<T> engine(impl_->views, core::LossView<T>::of(core::LossKind::pointwise),
                           std::min(std::max<std::size_t>(examples, 1), kPredictBatch));
    for (std::size_t begin = 0; begin < examples; begin += kPredictBatch) {
        const std::size_t n = std::min(kPredictBatch, examples - begin);
        const T* const output = engine.predict(x + begin * inputs(), n);
        std::copy(output, output + n * outputs(), y + begin * outputs());
    }
}

void set_num_threads(int n) {
    if (n < 1) refuse("n is " + std::to_string(n) + ", expected at least 1");
    core::set_num_threads(n);
}
int get_num_threads() { return core::get_num_threads(); }

// checkpoint.cpp has save and load
template class Network<float>;
template class Network<double>;

}  // namespace pyoptim
