#include "pyoptim/network.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <variant>

#include "api/inputs.hpp"
#include "api/network_impl.hpp"
#include "api/optimizer_impl.hpp"
#include "optim/rule_info.hpp"
#include "runtime/parallel.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim {

namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

double uniform(std::mt19937_64& rng) { return static_cast<double>(rng() >> 11) * 0x1p-53; }

double normal(std::mt19937_64& rng) {  // Box & Muller 1958
    const double radius = std::sqrt(-2 * std::log(1 - uniform(rng)));
    return radius * std::cos(6.283185307179586 * uniform(rng));
}

// Draws a weight of a Dense layer, as its init says.
template <class T>
void draw_weight(const Layer& layer, std::mt19937_64& rng, T* weight, std::ptrdiff_t size) {
    if (layer.init != "glorot" && layer.init != "he") {
        refuse("init is '" + layer.init + "', expected glorot or he");
    }
    const auto in = static_cast<double>(layer.in), out = static_cast<double>(layer.out);
    const double limit = std::sqrt(6 / (in + out)), deviation = std::sqrt(2 / in);
    for (std::ptrdiff_t j = 0; j < size; ++j) {
        weight[j] =
            static_cast<T>(layer.init == "he" ? deviation * normal(rng) : limit * (2 * uniform(rng) - 1));
    }
}

// Whether two losses are of one kind, with the same options.
bool same(const Loss& a, const Loss& b) {
    if (a.type != b.type) return false;
    for (const core::Option<Loss>& option : core::loss_entry(a.type).options) {
        if (!std::visit([&](auto member) { return a.*member == b.*member; }, option.member)) return false;
    }
    return true;
}

}  // namespace

Layer layer(const std::string& type) {
    Layer made;
    made.type = type;
    return made;
}

Layer dense(std::ptrdiff_t in, std::ptrdiff_t out, const std::string& activation, const std::string& init) {
    Layer made = layer("Dense");
    made.in = in;
    made.out = out;
    made.activation = activation;
    made.init = init;
    return made;
}

Layer batch_norm(std::ptrdiff_t features) {
    Layer made = layer("BatchNorm");
    made.in = made.out = features;
    return made;
}

Layer layer_norm(std::ptrdiff_t features) {
    Layer made = layer("LayerNorm");
    made.features = {features};
    return made;
}

Layer dropout(double p) {
    Layer made = layer("Dropout");
    made.p = p;
    return made;
}

Layer gaussian_noise(double deviation) {
    Layer made = layer("GaussianNoise");
    made.deviation = deviation;
    return made;
}

Layer activation(const std::string& name) {
    Layer made = layer("Activation");  // resolve_activation() finds the kind of layer by the name
    made.activation = name;
    return made;
}

Layer residual(std::vector<Layer> block) {
    Layer made = layer("Residual");
    made.block = std::move(block);
    return made;
}

Layer custom(std::shared_ptr<AnyCustomLayer> own) {
    if (own == nullptr) refuse("layer is null, expected a layer of your own");
    Layer made = layer("Custom");
    made.custom = std::move(own);
    return made;
}

Layer rescale(double scale, double shift) {
    Layer made = layer("Rescale");
    made.scale = scale;
    made.shift = shift;
    return made;
}

// Allocates the memory of parameters, gradients and buffers.
template <class T>
Network<T>::Impl::Impl(const std::vector<Layer>& given)
    : chain(given, core::inputs_of(given)),
      parameters(chain.parameter_count()),
      gradients(chain.parameter_count()) {
    chain.bind(parameters.data(), gradients.data());
    for (core::LayerView<T>& view : chain.views()) {
        for (core::LayerArray<T>& array : view.arrays) {
            if (array.role == core::Role::counter) array.count = &counters.emplace_back(0);
            if (array.role != core::Role::buffer) continue;
            array.value = buffers.emplace_back(static_cast<std::size_t>(array.size())).data();
        }
    }
}

template <class T>
void Network<T>::Impl::initialize(std::uint64_t seed) {
    std::mt19937_64 rng(seed);
    for (const core::LayerView<T>& view : chain.views()) {
        for (const core::LayerArray<T>& array : view.arrays) {
            const std::ptrdiff_t size = array.size();
            switch (array.initial) {
                case core::Initial::zeros:
                    break;
                case core::Initial::ones:
                    std::fill(array.value, array.value + size, T(1));
                    break;
                case core::Initial::seed:
                    *array.count = static_cast<std::int64_t>(rng() >> 1);
                    break;
                case core::Initial::custom:
                    core::custom_layer<T>(*view.layer).initialize(array.value, rng());
                    break;
                case core::Initial::weight:
                    draw_weight(*view.layer, rng, array.value, size);
                    break;
            }
        }
    }
}

template <class T>
void Network<T>::Impl::check_size(const Optimizer<T>& optimizer) const {
    if (optimizer.size() == parameters.size()) return;
    refuse("optimizer is of " + std::to_string(optimizer.size()) + " elements, expected " +
           std::to_string(parameters.size()) + ", the number of parameters");
}

template <class T>
void Network<T>::Impl::check_data(const Dataset<T>& data) const {
    if ((data.x == nullptr) == (data.bytes == nullptr)) refuse("data: expected either x or bytes");
    if ((data.labels == nullptr) == (data.targets == nullptr))
        refuse("data: expected either labels or targets");
    const auto inputs = static_cast<std::size_t>(chain.views().front().in.size);
    core::checked_product("data.examples", data.examples, inputs);
    core::checked_product("data.examples", data.examples, chain.views().back().out.size);
    if (data.x != nullptr) core::check_inputs(data.x, data.examples, inputs);
    for (std::size_t i = 0; i < data.examples && data.weight != nullptr; ++i) {
        const auto weight = static_cast<double>(data.weight[i]);
        if (core::kNotNegative.contains(weight)) continue;
        refuse("weight[" + std::to_string(i) + "] is " + std::to_string(weight) +
               ", expected a finite number >= 0");
    }
}

template <class T>
void Network<T>::Impl::check(const Dataset<T>& data, const Optimizer<T>& optimizer, std::size_t batch,
                             bool drop_last) const {
    check_data(data);
    check_size(optimizer);
    const std::size_t rest = drop_last ? 0 : data.examples % batch;
    check_batch(rest == 0 ? batch : rest);
}

template <class T>
void Network<T>::Impl::check_batch(std::size_t smallest) const {
    for (const core::LayerView<T>& view : chain.views()) {
        const std::ptrdiff_t values = view.entry->statistics(*view.layer, view.in.size, true);
        if (smallest == 1 && values == 1)
            refuse("a batch of 1 example cannot be normalised: choose another batch size");
    }
}

// Refuses labels and targets that the loss cannot take.
template <class T>
void check_targets(const Dataset<T>& data, const core::LossEntry& loss, std::size_t outputs) {
    const auto wrong = [](const char* name, std::size_t i, const std::string& value,
                          const std::string& range) {
        refuse(std::string(name) + "[" + std::to_string(i) + "] is " + value + ", expected " + range);
    };
    if (data.labels != nullptr && !loss.classification) {
        refuse(std::string("data has labels, which ") + loss.type + " does not take, expected targets");
    }
    for (std::size_t i = 0; i < data.examples && data.labels != nullptr; ++i) {
        if (data.labels[i] >= 0 && data.labels[i] < static_cast<std::int64_t>(outputs)) continue;
        wrong("labels", i, std::to_string(data.labels[i]), "a class in [0, " + std::to_string(outputs) + ")");
    }
    for (std::size_t i = 0; i < data.examples * outputs && data.targets != nullptr; ++i) {
        const auto value = static_cast<double>(data.targets[i]);
        const bool at_end = value == loss.targets.low || value == loss.targets.high;
        if (loss.targets.contains(value) && (at_end || !loss.only_ends)) continue;
        wrong("targets", i, std::to_string(value), loss.targets.expected);
    }
}

template <class T>
Loss Network<T>::Impl::loss_for(const Dataset<T>& data, Loss wanted) const {
    if (wanted.type.empty()) wanted.type = data.labels != nullptr ? "CrossEntropy" : "MSE";
    check_targets(data, core::loss_entry(wanted.type),
                  static_cast<std::size_t>(chain.views().back().out.size));
    return wanted;
}

template <class T>
core::Engine<T>& Network<T>::Impl::engine_for(const Dataset<T>& data, Optimizer<T>& optimizer, Loss wanted,
                                              std::size_t batch, bool drop_last) {
    check(data, optimizer, batch, drop_last);
    wanted = loss_for(data, std::move(wanted));
    if (engine == nullptr || engine->capacity() < batch || !same(loss, wanted)) {
        engine = std::make_unique<core::Engine<T>>(chain.views(), wanted, batch);
        loss = wanted;
    }
    engine->clear();
    can_undo = false;
    add_parts(*engine, optimizer);
    return *engine;
}

template <class T>
const core::Runs& Network<T>::Impl::trained() {
    learning.clear();
    std::size_t begin = 0, end = 0;  // a run of parameters, one after the other, that are trained
    const auto add = [&] {
        if (begin < end) learning.emplace_back(begin, end);
    };
    for (const core::LayerView<T>& view : chain.views()) {
        std::size_t size = 0;
        for (const core::ArrayInfo& array : view.arrays) {
            if (array.role == core::Role::parameter) size += static_cast<std::size_t>(array.size());
        }
        if (!view.layer->trainable) {
            add();
            begin = end + size;
        }
        end += size;
    }
    add();
    if (learning.empty()) refuse("all layers are frozen: there is nothing to train");
    return learning;
}

template <class T>
void Network<T>::Impl::find_parts(const Optimizer<T>& optimizer) {
    optimizer.impl_->find_parts(trained(), parts);
    if (parts.empty()) refuse("the arrays of the optimizer have no element that learns");
}

template <class T>
template <class Engine>
void Network<T>::Impl::add_parts(Engine& to, Optimizer<T>& optimizer) {
    const std::vector<Optimizer<T>*>& groups = optimizer.impl_->all;
    const bool plain = optimizer.impl_->is_plain(optimizer);
    optimizer.impl_->share_options(optimizer);
    for (Optimizer<T>* const group : groups) group->prepare();
    find_parts(optimizer);
    std::size_t row = 0, group = 0;  // where the row of a group begins, in those of a step
    for (const core::Part& part : parts) {
        while (group < part.group) {
            row += static_cast<std::size_t>(core::kRules[groups[group++]->impl_->rule].coefficients);
        }
        typename core::Stepper<T>::Array array{
            static_cast<int>(cpu::RuleId::sgd),
            0,
            parameters.data() + part.begin,
            {},
            part.end - part.begin,
            nullptr};  // of a step that the optimizer takes itself, the engine reads no more than this
        if (plain) array = groups[group]->impl_->array(parameters.data(), part, row);
        to.add(array, gradients.data() + part.begin);
    }
}

// Computes the coefficients of the steps to come, those of all groups end to end in each.
template <class T>
std::size_t Network<T>::Impl::plan(const std::vector<Optimizer<T>*>& groups, std::size_t steps,
                                   std::size_t& width, std::exception_ptr& failure) {
    after.resize(groups.size());
    for (std::size_t g = 0; g < groups.size(); ++g) after[g].assign(1, groups[g]->progress());
    std::size_t filled = 0;
    for (std::size_t step = 0; step < steps; ++step) {
        for (std::size_t g = 0; g < groups.size(); ++g) {
            Progress now;
            Row row = {};
            try {
                row = groups[g]->next(after[g].back(), now);
            } catch (...) {
                failure = std::current_exception();
                return step;
            }
            after[g].push_back(now);
            const auto length = static_cast<std::size_t>(row.count);
            if (rows.size() < filled + length) rows.resize(std::max(2 * rows.size(), filled + length));
            for (std::size_t i = 0; i < length; ++i) rows[filled++] = static_cast<T>(row.values[i]);
        }
        if (step == 0) width = filled;
    }
    return steps;
}

template <class T>
bool Network<T>::Impl::run(core::Engine<T>& with, const core::Examples<T>& of, std::size_t examples,
                           std::size_t batch, Optimizer<T>& optimizer, core::StepOptions options,
                           core::Outcome& outcome, const Pace& pace) {
    optimizer.check();  // its options may have changed since the last epoch
    options.max_grad_norm = optimizer.max_grad_norm;
    options.nonfinite = optimizer.nonfinite;
    const std::vector<Optimizer<T>*>& groups = optimizer.impl_->all;
    optimizer.impl_->share_options(optimizer);
    const bool plain = optimizer.impl_->is_plain(optimizer);
    std::exception_ptr failure;  // of a step that the optimizer takes itself, or of a schedule
    std::function<core::StepTaken()> take;
    if (!plain) {
        trained();
        take = [&] {
            using Taken = typename Optimizer<T>::Impl::Taken;
            try {
                const Taken taken =
                    optimizer.impl_->take(optimizer, parameters.data(), gradients.data(), learning);
                return taken == Taken::yes       ? core::StepTaken::yes
                       : taken == Taken::skipped ? core::StepTaken::skipped
                                                 : core::StepTaken::refused;
            } catch (...) {
                failure = std::current_exception();
                return core::StepTaken::refused;
            }
        };
        options.step = &take;
    }
    for (std::size_t begin = 0; begin < examples; begin += pace.steps * batch) {
        std::size_t end = std::min(examples, begin + pace.steps * batch), width = 0;
        if (plain) {
            const std::size_t planned = plan(groups, (end - begin + batch - 1) / batch, width, failure);
            if (planned == 0) std::rethrow_exception(failure);
            end = std::min(end, begin + planned * batch);
        }
        const std::size_t steps = outcome.steps, skipped = outcome.skipped;
        const auto advance = [&] {
            if (!plain) return;
            for (std::size_t g = 0; g < groups.size(); ++g) {
                groups[g]->impl_->progress = after[g][outcome.steps - steps];
            }
            optimizer.skipped += outcome.skipped - skipped;
        };
        try {
            if (pace.hogwild != nullptr) {
                pace.hogwild->train(of, begin, end, batch, rows.data(), width, outcome);
            } else {
                with.train(of, begin, end, batch, rows.data(), width, options, outcome);
            }
        } catch (...) {  // the steps before are done
            advance();
            throw;
        }
        advance();
        const bool wrong = outcome.wrong >= 0;  // in a step before the one that a schedule fails for
        if (failure && !(plain && wrong)) std::rethrow_exception(failure);
        if (wrong) throw std::domain_error("a gradient holds NaN or infinity");
        if (pace.advanced && !pace.advanced(end)) return false;
    }
    return true;
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
    return static_cast<std::size_t>(impl_->chain.views().front().in.size);
}
template <class T>
std::size_t Network<T>::outputs() const {
    return static_cast<std::size_t>(impl_->chain.views().back().out.size);
}
template <class T>
const std::vector<Layer>& Network<T>::layers() const {
    return impl_->chain.layers();
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
    std::vector<Layer>& layers = impl_->chain.layers();
    if (layer >= layers.size()) {
        refuse("layer is " + std::to_string(layer) + ", expected less than " + std::to_string(layers.size()));
    }
    const typename Impl::Busy busy(*impl_);
    core::set_trainable(layers[layer], trainable);
    impl_->engine.reset();  // an engine reads `trainable` only when it is made
    impl_->passes.reset();
    impl_->can_undo = false;
}

template <class T>
void Network<T>::predict(const T* x, std::size_t examples, T* y) const {
    if (examples > 0 && (x == nullptr || y == nullptr)) refuse("x or y is null");
    if (impl_->predictor == nullptr) {
        impl_->predictor = std::make_unique<core::Predictor<T>>(impl_->chain.views());
    }
    const core::ThreadLimit limit(impl_->thread_limit);
    if (!impl_->predictor->predict({examples, x, nullptr, y}, examples, true)) {
        core::refuse_inputs(x, inputs());
    }
}

void set_num_threads(int n) {
    const int most = core::most_threads();
    if (n < 1 || n > most) {
        refuse("n is " + std::to_string(n) + ", expected between 1 and " + std::to_string(most));
    }
    core::set_num_threads(n);
}
int get_num_threads() { return core::get_num_threads(); }

template void Network<float>::Impl::add_parts(core::Hogwild<float>&, Optimizer<float>&);
template void Network<double>::Impl::add_parts(core::Hogwild<double>&, Optimizer<double>&);

// checkpoint.cpp has save and load, network_fit.cpp fit, step and evaluate, network_state.cpp the rest
template class Network<float>;
template class Network<double>;

}  // namespace pyoptim
