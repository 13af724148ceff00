// Which compiled instruction set runs.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.hpp"

namespace pyoptim::core {

// The instruction set in force. The first call chooses: PYOPTIM_FORCE_ISA, else the best this processor has.
// Throws std::invalid_argument when PYOPTIM_FORCE_ISA names one that does not exist or cannot run.
const cpu::InstructionSet& instruction_set();
void use_instruction_set(const std::string& name);   // throws std::invalid_argument
std::vector<std::string> usable_instruction_sets();  // best first

template <class T>
const cpu::Kernels<T>& kernels() {
    if constexpr (sizeof(T) == sizeof(float)) {
        return instruction_set().f32;
    } else {
        return instruction_set().f64;
    }
}

}  // namespace pyoptim::core
