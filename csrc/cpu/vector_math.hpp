// The functions of formulas/math.hpp, for the kernels of an instruction set.
#pragma once

#include <stdint.h>

#include "formulas/math.hpp"

#define PYOPTIM_INLINE inline __attribute__((always_inline))

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

using math::at_most;
using math::exponential;  // kernels overload it
using math::exponential_of_minus;
using math::Format;
using math::logarithm;
using math::logarithm_1_plus;

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
