// Adafactor and Muon: steps that look at a whole tensor.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <vector>

#include "optim/adafactor_stepper.hpp"
#include "optim/muon_stepper.hpp"
#include "python/prepared.hpp"
#include "runtime/sizes.hpp"

namespace pyoptim::python {

namespace {

template <template <class> class Steps>
class TensorStepper : public PreparedByType<Steps> {
    using Base = PreparedByType<Steps>;
    using Base::f32_, Base::f64_, Base::gradients_, Base::rules_;

  public:
    using typename Base::Group;

    explicit TensorStepper(const std::vector<Group>& groups) {
        this->prepare(groups, [&](auto& steps, int rule, const py::array& param, const auto& states) {
            add(steps, rule, param, states);
        });
    }

    // Returns false, with nothing done, if Gradients::each does; the caller then finds out why.
    bool step(const Gradients::List& grads, const std::vector<std::vector<double>>& coefficients) {
        const py::scoped_critical_section turn(this->turns_.key());
        require(coefficients.size() == rules_.size(), "coefficients and groups");
        std::vector<double> rows;
        for (const auto& row : coefficients) {
            require(row.size() == Steps<float>::length, "coefficients and their names");
            rows.insert(rows.end(), row.begin(), row.end());
        }
        const Gradients::ByType* const found = gradients_.by_type(grads);
        if (found == nullptr) return false;
        this->unlocked([&] {
            if (!found->f32.empty()) f32_.step(found->f32.data(), rows.data());
            if (!found->f64.empty()) f64_.step(found->f64.data(), rows.data());
        });
        return true;
    }

  private:
    template <class T>
    void add(Steps<T>& steps, int rule, const py::array& param, const std::vector<py::array>& states) {
        const bool vector = param.ndim() < 2;
        const auto size = static_cast<std::size_t>(param.size());
        core::TensorArray<T> entry{rule,   rules_.size(), static_cast<T*>(gradients_.claim(param)), {}, size,
                                   vector, {1, 1, size}};
        if (!vector) {
            entry.shape = {1, static_cast<std::size_t>(param.shape(param.ndim() - 2)),
                           static_cast<std::size_t>(param.shape(param.ndim() - 1))};
            for (py::ssize_t k = 0; k + 2 < param.ndim(); ++k) {
                entry.shape.batch = core::checked_product("a parameter", entry.shape.batch, param.shape(k));
            }
        }
        const auto [batch, rows, cols] = entry.shape;
        const std::size_t factored[] = {core::checked_product("a parameter", batch, rows),
                                        core::checked_product("a parameter", batch, cols)};
        const bool whole = vector || Steps<T>::states == 1;
        require(states.size() == (whole ? 1 : 2), "states and their parameter");
        for (std::size_t k = 0; k < states.size(); ++k) {
            const auto elements = static_cast<py::ssize_t>(whole ? size : factored[k]);
            entry.state[k] = this->template claim<T>(states[k], elements, "a state and its parameter");
        }
        steps.add(entry);
    }
};

template <template <class> class Steps>
void bind(py::module_& m, const char* name) {
    using Stepper = TensorStepper<Steps>;
    py::class_<Stepper>(m, name)
        .def(py::init<const std::vector<typename Stepper::Group>&>(), py::arg("groups"))
        .def("step", &Stepper::step, py::arg("grads"), py::arg("coefficients"))
        .def("norm", &Stepper::norm, py::arg("grads"));
}

}  // namespace

void bind_tensors(py::module_& m) {
    bind<core::AdafactorStepper>(m, "AdafactorStepper");
    bind<core::MuonStepper>(m, "MuonStepper");
}

}  // namespace pyoptim::python
