// The training engine over arrays that Python owns.
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.hpp"
#include "engine/hogwild.hpp"
#include "optim/rule_info.hpp"
#include "python/bound_chain.hpp"
#include "python/penalized.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim::python {

namespace {

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
    // Of sparse examples whose values are x: the columns of the values, and where each row begins.
    using Sparse = std::optional<std::pair<Array<std::int32_t>, Array<std::int64_t>>>;

    // loss: as the JSON {"type": ..., ...}
    Engine(const Model<T>& model, const std::string& loss, std::size_t capacity,
           const std::vector<Group>& groups, bool hogwild, const Penalty& penalty,
           std::optional<double> mean_factor, double sharpness_aware)
        : chain_(model),
          engine_(chain_.views(), core::loss_from(loss), capacity),
          takes_labels_(core::loss_entry(core::loss_from(loss).type).classification),
          sharpness_aware_(sharpness_aware) {
        require(!hogwild || sharpness_aware <= 0, "hogwild, and sharpness");
        if (hogwild) hogwild_.emplace(chain_.views(), core::loss_from(loss), capacity);
        for (const auto& [name, parameters] : groups) {
            const int rule = core::rule_index(name);
            for (const auto& [parameter, gradient, states] : parameters) {
                require(gradient.size() == parameter.size() &&
                            static_cast<int>(states.size()) == core::kRules[rule].states,
                        "a parameter, its gradient and its states");
                typename core::Stepper<T>::Array array{
                    rule,   row_, chain_.claim(parameter), {}, static_cast<std::size_t>(parameter.size()),
                    nullptr};
                for (std::size_t k = 0; k < states.size(); ++k) {
                    require(states[k].size() == parameter.size(), "a state and its parameter");
                    array.state[k] = chain_.claim(states[k]);
                }
                if (hogwild_) {
                    hogwild_->add(array, chain_.claim(gradient));
                } else {
                    engine_.add(array, chain_.claim(gradient));
                }
            }
            row_ += static_cast<std::size_t>(core::kRules[rule].coefficients);
        }
        require(!hogwild || !penalty, "hogwild, and a penalty");
        if (penalty) {
            const auto& [parameters, gradients, runs, l2, l1] = *penalty;
            engine_.set_penalty(penalized<T>(parameters, gradients, runs, l2, l1));
            kept_.push_back(parameters);
            kept_.push_back(gradients);
        }
        require(!hogwild || !mean_factor, "hogwild, and a weighted mean");
        engine_.set_mean({mean_factor.has_value(), mean_factor.value_or(1)});
    }

    // The sums of an epoch: of losses and of their divisors, and the numbers of examples that were classified
    // correctly and of all.
    using Sums = std::tuple<double, double, std::size_t, std::size_t>;

    // `done`: of an epoch that goes on, the sums so far.
    void begin_epoch(const Sums& done, const Noise& noise) {
        require(!hogwild_ || !noise, "hogwild, and noise");
        core::WeightNoise<T> own{};
        if (noise) {
            const auto& [parameters, deviation, seed, step] = *noise;
            own = {chain_.claim(parameters),
                   static_cast<std::size_t>(parameters.size()),
                   deviation,
                   {seed, step}};
        }
        engine_.set_noise(own);
        outcome = {};
        const auto& [loss, divisor, correct, examples] = done;
        outcome.sums = {loss, divisor, correct, examples};
    }
    Sums sums() const {
        const core::Sums& of = outcome.sums;
        return {of.loss, of.divisor, of.correct, of.examples};
    }

    // Replaces the gradients of each step by those of all processes.
    void set_exchange(core::Exchange exchange) {
        require(!hogwild_, "hogwild, and an exchange");
        exchanges_ = exchange != nullptr;
        engine_.set_exchange(std::move(exchange));
    }

    // Trains on the examples [begin, end) of `order`; one row of coefficients per step. With an exchange
    // `ends` says where each batch ends, of which some may be empty.
    void train(const py::array& x, const py::array& target, const MaybeArray<std::int64_t>& order,
               const MaybeArray<T>& weight, std::pair<std::size_t, std::size_t> range, std::size_t batch,
               const Array<double>& rows, double max_grad_norm, const std::string& nonfinite,
               const Sparse& sparse, const MaybeArray<std::int64_t>& ends) {
        const auto [begin, end] = range;
        require(batch > 0 && batch <= engine_.capacity() && begin <= end, "batch and range");
        const core::Examples<T> of = checked_examples(x, target, order, weight, range, sparse);
        core::StepOptions options;
        if (ends) options.ends = checked_ends({ends->data(), ends->data() + ends->size()}, begin, end, batch);
        const std::size_t batches =
            ends ? options.ends.size() : (end - begin) / batch + ((end - begin) % batch != 0 ? 1 : 0);
        require(rows.ndim() == 2 && static_cast<std::size_t>(rows.shape(1)) == row_ &&
                    static_cast<std::size_t>(rows.shape(0)) >= batches,
                "coefficients and steps");
        options.max_grad_norm = max_grad_norm;
        options.sharpness_aware = sharpness_aware_;
        if (nonfinite == "raise") options.nonfinite = NonFinite::raise;
        if (nonfinite == "skip") options.nonfinite = NonFinite::skip;
        const std::vector<T> cast(rows.data(), rows.data() + rows.size());
        const T* const coefficients = cast.data();
        require(!hogwild_ || (options.max_grad_norm <= 0 && options.nonfinite == NonFinite::ignore),
                "hogwild, and options of the step");
        Unlocked release;
        if (hogwild_) return hogwild_->train(of, begin, end, batch, coefficients, row_, outcome);
        engine_.train(of, begin, end, batch, coefficients, row_, options, outcome);
    }

    // Returns the sum of the losses of the examples [begin, end), which are one batch, and its divisor. If
    // there is a `total`, the gradient of that sum is added to it; the layers write `gradients`, all of them.
    std::pair<double, double> measure(const py::array& x, const py::array& target,
                                      const MaybeArray<T>& weight, std::pair<std::size_t, std::size_t> range,
                                      const Sparse& sparse, const Array<T>& gradients,
                                      MaybeArray<double> total) {
        const auto [begin, end] = range;
        require(begin <= end && end - begin <= engine_.capacity(), "range of a batch");
        require(!total || total->size() == gradients.size(), "gradients and their total");
        const core::Examples<T> of = checked_examples(x, target, {}, weight, range, sparse);
        double* const sum = mutable_data_or_null(total);
        const auto size = static_cast<std::size_t>(gradients.size());
        const T* const own = gradients.data();
        core::Sums sums;
        Unlocked release;
        engine_.measure(of, begin, end, own, sum, size, sums);
        return {sums.loss, sums.divisor};
    }

    core::Outcome outcome;

  private:
    core::Examples<T> checked_examples(const py::array& x, const py::array& target,
                                       const MaybeArray<std::int64_t>& order, const MaybeArray<T>& weight,
                                       std::pair<std::size_t, std::size_t> range,
                                       const Sparse& sparse) const {
        const auto [begin, end] = range;
        const auto examples =
            static_cast<std::size_t>(sparse         ? std::max<py::ssize_t>(sparse->second.size() - 1, 0)
                                     : x.ndim() > 0 ? x.shape(0)
                                                    : 0);
        require(end <= examples && (!order || static_cast<std::size_t>(order->size()) >= end) &&
                    (!weight || static_cast<std::size_t>(weight->size()) == examples),
                "range, order and weight of the examples");
        core::Examples<T> of{};
        of.count = examples;
        require(sparse || static_cast<std::size_t>(x.size()) ==
                              core::checked_product("x", examples, engine_.inputs()),
                "x and the inputs");
        if (sparse) {
            of.sparse = sparse_rows(x, sparse->first, sparse->second, begin == 0);
        } else if (py::isinstance<Array<std::uint8_t>>(x)) {
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
        } else {
            require(py::isinstance<Array<T>>(target) &&
                        static_cast<std::size_t>(target.size()) ==
                            core::checked_product("targets", examples, engine_.outputs()),
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
        return of;
    }

    std::vector<std::int64_t> checked_ends(std::vector<std::int64_t> ends, std::size_t begin, std::size_t end,
                                           std::size_t batch) const {
        require(exchanges_ && !ends.empty() && ends.back() == static_cast<std::int64_t>(end),
                "ends of batches, and an exchange");
        auto before = static_cast<std::int64_t>(begin);
        for (const std::int64_t one : ends) {
            require(before <= one && one - before <= static_cast<std::int64_t>(batch), "ends of batches");
            before = one;
        }
        return ends;
    }

    core::SparseRows<T> sparse_rows(const py::array& values, const Array<std::int32_t>& columns,
                                    const Array<std::int64_t>& begins, bool first) const {
        require(py::isinstance<Array<T>>(values) && values.size() == columns.size() && begins.size() > 0,
                "values and columns of sparse rows");
        const auto width = static_cast<std::int64_t>(engine_.inputs());
        const std::int64_t* const begin = begins.data();
        for (py::ssize_t i = 0; i + 1 < begins.size() && first; ++i) {
            require(begin[i] <= begin[i + 1], "rows one after the other");
        }
        require(begin[0] >= 0 && begin[begins.size() - 1] <= columns.size(), "rows within the values");
        for (py::ssize_t k = 0; k < columns.size() && first; ++k) {
            require(columns.data()[k] >= 0 && columns.data()[k] < width, "columns within the inputs");
        }
        return {static_cast<const T*>(values.data()), columns.data(), begin, columns.size()};
    }

    std::vector<py::array> kept_;  // the penalty's, alive
    std::size_t row_ = 0;          // coefficients of a step
    BoundChain<T> chain_;
    core::Engine<T> engine_;
    bool takes_labels_;
    double sharpness_aware_;
    bool exchanges_ = false;
    std::optional<core::Hogwild<T>> hogwild_;  // trains instead
};

template <class T>
void bind_for(py::module_& m, const char* name) {
    using E = Engine<T>;
    const auto outcome = [](auto member) { return [member](const E& self) { return self.outcome.*member; }; };
    py::class_<E>(m, name)
        .def(py::init<const Model<T>&, const std::string&, std::size_t, const std::vector<typename E::Group>&,
                      bool, const typename E::Penalty&, std::optional<double>, double>(),
             py::arg("model"), py::arg("loss"), py::arg("capacity"), py::arg("groups"), py::arg("hogwild"),
             py::arg("penalty").none(true), py::arg("mean_factor") = py::none(),
             py::arg("sharpness_aware") = 0.0)
        .def("set_exchange", &E::set_exchange, py::arg("exchange").none(true))
        .def("begin_epoch", &E::begin_epoch, py::arg("done"), py::arg("noise").none(true))
        .def("train", &E::train, py::arg("x"), py::arg("target"), exact_or_none("order"),
             exact_or_none("weight"), py::arg("range"), py::arg("batch"), exact("rows"),
             py::arg("max_grad_norm"), py::arg("nonfinite"), py::arg("sparse").none(true),
             exact_or_none("ends"))
        .def("measure", &E::measure, py::arg("x"), py::arg("target"), exact_or_none("weight"),
             py::arg("range"), py::arg("sparse").none(true), exact("gradients"), exact_or_none("total"))
        .def_property_readonly("steps", outcome(&core::Outcome::steps))
        .def_property_readonly("skipped", outcome(&core::Outcome::skipped))
        .def_property_readonly("wrong", outcome(&core::Outcome::wrong))
        .def_property_readonly("sums", &E::sums)
        .def_property_readonly("penalty", [](const E& self) { return self.outcome.sums.penalty; });
}

}  // namespace

void bind_engine(py::module_& m) {
    bind_for<float>(m, "Engine32");
    bind_for<double>(m, "Engine64");
    m.def(
        "compiled_kinds",
        [] {
            std::vector<std::string> layers, losses;
            for (const core::LayerEntry& entry : core::layer_entries()) layers.emplace_back(entry.type);
            for (const core::LossEntry& entry : core::loss_entries()) losses.emplace_back(entry.type);
            return std::make_pair(layers, losses);
        },
        "The classes of layers and of losses that the engine and the C++ API know.");
}

}  // namespace pyoptim::python
