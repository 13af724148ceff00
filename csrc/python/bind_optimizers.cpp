// One binding for all optimizers, driven by the list of rules.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "python/arrays.hpp"
#include "python/rule_info.hpp"
#include "runtime/reduce.hpp"
#include "runtime/stepper.hpp"

namespace pyoptim::python {

namespace {

// Prepared once for a set of arrays; a step then checks the gradients and runs.
class Stepper {
  public:
    using Grads = py::typing::List<py::object>;
    // One tuple per group: the rule's name, the parameters, and per parameter its states. All arrays are
    // contiguous and writeable; the caller has checked that they do not overlap.
    // Averages, if any, are one per parameter of all groups.
    using Group = std::tuple<std::string, std::vector<py::array>, std::vector<std::vector<py::array>>>;

    Stepper(const std::vector<Group>& groups, const std::vector<py::array>& averages) {
        for (const auto& [rule_name, params, states] : groups) {
            const int rule = rule_index(rule_name);
            rules_.push_back(rule);
            require(params.size() == states.size(), "parameters and states");
            for (std::size_t i = 0; i < params.size(); ++i) {
                const std::size_t index = slots_.size();
                const py::array average = index < averages.size() ? averages[index] : py::array();
                if (py::isinstance<Array<float>>(params[i])) {
                    add(f32_, rule, params[i], states[i], average);
                } else if (py::isinstance<Array<double>>(params[i])) {
                    add(f64_, rule, params[i], states[i], average);
                } else {
                    throw py::type_error("parameters must be contiguous float32 or float64 arrays");
                }
            }
            coefficients_ += static_cast<std::size_t>(kRules[rule].coefficients);
        }
        require(averages.empty() || averages.size() == slots_.size(), "averages and parameters");
        std::sort(written_.begin(), written_.end());
    }

    // False, with nothing done, when a gradient is not a contiguous array of its parameter's shape and
    // type, or overlaps what is written, or the parameter has become read-only: the caller then finds out
    // which, and tells or copies.
    bool step(const Grads& grads, const Rows& coefficients, double weight) const {
        std::vector<const float*> grads32;
        std::vector<const double*> grads64;
        grads32.reserve(f32_.arrays().size());
        grads64.reserve(f64_.arrays().size());
        const bool all = each_gradient(grads, [&](const Slot& slot, const void* data) {
            if (slot.is_double) {
                grads64.push_back(static_cast<const double*>(data));
            } else {
                grads32.push_back(static_cast<const float*>(data));
            }
        });
        if (!all) return false;
        run(f32_, grads32, coefficients, weight);
        run(f64_, grads64, coefficients, weight);
        return true;
    }

    // None where step() would return False.
    std::optional<double> sum_of_squares(const Grads& grads) const {
        std::vector<std::pair<const Slot*, const void*>> found;
        found.reserve(slots_.size());
        const auto keep = [&](const Slot& slot, const void* data) { found.emplace_back(&slot, data); };
        if (!each_gradient(grads, keep)) return std::nullopt;
        std::optional<py::gil_scoped_release> release;
        if (large_) release.emplace();
        double sum = 0;
        for (const auto& [slot, data] : found) {
            const auto n = static_cast<std::size_t>(slot->size);
            sum += slot->is_double ? runtime::sum_of_squares(n, static_cast<const double*>(data))
                                   : runtime::sum_of_squares(n, static_cast<const float*>(data));
        }
        return sum;
    }

  private:
    struct Slot {
        py::array param;
        bool is_double;
        const void* data;  // as it was when its address was taken
        py::ssize_t size;
    };
    using Interval = std::pair<std::uintptr_t, std::uintptr_t>;

    // Calls found(slot, address) for each; false at the first that is not usable.
    template <class Found>
    bool each_gradient(const Grads& grads, Found found) const {
        if (grads.size() != slots_.size()) return false;
        for (std::size_t i = 0; i < slots_.size(); ++i) {
            PyObject* const grad = PyList_GET_ITEM(grads.ptr(), static_cast<py::ssize_t>(i));
            const void* const data = usable(grad, slots_[i]);
            if (data == nullptr) return false;
            found(slots_[i], data);
        }
        return true;
    }

    template <class T>
    void add(runtime::Stepper<T>& stepper, int rule, const py::array& param,
             const std::vector<py::array>& states, const py::array& average) {
        require(static_cast<int>(states.size()) == kRules[rule].states, "states and the rule's names");
        typename runtime::Stepper<T>::Array entry{
            rule, coefficients_, claim<T>(param), {}, static_cast<std::size_t>(param.size()), nullptr};
        for (std::size_t k = 0; k < states.size(); ++k) {
            require(py::isinstance<Array<T>>(states[k]) && states[k].size() == param.size(),
                    "a state and its parameter");
            entry.state[k] = claim<T>(states[k]);
            states_.push_back(states[k]);
        }
        if (average.size() > 0) {
            require(py::isinstance<Array<T>>(average) && average.size() == param.size(),
                    "an average and its parameter");
            entry.average = claim<T>(average);
            states_.push_back(average);
        }
        stepper.add(entry);
        slots_.push_back({param, sizeof(T) == sizeof(double), param.data(), param.size()});
        large_ = large_ || param.size() > 16384;
    }

    template <class T>
    T* claim(py::array array) {
        T* const data = static_cast<T*>(array.mutable_data());  // throws if read-only
        const auto begin = reinterpret_cast<std::uintptr_t>(data);
        if (array.size() > 0) written_.emplace_back(begin, begin + static_cast<std::size_t>(array.nbytes()));
        return data;
    }

    const void* usable(PyObject* grad, const Slot& slot) const {
        const auto& api = py::detail::npy_api::get();
        if (!api.PyArray_Check_(grad)) return nullptr;
        const auto* g = py::detail::array_proxy(grad);
        const auto* p = py::detail::array_proxy(slot.param.ptr());
        constexpr int kWanted =
            py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
        // An unpickled array, or one with metadata, has a descriptor of its own.
        if (p->data != slot.data || slot.param.size() != slot.size) return nullptr;  // resized
        if ((g->descr != p->descr && !api.PyArray_EquivTypes_(g->descr, p->descr)) || g->nd != p->nd ||
            (g->flags & kWanted) != kWanted || !(p->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) ||
            !std::equal(g->dimensions, g->dimensions + g->nd, p->dimensions)) {
            return nullptr;
        }
        const auto begin = reinterpret_cast<std::uintptr_t>(g->data);
        const auto end = begin + static_cast<std::size_t>(slot.param.nbytes());
        // The intervals do not overlap each other, so only the last that begins before `end` can meet it.
        const auto after = std::lower_bound(written_.begin(), written_.end(), Interval{end, 0});
        if (begin < end && after != written_.begin() && std::prev(after)->second > begin) return nullptr;
        return g->data;
    }

    template <class T>
    void run(const runtime::Stepper<T>& stepper, const std::vector<const T*>& grads, const Rows& rows,
             double weight) const {
        if (grads.empty()) return;
        const std::vector<T> coefficients = flatten<T>(rows, rules_);
        std::optional<py::gil_scoped_release> release;
        if (large_) release.emplace();
        stepper.step(grads.data(), coefficients.data(), weight);
    }

    runtime::Stepper<float> f32_;
    runtime::Stepper<double> f64_;
    std::vector<int> rules_;        // of each group
    std::size_t coefficients_ = 0;  // of all groups
    std::vector<Slot> slots_;
    std::vector<py::array> states_;  // and averages: kept alive
    std::vector<Interval> written_;  // sorted
    bool large_ = false;             // worth letting other Python threads run
};

template <class T>
double sum_of_squares(const Array<T>& x) {
    const auto n = static_cast<std::size_t>(x.size());
    std::optional<py::gil_scoped_release> release;
    if (n > 16384) release.emplace();
    return runtime::sum_of_squares(n, x.data());
}

}  // namespace

void bind_optimizers(py::module_& m) {
    m.def(
        "rules",
        [] {
            py::typing::Dict<py::str, py::typing::Tuple<py::str, py::str>> all;
            for (const RuleInfo& rule : kRules) {
                all[rule.name] = py::make_tuple(rule.state_names, rule.coefficient_names);
            }
            return all;
        },
        "Every rule: its name -> (names of its states, names of its coefficients).");
    m.def("sum_of_squares", &sum_of_squares<float>, py::arg("x").noconvert());
    m.def("sum_of_squares", &sum_of_squares<double>, py::arg("x").noconvert());
    m.attr("common_coefficients") = Common::coefficient_names;
    py::class_<Stepper>(m, "Stepper")
        .def(py::init<const std::vector<Stepper::Group>&, const std::vector<py::array>&>(), py::arg("groups"),
             py::arg("averages"))
        .def("step", &Stepper::step, py::arg("grads"), py::arg("coefficients"), py::arg("weight") = 0.0)
        .def("sum_of_squares", &Stepper::sum_of_squares, py::arg("grads"));
}

}  // namespace pyoptim::python
