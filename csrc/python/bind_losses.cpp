// Losses and penalties. Arguments are never converted: a copy would swallow the output. None skips one that
// is optional.
#include <pybind11/stl.h>

#include <type_traits>
#include <variant>
#include <vector>

#include "layers/losses.hpp"
#include "python/penalized.hpp"
#include "python/plain.hpp"
#include "runtime/dispatch.hpp"

namespace pyoptim::python {

namespace {

// The part of the arguments that both losses of logits have.
template <class T>
cpu::CrossEntropy<T> of_logits(const Array<T>& logits, MaybeArray<T>& dlogits,
                               const MaybeArray<T>& sample_weight) {
    require(logits.ndim() == 2 && logits.size() > 0 && has_size(dlogits, logits.size()) &&
                has_size(sample_weight, logits.shape(0)),
            "logits (batch, classes), dlogits as logits, sample_weight (batch)");
    cpu::CrossEntropy<T> it{};
    it.classes = logits.shape(1);
    it.logits = logits.data();
    it.sample_weight = data_or_null(sample_weight);
    it.dlogits = mutable_data_or_null(dlogits);
    return it;
}

// Labels, each a class. They are copied, since Python may change an array while the kernels read it.
std::vector<std::int64_t> checked_labels(const Array<std::int64_t>& labels, py::ssize_t classes) {
    std::vector<std::int64_t> own(labels.data(), labels.data() + labels.size());
    for (const std::int64_t label : own) {
        if (label >= 0 && label < classes) continue;
        throw py::value_error("labels hold " + std::to_string(label) + ", expected classes in [0, " +
                              std::to_string(classes) + ")");
    }
    return own;
}

template <class T>
double label_weights(const Array<std::int64_t>& labels, const Array<T>& class_weight) {
    const auto own = checked_labels(labels, class_weight.size());
    return core::label_weights(own.size(), own.data(), class_weight.data());
}

// Target: labels (batch), or T (batch, classes).
template <class T, class Target>
double softmax_cross_entropy(const Array<T>& logits, const Array<Target>& target, MaybeArray<T> dlogits,
                             const MaybeArray<T>& sample_weight, const MaybeArray<T>& class_weight,
                             double smoothing) {
    auto it = of_logits(logits, dlogits, sample_weight);
    require(has_size(class_weight, it.classes), "class_weight (classes)");
    it.class_weight = data_or_null(class_weight);
    it.smoothing = smoothing;
    std::vector<std::int64_t> labels;
    if constexpr (std::is_same_v<Target, std::int64_t>) {
        require(target.size() == logits.shape(0), "labels (batch)");
        labels = checked_labels(target, it.classes);
        it.labels = labels.data();
    } else {
        require(target.size() == logits.size(), "targets as logits");
        it.targets = target.data();
    }
    const py::ssize_t rows = logits.shape(0);
    Unlocked release;
    return core::cross_entropy(it, rows);
}

template <class T>
double kl_divergence(const Array<T>& logits, const Array<T>& target, MaybeArray<T> dlogits,
                     const MaybeArray<T>& sample_weight, double temperature) {
    auto it = of_logits(logits, dlogits, sample_weight);
    require(target.size() == logits.size(), "target as logits");
    it.targets = target.data();
    it.temperature = temperature;
    it.divergence = true;
    const py::ssize_t rows = logits.shape(0);
    Unlocked release;
    return core::cross_entropy(it, rows);
}

template <class T>
double pointwise_loss(const std::string& kind, const Array<T>& prediction, const Array<T>& target,
                      MaybeArray<T> dprediction, const MaybeArray<T>& sample_weight,
                      const std::variant<double, Array<T>>& parameter) {
    require(prediction.ndim() == 2 && prediction.size() > 0 && target.size() == prediction.size() &&
                has_size(dprediction, prediction.size()) && has_size(sample_weight, prediction.shape(0)),
            "prediction (rows, columns), target and dprediction as prediction, sample_weight (rows)");
    cpu::Pointwise<T> it{core::pointwise_named(kind), T(0), nullptr};
    if (const double* number = std::get_if<double>(&parameter)) {
        it.a = static_cast<T>(*number);
    } else {
        const auto& columns = std::get<Array<T>>(parameter);
        require(columns.size() == prediction.shape(1), "parameter (columns)");
        it.columns = columns.data();
    }
    const core::Predictions<T> of{static_cast<std::size_t>(prediction.shape(0)),
                                  static_cast<std::size_t>(prediction.shape(1)),
                                  prediction.data(),
                                  target.data(),
                                  data_or_null(sample_weight),
                                  mutable_data_or_null(dprediction)};
    Unlocked release;
    return core::pointwise_loss(it, of);
}

template <class T>
double penalty(const Array<T>& parameters, const Array<T>& gradients, const Runs& runs, double l2,
               double l1) {
    const auto of = penalized<T>(parameters, gradients, runs, l2, l1);
    Unlocked release;
    return core::add_penalty(of);
}

// One function for all types, as overloads that do not fit cost more than a short loop.
bool any_outside(const py::array& x, double low, double high) {
    if (is_plain<float>(x)) return any_outside_of<float>(x, low, high);
    if (is_plain<double>(x)) return any_outside_of<double>(x, low, high);
    if (is_plain<std::int64_t>(x)) return any_outside_of<std::int64_t>(x, low, high);
    throw py::type_error("x must be a contiguous float32, float64 or int64 array");
}

template <class T>
void exponential(const Array<T>& x, Array<T> y) {
    require(x.size() == y.size(), "y as x");
    core::kernels<T>().exponential(static_cast<std::size_t>(x.size()), x.data(), y.mutable_data());
}

template <class T>
void bind_for(py::module_& m) {
    m.def("softmax_cross_entropy", &softmax_cross_entropy<T, std::int64_t>, exact("logits"), exact("target"),
          exact_or_none("dlogits"), exact_or_none("sample_weight"), exact_or_none("class_weight"),
          py::arg("smoothing"));
    m.def("softmax_cross_entropy", &softmax_cross_entropy<T, T>, exact("logits"), exact("target"),
          exact_or_none("dlogits"), exact_or_none("sample_weight"), exact_or_none("class_weight"),
          py::arg("smoothing"));
    m.def("label_weights", &label_weights<T>, exact("labels"), exact("class_weight"));
    m.def("kl_divergence", &kl_divergence<T>, exact("logits"), exact("target"), exact_or_none("dlogits"),
          exact_or_none("sample_weight"), py::arg("temperature"));
    m.def("pointwise_loss", &pointwise_loss<T>, py::arg("kind"), exact("prediction"), exact("target"),
          exact_or_none("dprediction"), exact_or_none("sample_weight"), exact("parameter"));
    m.def("penalty", &penalty<T>, exact("parameters"), exact("gradients"), py::arg("runs"), py::arg("l2"),
          py::arg("l1"));
    m.def("exponential", &exponential<T>, exact("x"), exact("y"), "The kernels' own exp, for its tests.");
}

}  // namespace

void bind_losses(py::module_& m) {
    bind_for<float>(m);
    bind_for<double>(m);
    m.def("any_outside", &any_outside, exact("x"), py::arg("low"), py::arg("high"));
}

}  // namespace pyoptim::python
