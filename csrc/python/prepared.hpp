// What the bindings of the steppers share: arrays are prepared once, and each step checks its gradients
// against them before it runs.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "optim/rule_info.hpp"
#include "python/gradients.hpp"
#include "python/held_group.hpp"

namespace pyoptim::python {

using core::kRules, core::rule_index;
using Rows = py::typing::List<py::typing::Tuple<py::float_, py::ellipsis>>;

// The rows of all groups, end to end, cast once from double. They stay until this thread's next call.
template <class T>
const std::vector<T>& flatten(const Rows& rows, const std::vector<int>& rules) {
    require(rows.size() == rules.size(), "coefficients and groups");
    thread_local std::vector<T> values;
    values.clear();
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

// The same of the rows that C++ has found for some groups.
template <class T>
const std::vector<T>& flatten(const std::vector<HeldGroup>& groups, const std::vector<int>& rules) {
    thread_local std::vector<T> values;
    values.clear();
    for (std::size_t i = 0; i < rules.size(); ++i) {
        const Row& row = groups[i].row();
        require(row.count == kRules[rules[i]].coefficients, "coefficients and the rule's names");
        for (int k = 0; k < row.count; ++k) values.push_back(static_cast<T>(row.values[k]));
    }
    return values;
}

class Prepared {
  public:
    // None if a step with these gradients would return False.
    std::optional<double> norm(const Gradients::List& grads) const { return gradients_.norm(grads); }

  protected:
    // Begins a group with this rule. Its coefficients follow those of the groups before it.
    void add_group(int rule) {
        rules_.push_back(rule);
        coefficients_ += static_cast<std::size_t>(kRules[rule].coefficients);
    }

    // Calls the function, without the GIL if the arrays are large.
    template <class Run>
    auto unlocked(Run run) const {
        std::optional<Unlocked> release;
        if (gradients_.large()) release.emplace();
        return run();
    }

    std::vector<int> rules_;        // one per group
    std::size_t coefficients_ = 0;  // their number, over all groups
    Gradients gradients_;
    Turns turns_;  // of the threads that call one stepper
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
    // rows: Rows, or groups for which C++ has found the rows.
    template <class AnyRows, class... Options>
    bool step_all(const Gradients::List& grads, const AnyRows& rows, Options... options) {
        const Gradients::ByType* const found = gradients_.by_type(grads);
        if (found == nullptr) return false;
        // Both come first: without the GIL, other threads may change what rows are read from.
        const float* const c32 = found->f32.empty() ? nullptr : flatten<float>(rows, rules_).data();
        const double* const c64 = found->f64.empty() ? nullptr : flatten<double>(rows, rules_).data();
        unlocked([&] {
            if (c32 != nullptr) f32_.step(found->f32.data(), c32, options...);
            if (c64 != nullptr) f64_.step(found->f64.data(), c64, options...);
        });
        return true;
    }

    Steps<float> f32_;
    Steps<double> f64_;
};

}  // namespace pyoptim::python
