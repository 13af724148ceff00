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

// The kernels of the instruction set in force, for float or double: all, and those that predictions need.
template <class T>
const cpu::Kernels<T>& kernels();
template <class T>
const cpu::ForwardKernels<T>& forward_kernels();
template <>
const cpu::Kernels<float>& kernels();
template <>
const cpu::Kernels<double>& kernels();
template <>
const cpu::ForwardKernels<float>& forward_kernels();
template <>
const cpu::ForwardKernels<double>& forward_kernels();
// Indexed by Storage; the entry of float32 is empty.
const cpu::StorageKernels* storage_kernels();
const cpu::QuantizedKernels& quantized_kernels();

}  // namespace pyoptim::core
