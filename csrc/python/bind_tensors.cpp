// Adafactor and Muon: steps that look at a whole tensor.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <tuple>
#include <vector>

#include "python/gradients.hpp"
#include "python/rule_info.hpp"
#include "runtime/adafactor_stepper.hpp"
#include "runtime/muon_stepper.hpp"

namespace pyoptim::python {

namespace {

// Prepared once for a set of arrays; a step then checks the gradients and runs.
template <template <class> class Steps>
class TensorStepper {
  public:
    // As of Stepper.
    using Group = std::tuple<std::string, std::vector<py::array>, std::vector<std::vector<py::array>>>;
    static constexpr std::size_t length = Steps<float>::length;

    explicit TensorStepper(const std::vector<Group>& groups) {
        for (const auto& [rule, params, states] : groups) {
            require(params.size() == states.size(), "parameters and states");
            for (std::size_t i = 0; i < params.size(); ++i) {
                if (py::isinstance<Array<float>>(params[i])) {
                    add(f32_, rule_index(rule), params[i], states[i]);
                } else if (py::isinstance<Array<double>>(params[i])) {
                    add(f64_, rule_index(rule), params[i], states[i]);
                } else {
                    throw py::type_error("parameters must be contiguous float32 or float64 arrays");
                }
            }
            ++groups_;
        }
        gradients_.ready();
    }

    // False, with nothing done, in the cases of Gradients::each: the caller then finds out which.
    bool step(const Gradients::List& grads, const std::vector<std::vector<double>>& coefficients) {
        require(coefficients.size() == groups_, "coefficients and groups");
        std::vector<double> rows;
        for (const auto& row : coefficients) {
            require(row.size() == length, "coefficients and their names");
            rows.insert(rows.end(), row.begin(), row.end());
        }
        const std::optional<Gradients::ByType> found = gradients_.by_type(grads);
        if (!found) return false;
        std::optional<py::gil_scoped_release> release;
        if (gradients_.large()) release.emplace();
        if (!found->f32.empty()) f32_.step(found->f32.data(), rows.data());
        if (!found->f64.empty()) f64_.step(found->f64.data(), rows.data());
        return true;
    }

    // None where step() would return False.
    std::optional<double> sum_of_squares(const Gradients::List& grads) const {
        return gradients_.sum_of_squares(grads);
    }

  private:
    template <class T>
    void add(Steps<T>& steps, int rule, const py::array& param, const std::vector<py::array>& states) {
        const bool vector = param.ndim() < 2;
        const auto size = static_cast<std::size_t>(param.size());
        runtime::TensorArray<T> entry{rule,   groups_,     static_cast<T*>(gradients_.claim(param)), {}, size,
                                      vector, {1, 1, size}};
        if (!vector) {
            entry.shape = {1, static_cast<std::size_t>(param.shape(param.ndim() - 2)),
                           static_cast<std::size_t>(param.shape(param.ndim() - 1))};
            for (py::ssize_t k = 0; k + 2 < param.ndim(); ++k) {
                entry.shape.batch *= static_cast<std::size_t>(param.shape(k));
            }
        }
        const auto [batch, rows, cols] = entry.shape;
        const std::size_t factored[] = {batch * rows, batch * cols};
        const bool whole = vector || Steps<T>::states == 1;
        require(states.size() == (whole ? 1 : 2), "states and their parameter");
        for (std::size_t k = 0; k < states.size(); ++k) {
            require(py::isinstance<Array<T>>(states[k]) &&
                        static_cast<std::size_t>(states[k].size()) == (whole ? size : factored[k]),
                    "a state and its parameter");
            entry.state[k] = static_cast<T*>(gradients_.claim(states[k]));
        }
        steps.add(entry);
        gradients_.expect(param);
    }

    Steps<float> f32_;
    Steps<double> f64_;
    std::size_t groups_ = 0;
    Gradients gradients_;
};

template <template <class> class Steps>
void bind(py::module_& m, const char* name) {
    using Stepper = TensorStepper<Steps>;
    py::class_<Stepper>(m, name)
        .def(py::init<const std::vector<typename Stepper::Group>&>(), py::arg("groups"))
        .def("step", &Stepper::step, py::arg("grads"), py::arg("coefficients"))
        .def("sum_of_squares", &Stepper::sum_of_squares, py::arg("grads"));
}

}  // namespace

void bind_tensors(py::module_& m) {
    bind<runtime::AdafactorStepper>(m, "AdafactorStepper");
    bind<runtime::MuonStepper>(m, "MuonStepper");
}

}  // namespace pyoptim::python
