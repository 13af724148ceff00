// LARS and LAMB: steps whose length the norms of each array set.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <array>
#include <vector>

#include "optim/trust_stepper.hpp"
#include "python/prepared.hpp"

namespace pyoptim::python {

namespace {

class TrustStepper : public PreparedByType<core::TrustStepper> {
  public:
    using Trusts = std::vector<std::array<double, 5>>;  // the fields of Trust, for each group

    TrustStepper(const std::vector<Group>& groups, bool directed) : PreparedByType(directed) {
        prepare(groups, [&](auto& stepper, int rule, const py::array& param, const auto& states) {
            require(directed || rule == static_cast<int>(cpu::RuleId::momentum), "the rule of LARS");
            add(stepper, rule, param, states);
        });
    }

    bool step(const Gradients::List& grads, const Rows& coefficients, const Trusts& trusts) {
        const py::scoped_critical_section turn(turns_.key());
        require(trusts.size() == rules_.size(), "trusts and groups");
        std::vector<Trust> fields;
        for (const auto& t : trusts) fields.push_back({t[0], t[1], t[2], t[3], t[4]});
        return step_all(grads, coefficients, fields.data());
    }

  private:
    template <class T>
    void add(core::TrustStepper<T>& stepper, int rule, const py::array& param,
             const std::vector<py::array>& states) {
        auto entry = this->claimed<T>(rule, param, states);
        entry.group = rules_.size();
        stepper.add(entry);
    }
};

}  // namespace

void bind_trust(py::module_& m) {
    py::class_<TrustStepper>(m, "TrustStepper")
        .def(py::init<const std::vector<TrustStepper::Group>&, bool>(), py::arg("groups"),
             py::arg("directed"))
        .def("step", &TrustStepper::step, py::arg("grads"), py::arg("coefficients"), py::arg("trusts"))
        .def("norm", &TrustStepper::norm, py::arg("grads"));
}

}  // namespace pyoptim::python
