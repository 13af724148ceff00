// Softmax cross-entropy from logits; cross_entropy.cpp has it, compiled with contraction.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {

template <class T>
double cross_entropy(const CrossEntropy<T>&, ptrdiff_t begin, ptrdiff_t end);

}  // namespace pyoptim::cpu::PYOPTIM_ISA
