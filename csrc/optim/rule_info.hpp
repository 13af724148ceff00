// The list of rules with their names, for whoever finds a rule by its name.
#pragma once

#include <stdexcept>
#include <string>

#include "cpu/kernels.hpp"

namespace pyoptim::core {

struct RuleInfo {
    const char* name;
    int states, coefficients;  // how many; the coefficients of Common count too
    const char *state_names, *coefficient_names;
};

inline constexpr RuleInfo kRules[] = {
#define X(name, Struct)                                                                               \
    {#name, rules::Struct::state_count, Common::coefficient_count + rules::Struct::coefficient_count, \
     rules::Struct::state_names, rules::Struct::coefficient_names},
    PYOPTIM_FOR_EACH_RULE(X)
#undef X
};

// The index of a rule in the list. Throws std::invalid_argument if there is none of this name.
inline int rule_index(const std::string& name) {
    for (int i = 0; i < cpu::kRuleCount; ++i) {
        if (kRules[i].name == name) return i;
    }
    throw std::invalid_argument("there is no rule named '" + name + "'");
}

}  // namespace pyoptim::core
