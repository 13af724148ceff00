// Vectors as wide as the instruction set's registers.
#pragma once

namespace pyoptim::cpu::PYOPTIM_ISA {

template <class T>
using Vector __attribute__((vector_size(PYOPTIM_VECTOR_BYTES))) = T;

// As many doubles as Vector<T> has elements.
template <class T>
struct Widened {
    typedef double Vector __attribute__((vector_size(PYOPTIM_VECTOR_BYTES / sizeof(T) * sizeof(double))));
};

}  // namespace pyoptim::cpu::PYOPTIM_ISA
