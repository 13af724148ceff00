// One binding for all optimizers, driven by the list of rules.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "optim/stepper.hpp"
#include "pyoptim/optimizer.hpp"
#include "python/held_group.hpp"
#include "python/prepared.hpp"
#include "runtime/reduce.hpp"

namespace pyoptim::python {

namespace {

class Stepper : public PreparedByType<core::Stepper> {
  public:
    using Dict = py::typing::Dict<py::str, py::object>;

    // Averages, if any, are one per parameter of all groups.
    Stepper(const std::vector<Group>& groups, const std::vector<py::array>& averages) {
        prepare(groups, [&](auto& stepper, int rule, const py::array& param, const auto& states) {
            const std::size_t index = gradients_.size();
            add(stepper, rule, param, states, index < averages.size() ? averages[index] : py::array());
        });
        require(averages.empty() || averages.size() == gradients_.size(), "averages and parameters");
    }

    bool step(const Gradients::List& grads, const Rows& coefficients, double weight) {
        const py::scoped_critical_section turn(turns_.key());
        return step_all(grads, coefficients, weight);
    }

    // Prepares `advance` for an optimizer of the class of this name, in lower case, and its parameter groups.
    // rate: function of (lr, step, epoch) for an lr that is no float. chosen: the context variable that names
    // the backend in force; ours: its values that mean this one.
    void hold(const std::string& name, const std::vector<Dict>& groups, const py::object& rate,
              const py::object& chosen, const std::vector<py::object>& ours) {
        require(groups.size() == rules_.size(), "groups of parameters and of hyperparameters");
        const py::scoped_critical_section turn(turns_.key());
        if (!held_.empty()) return;
        std::vector<HeldGroup> held;
        for (const Dict& group : groups) held.emplace_back(name, group);
        held_ = std::move(held);
        rate_ = rate;
        chosen_ = chosen;
        ours_ = ours;
    }

    // Makes a step with the coefficients that follow from the groups' hyperparameters, and advances the
    // scalars of each group. Returns false, with nothing done, where only Python knows the coefficients or
    // finds the mistake: an option cannot be, another backend is in force, a gradient is not as it should be.
    bool advance(const Gradients::List& grads, const py::object& groups,
                 const py::typing::List<Dict>& scalars, const py::object& epoch) {
        const py::scoped_critical_section turn(turns_.key());
        if (!is_in_force() || !PyList_Check(groups.ptr())) return false;
        const auto fits = [&] {
            if (gradients_.by_type(grads) == nullptr) return false;
            for (std::size_t i = 0; i < held_.size(); ++i) {
                const py::object group = item(groups.ptr(), index(i));
                if (!group) break;
                if (!held_[i].is_ready(group.ptr(), kRules[rules_[i]].name)) return false;
            }
            return true;
        };
        const HeldGroup::Rates rates{rate_, epoch, fits};
        for (std::size_t i = 0; i < held_.size(); ++i) {
            // A rate that is a function may do anything, even to these lists.
            if (PyList_GET_SIZE(groups.ptr()) != PyList_GET_SIZE(scalars.ptr()) ||
                scalars.size() != held_.size()) {
                return false;
            }
            const py::object group = item(groups.ptr(), index(i)), last = item(scalars.ptr(), index(i));
            if (!group || !last) return false;
            if (!held_[i].next(group.ptr(), last.ptr(), kRules[rules_[i]].name, rates)) return false;
        }
        if (scalars.size() != held_.size() || !step_all(grads, held_, 0.0)) return false;
        for (std::size_t i = 0; i < held_.size(); ++i) {
            if (const py::object last = item(scalars.ptr(), index(i))) held_[i].advance(last.ptr());
        }
        return true;
    }

  private:
    static py::ssize_t index(std::size_t i) { return static_cast<py::ssize_t>(i); }

    bool is_in_force() const {
        if (held_.empty()) return false;
        PyObject* value = nullptr;
        if (PyContextVar_Get(chosen_.ptr(), nullptr, &value) != 0) throw py::error_already_set();
        const auto now = py::reinterpret_steal<py::object>(value);
        return std::any_of(ours_.begin(), ours_.end(), [&](const py::object& one) { return one.is(now); });
    }

    template <class T>
    void add(core::Stepper<T>& stepper, int rule, const py::array& param,
             const std::vector<py::array>& states, const py::array& average) {
        auto entry = this->claimed<T>(rule, param, states);
        if (average.size() > 0) {
            entry.average = claim<T>(average, param.size(), "an average and its parameter");
        }
        stepper.add(entry);
    }

    std::vector<HeldGroup> held_;  // one for each group; none before `hold`
    py::object rate_, chosen_;
    std::vector<py::object> ours_;
};

// The norm of arrays taken as one vector.
double norm(const std::vector<std::variant<Array<float>, Array<double>>>& arrays) {
    using Elements =
        std::variant<std::pair<const float*, std::size_t>, std::pair<const double*, std::size_t>>;
    std::vector<Elements> all;
    all.reserve(arrays.size());
    std::size_t elements = 0;
    for (const auto& array : arrays) {
        const auto found = [](const auto& x) -> Elements {
            return std::pair(x.data(), static_cast<std::size_t>(x.size()));
        };
        all.push_back(std::visit(found, array));
        elements += std::visit([](const auto& x) { return x.second; }, all.back());
    }
    const std::size_t count = all.size();
    std::optional<Unlocked> release;
    if (elements > 16384) release.emplace();
    return root_of(core::total_of_squares(count, [&](std::size_t i) {
        return std::visit([](const auto& x) { return core::sum_of_squares(x.second, x.first); }, all[i]);
    }));
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
        std::visit(
            [&](auto* value) {  // no elementwise optimizer has an option of three numbers
                if constexpr (!std::is_same_v<decltype(value), Triple*>) all[option.name] = *value;
            },
            option.value);
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
        "next_coefficients",
        [](const std::string& name, const std::map<std::string, Value>& options, std::int64_t step,
           double mu_product, const std::vector<double>& lr, std::int64_t begun) {
            const auto optimizer = make_optimizer<double>(name, 0);
            for (const auto& [option, value] : options) set(*optimizer, option, value);
            Progress progress;
            progress.step = step;
            progress.mu_product = mu_product;
            progress.begun = begun;
            std::vector<double> rows, products = {mu_product};
            for (const double rate : lr) {
                optimizer->lr = rate;
                const Row row = optimizer->next(progress, progress);
                rows.insert(rows.end(), row.values, row.values + row.count);
                products.push_back(progress.mu_product);
            }
            const auto steps = static_cast<py::ssize_t>(lr.size());
            const auto length = lr.empty() ? 0 : static_cast<py::ssize_t>(rows.size()) / steps;
            return std::make_tuple(std::string(optimizer->rule()),
                                   py::array_t<double>(std::vector<py::ssize_t>{steps, length}, rows.data()),
                                   products);
        },
        py::arg("name"), py::arg("options"), py::arg("step"), py::arg("mu_product"), py::arg("lr"),
        py::arg("begun") = 1,
        "The rule of an optimizer of the C++ API; its coefficients of the steps after `step`, one row for "
        "each learning rate; and the products of NAdam's momenta before the first and after each. `begun` is "
        "the step in which the rule began that keeps a momentum.");
    m.def("norm", &norm, exact("arrays"));
    m.attr("common_coefficients") = Common::coefficient_names;
    py::class_<Stepper>(m, "Stepper")
        .def(py::init<const std::vector<Stepper::Group>&, const std::vector<py::array>&>(), py::arg("groups"),
             py::arg("averages"))
        .def("step", &Stepper::step, py::arg("grads"), py::arg("coefficients"), py::arg("weight") = 0.0)
        .def("hold", &Stepper::hold, py::arg("name"), py::arg("groups"), py::arg("rate"), py::arg("chosen"),
             py::arg("ours"))
        .def("advance", &Stepper::advance, py::arg("grads"), py::arg("groups"), py::arg("scalars"),
             py::arg("epoch"))
        .def("norm", &Stepper::norm, py::arg("grads"));
}

}  // namespace pyoptim::python
