// Softmax cross-entropy from logits, implemented in cross_entropy.cpp, which is compiled with contraction.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {

template <class T>
double cross_entropy(const CrossEntropy<T>&, ptrdiff_t begin, ptrdiff_t end);

}  // namespace pyoptim::cpu::PYOPTIM_ISA
