// What the bindings of the steppers share: arrays are prepared once, and each step checks its gradients
// against them before it runs.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "optim/rule_info.hpp"
#include "python/gradients.hpp"

namespace pyoptim::python {

using core::kRules, core::rule_index;
using Rows = py::typing::List<py::typing::Tuple<py::float_, py::ellipsis>>;

// The rows of all groups, end to end, cast once from double.
template <class T>
std::vector<T> flatten(const Rows& rows, const std::vector<int>& rules) {
    require(rows.size() == rules.size(), "coefficients and groups");
    std::vector<T> values;
    values.reserve(16 * rules.size());
    for (std::size_t i = 0; i < rules.size(); ++i) {
        const py::tuple row = py::reinterpret_borrow<py::object>(rows[i]);
        require(static_cast<int>(row.size()) == kRules[rules[i]].coefficients,
                "coefficients and the rule's names");
        for (const py::handle value : row) {
            values.push_back(static_cast<T>(PyFloat_AsDouble(value.ptr())));
            if (PyErr_Occurred()) throw py::error_already_set();
        }
    }
    return values;
}

class Prepared {
  public:
    // None if a step with these gradients would return False.
    std::optional<double> sum_of_squares(const Gradients::List& grads) const {
        return gradients_.sum_of_squares(grads);
    }

  protected:
    // Begins a group with this rule. Its coefficients follow those of the groups before it.
    void add_group(int rule) {
        rules_.push_back(rule);
        coefficients_ += static_cast<std::size_t>(kRules[rule].coefficients);
    }

    // Calls the function, without the GIL if the arrays are large.
    template <class Run>
    auto unlocked(Run run) const {
        std::optional<py::gil_scoped_release> release;
        if (gradients_.large()) release.emplace();
        return run();
    }

    std::vector<int> rules_;        // one per group
    std::size_t coefficients_ = 0;  // their number, over all groups
    Gradients gradients_;
};

// Arrays of float32 and of float64; each type has a stepper of its own.
template <template <class> class Steps>
class PreparedByType : public Prepared {
  public:
    // One tuple per group: the rule's name, the parameters, and per parameter its states. All arrays are
    // contiguous and writeable; the caller has checked that they do not overlap.
    using Group = std::tuple<std::string, std::vector<py::array>, std::vector<std::vector<py::array>>>;

  protected:
    template <class... Options>
    explicit PreparedByType(Options... options) : f32_(options...), f64_(options...) {}

    // Calls add(stepper, rule, parameter, states) for every array, with the stepper of its type.
    template <class Add>
    void prepare(const std::vector<Group>& groups, Add add) {
        for (const auto& [name, params, states] : groups) {
            const int rule = rule_index(name);
            require(params.size() == states.size(), "parameters and states");
            for (std::size_t i = 0; i < params.size(); ++i) {
                if (py::isinstance<Array<float>>(params[i])) {
                    add(f32_, rule, params[i], states[i]);
                } else if (py::isinstance<Array<double>>(params[i])) {
                    add(f64_, rule, params[i], states[i]);
                } else {
                    throw py::type_error("parameters must be contiguous float32 or float64 arrays");
                }
                gradients_.expect(params[i]);
            }
            add_group(rule);
        }
        gradients_.ready();
    }

    // Claims an array that belongs to a parameter, has `size` elements, and is written in every step.
    template <class T>
    T* claim(const py::array& array, py::ssize_t size, const char* what) {
        require(py::isinstance<Array<T>>(array) && array.size() == size, what);
        return static_cast<T*>(gradients_.claim(array));
    }

    // Claims a parameter of the current group and its states, as many as the rule has, each of its size. The
    // result is what the stepper adds.
    template <class T>
    typename Steps<T>::Array claimed(int rule, const py::array& param, const std::vector<py::array>& states) {
        typename Steps<T>::Array made{};
        made.rule = rule;
        made.coefficients = coefficients_;
        made.param = static_cast<T*>(gradients_.claim(param));
        made.size = static_cast<std::size_t>(param.size());
        require(static_cast<int>(states.size()) == kRules[rule].states, "states and the rule's names");
        for (std::size_t k = 0; k < states.size(); ++k) {
            made.state[k] = claim<T>(states[k], param.size(), "a state and its parameter");
        }
        return made;
    }

    // Returns false, with nothing done, if Gradients::each does; the caller then finds out why.
    template <class... Options>
    bool step_all(const Gradients::List& grads, const Rows& rows, Options... options) {
        const std::optional<Gradients::ByType> found = gradients_.by_type(grads);
        if (!found) return false;
        run(f32_, found->f32, rows, options...);
        run(f64_, found->f64, rows, options...);
        return true;
    }

    Steps<float> f32_;
    Steps<double> f64_;

  private:
    template <class T, class... Options>
    void run(Steps<T>& stepper, const std::vector<const T*>& grads, const Rows& rows, Options... options) {
        if (grads.empty()) return;
        const std::vector<T> coefficients = flatten<T>(rows, rules_);
        unlocked([&] { stepper.step(grads.data(), coefficients.data(), options...); });
    }
};

}  // namespace pyoptim::python
