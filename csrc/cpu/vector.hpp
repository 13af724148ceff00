// Vectors as wide as the instruction set's registers.
#pragma once

namespace pyoptim::cpu::PYOPTIM_ISA {

template <class T>
using Vector __attribute__((vector_size(PYOPTIM_VECTOR_BYTES))) = T;

}  // namespace pyoptim::cpu::PYOPTIM_ISA
