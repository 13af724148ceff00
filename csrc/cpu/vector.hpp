// Vectors as wide as the instruction set's registers.
#pragma once

// Loads v once into a register: GCC would load it anew for each use, and there are two loads a cycle.
#if defined(__x86_64__)
#define PYOPTIM_KEEP(v) __asm__("" : "+v"(v))
#else
#define PYOPTIM_KEEP(v)
#endif

namespace pyoptim::cpu::PYOPTIM_ISA {

template <class T>
using Vector __attribute__((vector_size(PYOPTIM_VECTOR_BYTES))) = T;

// As many doubles as Vector<T> has elements.
template <class T>
struct Widened {
    typedef double Vector __attribute__((vector_size(PYOPTIM_VECTOR_BYTES / sizeof(T) * sizeof(double))));
};

}  // namespace pyoptim::cpu::PYOPTIM_ISA
