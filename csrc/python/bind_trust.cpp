// LARS and LAMB: steps whose length the norms of each array set.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <array>
#include <tuple>
#include <utility>
#include <vector>

#include "python/gradients.hpp"
#include "python/rule_info.hpp"
#include "runtime/trust_stepper.hpp"

namespace pyoptim::python {

namespace {

// Prepared once for a set of arrays; a step then checks the gradients and runs.
class TrustStepper {
  public:
    // As of Stepper.
    using Group = std::tuple<std::string, std::vector<py::array>, std::vector<std::vector<py::array>>>;
    using Trusts = std::vector<std::array<double, 5>>;  // the fields of Trust, of each group

    TrustStepper(const std::vector<Group>& groups, bool directed) : f32_(directed), f64_(directed) {
        for (const auto& [rule_name, params, states] : groups) {
            const int rule = rule_index(rule_name);
            require(directed || rule == static_cast<int>(cpu::RuleId::momentum), "the rule of LARS");
            require(params.size() == states.size(), "parameters and states");
            for (std::size_t i = 0; i < params.size(); ++i) {
                if (py::isinstance<Array<float>>(params[i])) {
                    add(f32_, rule, params[i], states[i]);
                } else if (py::isinstance<Array<double>>(params[i])) {
                    add(f64_, rule, params[i], states[i]);
                } else {
                    throw py::type_error("parameters must be contiguous float32 or float64 arrays");
                }
            }
            rules_.push_back(rule);
            coefficients_ += static_cast<std::size_t>(kRules[rule].coefficients);
        }
        gradients_.ready();
    }

    // False, with nothing done, in the cases of Gradients::each: the caller then finds out which.
    bool step(const Gradients::List& grads, const Rows& coefficients, const Trusts& trusts) {
        require(trusts.size() == rules_.size(), "trusts and groups");
        const std::optional<Gradients::ByType> found = gradients_.by_type(grads);
        if (!found) return false;
        std::vector<Trust> fields;
        for (const auto& t : trusts) fields.push_back({t[0], t[1], t[2], t[3], t[4]});
        run(f32_, found->f32, coefficients, fields);
        run(f64_, found->f64, coefficients, fields);
        return true;
    }

    // None where step() would return False.
    std::optional<double> sum_of_squares(const Gradients::List& grads) const {
        return gradients_.sum_of_squares(grads);
    }

  private:
    template <class T>
    void add(runtime::TrustStepper<T>& stepper, int rule, const py::array& param,
             const std::vector<py::array>& states) {
        require(static_cast<int>(states.size()) == kRules[rule].states, "states and the rule's names");
        typename runtime::TrustStepper<T>::Array entry{rule,
                                                       rules_.size(),
                                                       coefficients_,
                                                       static_cast<T*>(gradients_.claim(param)),
                                                       {},
                                                       static_cast<std::size_t>(param.size())};
        for (std::size_t k = 0; k < states.size(); ++k) {
            require(py::isinstance<Array<T>>(states[k]) && states[k].size() == param.size(),
                    "a state and its parameter");
            entry.state[k] = static_cast<T*>(gradients_.claim(states[k]));
        }
        stepper.add(entry);
        gradients_.expect(param);
    }

    template <class T>
    void run(runtime::TrustStepper<T>& stepper, const std::vector<const T*>& grads, const Rows& rows,
             const std::vector<Trust>& trusts) {
        if (grads.empty()) return;
        const std::vector<T> coefficients = flatten<T>(rows, rules_);
        std::optional<py::gil_scoped_release> release;
        if (gradients_.large()) release.emplace();
        stepper.step(grads.data(), coefficients.data(), trusts.data());
    }

    runtime::TrustStepper<float> f32_;
    runtime::TrustStepper<double> f64_;
    std::vector<int> rules_;        // of each group
    std::size_t coefficients_ = 0;  // of all groups
    Gradients gradients_;
};

}  // namespace

void bind_trust(py::module_& m) {
    py::class_<TrustStepper>(m, "TrustStepper")
        .def(py::init<const std::vector<TrustStepper::Group>&, bool>(), py::arg("groups"),
             py::arg("directed"))
        .def("step", &TrustStepper::step, py::arg("grads"), py::arg("coefficients"), py::arg("trusts"))
        .def("sum_of_squares", &TrustStepper::sum_of_squares, py::arg("grads"));
}

}  // namespace pyoptim::python
