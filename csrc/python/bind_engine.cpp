// The training engine over arrays that Python owns.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "engine/engine.hpp"
#include "engine/hogwild.hpp"
#include "layers/activation_names.hpp"
#include "layers/losses.hpp"
#include "python/arrays.hpp"
#include "python/penalized.hpp"
#include "python/rule_info.hpp"

namespace pyoptim::python {

namespace {

using core::LayerKind;
using Description = py::typing::Dict<py::str, py::object>;  // of a layer, or a loss

// What a description holds under `name`; `otherwise` where it has no such entry.
template <class Value>
Value entry(const Description& layer, const char* name, Value otherwise) {
    return layer.contains(name) ? layer[name].cast<Value>() : otherwise;
}

LayerKind kind_from(const std::string& name) {
    if (name == "dense") return LayerKind::dense;
    if (name == "activation") return LayerKind::activation;
    if (name == "batch_norm") return LayerKind::batch_norm;
    if (name == "layer_norm") return LayerKind::layer_norm;
    if (name == "rescale") return LayerKind::rescale;
    if (name == "dropout") return LayerKind::dropout;
    if (name == "gaussian_noise") return LayerKind::gaussian_noise;
    if (name == "residual") return LayerKind::residual;
    throw py::value_error("there is no compiled layer named '" + name + "'");
}

template <class T>
class Engine {
  public:
    // One tuple per group: the rule's name, and per parameter: itself, its gradient, its states.
    using Parameter = std::tuple<Array<T>, Array<T>, std::vector<Array<T>>>;
    using Group = std::tuple<std::string, std::vector<Parameter>>;
    // All parameters, all gradients, the runs that are counted, l2, l1.
    using Penalty = std::optional<std::tuple<Array<T>, Array<T>, Runs, double, double>>;
    // All parameters, and of their noise the standard deviation, the seed, and the next step.
    using Noise = std::optional<std::tuple<Array<T>, double, std::uint64_t, std::uint64_t>>;

    Engine(const std::vector<Description>& layers, const Description& loss, std::size_t capacity,
           const std::vector<Group>& groups, bool hogwild, const Penalty& penalty)
        : engine_(views(layers), view(loss, layers), capacity) {
        if (hogwild) hogwild_.emplace(views(layers), view(loss, layers), capacity);
        for (const auto& [name, parameters] : groups) {
            const int rule = rule_index(name);
            for (const auto& [parameter, gradient, states] : parameters) {
                require(gradient.size() == parameter.size() &&
                            static_cast<int>(states.size()) == kRules[rule].states,
                        "a parameter, its gradient and its states");
                typename core::Stepper<T>::Array array{
                    rule, row_, claim(parameter), {}, static_cast<std::size_t>(parameter.size()), nullptr};
                for (std::size_t k = 0; k < states.size(); ++k) {
                    require(states[k].size() == parameter.size(), "a state and its parameter");
                    array.state[k] = claim(states[k]);
                }
                if (hogwild_) {
                    hogwild_->add(array, claim(gradient));
                } else {
                    engine_.add(array, claim(gradient));
                }
            }
            row_ += static_cast<std::size_t>(kRules[rule].coefficients);
        }
        require(!hogwild || !penalty, "hogwild, and a penalty");
        if (penalty) {
            const auto& [parameters, gradients, runs, l2, l1] = *penalty;
            engine_.set_penalty(penalized<T>(parameters, gradients, runs, l2, l1));
            kept_.push_back(parameters);
            kept_.push_back(gradients);
        }
    }

    // Of an epoch that goes on, the sums of what is done.
    void begin_epoch(double loss, std::size_t correct, const Noise& noise) {
        require(!hogwild_ || !noise, "hogwild, and noise");
        core::WeightNoise<T> own{};
        if (noise) {
            const auto& [parameters, deviation, seed, step] = *noise;
            own = {claim(parameters), static_cast<std::size_t>(parameters.size()), deviation, {seed, step}};
        }
        engine_.set_noise(own);
        outcome = {};
        outcome.loss = loss;
        outcome.correct = correct;
    }

    // Trains on the examples [begin, end) of `order`; one row of coefficients per step.
    void train(const py::array& x, const py::array& target, const MaybeArray<std::int64_t>& order,
               const MaybeArray<T>& weight, std::pair<std::size_t, std::size_t> range, std::size_t batch,
               const Array<double>& rows, double max_grad_norm, const std::string& nonfinite) {
        const auto [begin, end] = range;
        const auto examples = static_cast<std::size_t>(x.ndim() > 0 ? x.shape(0) : 0);
        require(batch > 0 && batch <= engine_.capacity() && begin <= end && end <= examples &&
                    (!order || static_cast<std::size_t>(order->size()) == examples) &&
                    (!weight || static_cast<std::size_t>(weight->size()) == examples),
                "batch, range, order and weight of the examples");
        require(rows.ndim() == 2 && static_cast<std::size_t>(rows.shape(1)) == row_ &&
                    static_cast<std::size_t>(rows.shape(0)) * batch + batch > end - begin,
                "coefficients and steps");
        core::Examples<T> of{};
        require(static_cast<std::size_t>(x.size()) == examples * engine_.inputs(), "x and the inputs");
        if (py::isinstance<Array<std::uint8_t>>(x)) {
            of.bytes = static_cast<const std::uint8_t*>(x.data());
        } else {
            require(py::isinstance<Array<T>>(x), "x is of another type");
            of.x = static_cast<const T*>(x.data());
        }
        of.weight = data_or_null(weight);
        if (py::isinstance<Array<std::int64_t>>(target)) {
            require(takes_labels_ && static_cast<std::size_t>(target.size()) == examples,
                    "labels (examples)");
            of.labels = static_cast<const std::int64_t*>(target.data());
            for (std::size_t i = 0; i < examples && begin == 0; ++i) {
                require(of.labels[i] >= 0 && of.labels[i] < static_cast<std::int64_t>(engine_.outputs()),
                        "labels within the classes");
            }
        } else {
            require(py::isinstance<Array<T>>(target) &&
                        static_cast<std::size_t>(target.size()) == examples * engine_.outputs(),
                    "targets (examples, outputs)");
            of.targets = static_cast<const T*>(target.data());
        }
        if (order) {
            of.order = order->data();
            for (std::size_t i = begin; i < end; ++i) {
                require(of.order[i] >= 0 && static_cast<std::size_t>(of.order[i]) < examples,
                        "order within the examples");
            }
        }
        core::StepOptions options;
        options.max_grad_norm = max_grad_norm;
        if (nonfinite == "raise") options.nonfinite = NonFinite::raise;
        if (nonfinite == "skip") options.nonfinite = NonFinite::skip;
        const std::vector<T> cast(rows.data(), rows.data() + rows.size());
        require(!hogwild_ || (options.max_grad_norm <= 0 && options.nonfinite == NonFinite::ignore),
                "hogwild, and options of the step");
        py::gil_scoped_release release;
        if (hogwild_) return hogwild_->train(of, begin, end, batch, cast.data(), row_, outcome);
        engine_.train(of, begin, end, batch, cast.data(), row_, options, outcome);
    }

    core::Outcome outcome;

  private:
    T* claim(Array<T> array) {
        kept_.push_back(array);
        return array.mutable_data();  // throws if read-only
    }

    T* find(const Description& layer, const char* name, py::ssize_t size) {
        if (!layer.contains(name)) return nullptr;
        require(py::isinstance<Array<T>>(layer[name]), "an array of a layer is of another type");
        auto array = layer[name].cast<Array<T>>();
        require(array.size() == size, "an array of a layer");
        return claim(array);
    }

    std::int64_t* counter(const Description& layer, const char* name) {
        if (!layer.contains(name)) return nullptr;
        auto array = layer[name].cast<Array<std::int64_t>>();
        require(array.size() == 1, name);
        kept_.push_back(array);
        return array.mutable_data();
    }

    core::LossView<T> view(const Description& loss, const std::vector<Description>& layers) {
        const auto outputs = layers.back()["out"].cast<py::ssize_t>();
        const auto kind = loss["kind"].cast<std::string>();
        takes_labels_ = kind == "cross_entropy";
        if (takes_labels_) {
            auto view = core::LossView<T>::of(core::LossKind::cross_entropy);
            view.class_weight = find(loss, "class_weight", outputs);
            view.smoothing = entry<double>(loss, "smoothing", 0);
            return view;
        }
        if (kind == "kl_divergence") {
            auto view = core::LossView<T>::of(core::LossKind::kl_divergence);
            view.temperature = entry<double>(loss, "temperature", 1);
            return view;
        }
        auto view = core::LossView<T>::of(core::LossKind::pointwise);
        view.pointwise = {core::pointwise_named(kind), static_cast<T>(entry<double>(loss, "parameter", 1)),
                          find(loss, "columns", outputs)};
        return view;
    }

    std::vector<core::LayerView<T>> views(const std::vector<Description>& layers) {
        require(!layers.empty(), "there are no layers");
        std::vector<core::LayerView<T>> all;
        for (const Description& layer : layers) {
            core::LayerView<T> view;
            view.kind = kind_from(layer["kind"].cast<std::string>());
            view.in = layer["in"].cast<std::ptrdiff_t>();
            view.out = layer["out"].cast<std::ptrdiff_t>();
            require(view.in > 0 && view.out > 0 && (all.empty() || all.back().out == view.in), "layers");
            const auto activation = entry<std::string>(layer, "activation", "");
            view.activation = view.kind == LayerKind::activation ? core::any_activation_named(activation)
                                                                 : core::activation_named(activation);
            view.a = entry<double>(layer, "a", 0);
            view.b = entry<double>(layer, "b", 0);
            const bool dense = view.kind == LayerKind::dense;
            require(dense || view.in == view.out, "inputs and outputs of a layer");
            view.channels = entry<std::ptrdiff_t>(layer, "channels", 1);
            require(view.channels > 0 && view.in % view.channels == 0, "channels");
            const std::ptrdiff_t own = dense ? view.out : view.channels;
            view.weight = find(layer, "weight", dense ? view.out * view.in : own);
            view.dweight = find(layer, "dweight", dense ? view.out * view.in : own);
            view.bias = find(layer, "bias", own);
            view.dbias = find(layer, "dbias", own);
            require(!dense || view.weight != nullptr, "a dense layer has a weight");
            require(!view.weight == !view.dweight && !view.bias == !view.dbias, "gradients");
            view.eps = entry<double>(layer, "eps", 0);
            view.momentum = entry<double>(layer, "momentum", 0);
            view.unbiased = entry<bool>(layer, "unbiased", true);
            view.running_mean = find(layer, "running_mean", own);
            view.running_var = find(layer, "running_var", own);
            view.tracked = counter(layer, "tracked");
            view.seed = counter(layer, "seed");
            view.step = counter(layer, "step");
            view.amount = entry<double>(layer, "amount", 0);
            const bool is_random = view.kind == LayerKind::dropout || view.kind == LayerKind::gaussian_noise;
            require(!is_random || (view.seed != nullptr && view.step != nullptr), "seed and step");
            require(!view.running_mean == !view.tracked && !view.running_var == !view.tracked, "statistics");
            view.scale = static_cast<T>(entry<double>(layer, "scale", 1));
            view.shift = static_cast<T>(entry<double>(layer, "shift", 0));
            view.trainable = entry<bool>(layer, "trainable", true);
            view.begin = entry<std::size_t>(layer, "begin", 0);
            require(view.begin <= all.size() && (view.kind != LayerKind::residual ||
                                                 view.begin == all.size() || all[view.begin].in == view.in),
                    "the block of a residual layer");
            all.push_back(view);
        }
        return all;
    }

    std::vector<py::array> kept_;  // alive
    std::size_t row_ = 0;          // coefficients of a step
    bool takes_labels_ = false;
    core::Engine<T> engine_;
    std::optional<core::Hogwild<T>> hogwild_;  // trains instead
};

template <class T>
void bind_for(py::module_& m, const char* name) {
    using E = Engine<T>;
    const auto outcome = [](auto member) { return [member](const E& self) { return self.outcome.*member; }; };
    py::class_<E>(m, name)
        .def(py::init<const std::vector<Description>&, const Description&, std::size_t,
                      const std::vector<typename E::Group>&, bool, const typename E::Penalty&>(),
             py::arg("layers"), py::arg("loss"), py::arg("capacity"), py::arg("groups"), py::arg("hogwild"),
             py::arg("penalty").none(true))
        .def("begin_epoch", &E::begin_epoch, py::arg("loss"), py::arg("correct"), py::arg("noise").none(true))
        .def("train", &E::train, py::arg("x"), py::arg("target"), py::arg("order").noconvert().none(true),
             py::arg("weight").noconvert().none(true), py::arg("range"), py::arg("batch"),
             py::arg("rows").noconvert(), py::arg("max_grad_norm"), py::arg("nonfinite"))
        .def_property_readonly("steps", outcome(&core::Outcome::steps))
        .def_property_readonly("skipped", outcome(&core::Outcome::skipped))
        .def_property_readonly("wrong", outcome(&core::Outcome::wrong))
        .def_property_readonly("loss", outcome(&core::Outcome::loss))
        .def_property_readonly("correct", outcome(&core::Outcome::correct));
}

}  // namespace

void bind_engine(py::module_& m) {
    bind_for<float>(m, "Engine32");
    bind_for<double>(m, "Engine64");
}

}  // namespace pyoptim::python
