// Losses on raw pointers, over threads: split by shape alone, so that results do not depend on how many.
// Arrays are contiguous and row-major; nothing overlaps.
#pragma once

#include <cstddef>
#include <cstdint>

#include <string>

#include "cpu/kernels.hpp"

namespace pyoptim::core {

// The mean over the rows, or with labels and class weights the sum over that of the labels' weights;
// 0 where those are all 0. `scale` is set here.
template <class T>
double cross_entropy(cpu::CrossEntropy<T>, std::ptrdiff_t batch);

// The mean over all elements of (rows, columns), each row weighted where sample_weight is not null; its
// gradient, unless null.
template <class T>
struct Predictions {
    std::size_t rows, columns;
    const T *x, *target, *sample_weight;
    T* dx;
};
template <class T>
double pointwise_loss(const cpu::Pointwise<T>&, const Predictions<T>&);

// By its name; std::invalid_argument for others.
cpu::PointwiseKind pointwise_named(const std::string& name);

}  // namespace pyoptim::core
