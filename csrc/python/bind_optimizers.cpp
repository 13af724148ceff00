// One binding for all optimizers, driven by the list of rules.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <tuple>
#include <utility>
#include <vector>

#include "python/gradients.hpp"
#include "python/rule_info.hpp"
#include "runtime/reduce.hpp"
#include "runtime/stepper.hpp"

namespace pyoptim::python {

namespace {

// Prepared once for a set of arrays; a step then checks the gradients and runs.
class Stepper {
  public:
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
                const std::size_t index = gradients_.size();
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
        require(averages.empty() || averages.size() == gradients_.size(), "averages and parameters");
        gradients_.ready();
    }

    // False, with nothing done, when a gradient is not a contiguous array of its parameter's shape and
    // type, or overlaps what is written, or the parameter has become read-only: the caller then finds out
    // which, and tells or copies.
    bool step(const Gradients::List& grads, const Rows& coefficients, double weight) const {
        const std::optional<Gradients::ByType> found = gradients_.by_type(grads);
        if (!found) return false;
        run(f32_, found->f32, coefficients, weight);
        run(f64_, found->f64, coefficients, weight);
        return true;
    }

    // None where step() would return False.
    std::optional<double> sum_of_squares(const Gradients::List& grads) const {
        return gradients_.sum_of_squares(grads);
    }

  private:
    template <class T>
    void add(runtime::Stepper<T>& stepper, int rule, const py::array& param,
             const std::vector<py::array>& states, const py::array& average) {
        require(static_cast<int>(states.size()) == kRules[rule].states, "states and the rule's names");
        typename runtime::Stepper<T>::Array entry{rule,
                                                  coefficients_,
                                                  static_cast<T*>(gradients_.claim(param)),
                                                  {},
                                                  static_cast<std::size_t>(param.size()),
                                                  nullptr};
        for (std::size_t k = 0; k < states.size(); ++k) {
            require(py::isinstance<Array<T>>(states[k]) && states[k].size() == param.size(),
                    "a state and its parameter");
            entry.state[k] = static_cast<T*>(gradients_.claim(states[k]));
        }
        if (average.size() > 0) {
            require(py::isinstance<Array<T>>(average) && average.size() == param.size(),
                    "an average and its parameter");
            entry.average = static_cast<T*>(gradients_.claim(average));
        }
        stepper.add(entry);
        gradients_.expect(param);
    }

    template <class T>
    void run(const runtime::Stepper<T>& stepper, const std::vector<const T*>& grads, const Rows& rows,
             double weight) const {
        if (grads.empty()) return;
        const std::vector<T> coefficients = flatten<T>(rows, rules_);
        std::optional<py::gil_scoped_release> release;
        if (gradients_.large()) release.emplace();
        stepper.step(grads.data(), coefficients.data(), weight);
    }

    runtime::Stepper<float> f32_;
    runtime::Stepper<double> f64_;
    std::vector<int> rules_;        // of each group
    std::size_t coefficients_ = 0;  // of all groups
    Gradients gradients_;
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
