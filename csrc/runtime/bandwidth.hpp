// The machine's memory bandwidth and peak, as the ceilings that benchmarks print beside their figures.
#pragma once

#include <cstddef>

namespace pyoptim::core {

// a[i] = a[i] + s * b[i] over n doubles on all threads: 24 bytes of traffic an element, of the kind that
// an optimizer update makes (what is written has been read).
void stream_update(double* a, const double* b, double s, std::size_t n);

// n rounds of multiply-adds in the registers of each thread; returns the number of operations of all.
template <class T>
double multiply_add(std::size_t n);

}  // namespace pyoptim::core
