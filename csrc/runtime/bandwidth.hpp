// Measures the machine's memory bandwidth and peak speed, which benchmarks print beside their figures as
// ceilings.
#pragma once

#include <cstddef>

namespace pyoptim::core {

// a[i] = a[i] + s * b[i] over n doubles on all threads: 24 bytes of traffic an element, of the kind that
// an optimizer update makes (what is written has been read).
void stream_update(double* a, const double* b, double s, std::size_t n);

// Runs n rounds of multiply-adds in the registers of each thread; returns the number of operations of all
// threads.
template <class T>
double multiply_add(std::size_t n);

}  // namespace pyoptim::core
