// One binding for all optimizers, driven by the list of rules.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "optim/stepper.hpp"
#include "pyoptim/optimizer.hpp"
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
        auto entry = this->claimed<T>(rule, param, states);
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

// The value of a hyperparameter as Python has it; None is a negative number in C++.
using Value = std::variant<bool, double, Pair, std::string, std::nullptr_t>;

void set(Optimizer<double>& optimizer, const std::string& name, const Value& value) {
    if (auto* const pair = std::get_if<Pair>(&value)) {
        optimizer.set(name, (*pair)[0], (*pair)[1]);
    } else if (auto* const word = std::get_if<std::string>(&value)) {
        optimizer.set(name, *word);
    } else if (auto* const number = std::get_if<double>(&value)) {
        optimizer.set(name, *number);
    } else if (auto* const flag = std::get_if<bool>(&value)) {
        optimizer.set(name, *flag ? 1.0 : 0.0);
    } else {
        optimizer.set(name, -1.0);
    }
}

std::map<std::string, std::variant<double, bool, Pair, std::string>> defaults(Optimizer<double>& optimizer) {
    std::map<std::string, std::variant<double, bool, Pair, std::string>> all;
    for (const Option& option : optimizer.options()) {
        std::visit([&](auto* value) { all[option.name] = *value; }, option.value);
    }
    return all;
}

}  // namespace

void bind_optimizers(py::module_& m) {
    m.def(
        "rules",
        [] {
            py::typing::Dict<py::str, py::typing::Tuple<py::str, py::str>> all;
            for (const core::RuleInfo& rule : kRules) {
                all[rule.name] = py::make_tuple(rule.state_names, rule.coefficient_names);
            }
            return all;
        },
        "Every rule: its name -> (names of its states, names of its coefficients).");
    m.def(
        "optimizer_options",
        [] {
            std::map<std::string, decltype(defaults(std::declval<Optimizer<double>&>()))> all;
#define X(Class) all[#Class] = defaults(*std::make_unique<Class<double>>(0));
            PYOPTIM_FOR_EACH_OPTIMIZER(X)
#undef X
            return all;
        },
        "Every optimizer of the C++ API: its name -> its hyperparameters with their defaults.");
    m.def(
        "coefficients",
        [](const std::string& name, const std::map<std::string, Value>& options, int steps) {
            const auto optimizer = make_optimizer<double>(name, 0);
            for (const auto& [option, value] : options) set(*optimizer, option, value);
            std::vector<std::vector<double>> rows;
            Progress progress;
            for (int i = 0; i < steps; ++i) {
                const Row row = optimizer->next(progress, progress);
                rows.emplace_back(row.values, row.values + row.count);
            }
            return std::make_pair(std::string(optimizer->rule()), rows);
        },
        py::arg("name"), py::arg("options"), py::arg("steps"),
        "The rule of an optimizer of the C++ API, and its coefficients at the first steps.");
    m.def(
        "next_coefficients",
        [](const std::string& name, const std::map<std::string, Value>& options, std::int64_t step,
           double mu_product, const std::vector<double>& lr) {
            const auto optimizer = make_optimizer<double>(name, 0);
            for (const auto& [option, value] : options) set(*optimizer, option, value);
            Progress progress;
            progress.step = step;
            progress.mu_product = mu_product;
            std::vector<double> rows, products = {mu_product};
            for (const double rate : lr) {
                optimizer->lr = rate;
                const Row row = optimizer->next(progress, progress);
                rows.insert(rows.end(), row.values, row.values + row.count);
                products.push_back(progress.mu_product);
            }
            const auto steps = static_cast<py::ssize_t>(lr.size());
            const auto length = lr.empty() ? 0 : static_cast<py::ssize_t>(rows.size()) / steps;
            return std::make_pair(py::array_t<double>(std::vector<py::ssize_t>{steps, length}, rows.data()),
                                  products);
        },
        py::arg("name"), py::arg("options"), py::arg("step"), py::arg("mu_product"), py::arg("lr"),
        "The coefficients of the steps after `step`, one row for each learning rate, and the products of "
        "NAdam's "
        "momenta before the first and after each.");
    m.def("sum_of_squares", &sum_of_squares<float>, exact("x"));
    m.def("sum_of_squares", &sum_of_squares<double>, exact("x"));
    m.attr("common_coefficients") = Common::coefficient_names;
    py::class_<Stepper>(m, "Stepper")
        .def(py::init<const std::vector<Stepper::Group>&, const std::vector<py::array>&>(), py::arg("groups"),
             py::arg("averages"))
        .def("step", &Stepper::step, py::arg("grads"), py::arg("coefficients"), py::arg("weight") = 0.0)
        .def("sum_of_squares", &Stepper::sum_of_squares, py::arg("grads"));
}

}  // namespace pyoptim::python
