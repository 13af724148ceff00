// The list of rules as the bindings see it.
#pragma once

#include <pybind11/typing.h>

#include <string>
#include <vector>

#include "cpu/kernels.hpp"
#include "python/arrays.hpp"

namespace pyoptim::python {

struct RuleInfo {
    const char* name;
    int states, coefficients;  // numbers; coefficients counts those of Common too
    const char *state_names, *coefficient_names;
};

inline const RuleInfo kRules[] = {
#define X(name, Struct)                                                                               \
    {#name, rules::Struct::state_count, Common::coefficient_count + rules::Struct::coefficient_count, \
     rules::Struct::state_names, rules::Struct::coefficient_names},
    PYOPTIM_FOR_EACH_RULE(X)
#undef X
};

inline int rule_index(const std::string& name) {
    for (int i = 0; i < cpu::kRuleCount; ++i) {
        if (kRules[i].name == name) return i;
    }
    throw py::value_error("there is no rule named '" + name + "'");
}

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

}  // namespace pyoptim::python
