// One binding for all optimizers, driven by the list of rules.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <vector>

#include "optim/stepper.hpp"
#include "python/prepared.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim::python {

namespace {

class Stepper : public PreparedByType<core::Stepper> {
  public:
    // Averages, if any, are one per parameter of all groups.
    Stepper(const std::vector<Group>& groups, const std::vector<py::array>& averages) {
        prepare(groups, [&](auto& stepper, int rule, const py::array& param, const auto& states) {
            const std::size_t index = gradients_.size();
            add(stepper, rule, param, states, index < averages.size() ? averages[index] : py::array());
        });
        require(averages.empty() || averages.size() == gradients_.size(), "averages and parameters");
    }

    bool step(const Gradients::List& grads, const Rows& coefficients, double weight) {
        return step_all(grads, coefficients, weight);
    }

  private:
    template <class T>
    void add(core::Stepper<T>& stepper, int rule, const py::array& param,
             const std::vector<py::array>& states, const py::array& average) {
        typename core::Stepper<T>::Array entry{rule,
                                               coefficients_,
                                               static_cast<T*>(gradients_.claim(param)),
                                               {},
                                               static_cast<std::size_t>(param.size()),
                                               nullptr};
        claim_states(rule, param, states, entry.state);
        if (average.size() > 0) {
            entry.average = claim<T>(average, param.size(), "an average and its parameter");
        }
        stepper.add(entry);
    }
};

template <class T>
double sum_of_squares(const Array<T>& x) {
    const auto n = static_cast<std::size_t>(x.size());
    std::optional<py::gil_scoped_release> release;
    if (n > 16384) release.emplace();
    return core::sum_of_squares(n, x.data());
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
