// Losses on raw pointers, over threads. The split follows from the shape alone, so that results do not depend
// on the number of threads. Arrays are contiguous and row-major; nothing overlaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cpu/kernels.hpp"

namespace pyoptim::core {

// The sum of the weights of n labels, each of which must be a class.
template <class T>
double label_weights(std::size_t n, const std::int64_t* labels, const T* class_weight);

// The mean over the rows. With labels and class weights it is the weighted mean: the sum over
// label_weights(). If that is 0, loss and gradient are 0, or NaN where a logit is. The argument's `scale`
// need not be set.
template <class T>
double cross_entropy(cpu::CrossEntropy<T>, std::ptrdiff_t batch);
// The sum of the losses of some rows, on this thread alone. Their gradient is that of the mean over all rows,
// for which the sum is divided by `divisor`.
template <class T>
double cross_entropy_of_some(cpu::CrossEntropy<T>, std::ptrdiff_t rows, double divisor);

// A mean by its sum and its divisor. Where nothing has any weight it is 0, or NaN where an element is.
inline double mean_of(double sum, double divisor) { return divisor == 0 ? sum * 0 : sum / divisor; }

// Predictions x (rows, columns) and their targets. sample_weight (rows) multiplies each row's losses; the
// gradient goes into dx. Either may be null.
template <class T>
struct Predictions {
    std::size_t rows, columns;
    const T *x, *target, *sample_weight;
    T* dx;
};
// The mean of the loss over all elements.
template <class T>
double pointwise_loss(const cpu::Pointwise<T>&, const Predictions<T>&);
// As cross_entropy_of_some, for a mean over `divisor` rows.
template <class T>
double pointwise_loss_of_some(const cpu::Pointwise<T>&, const Predictions<T>&, double divisor);

// The pointwise loss of this name. Throws std::invalid_argument for an unknown name.
cpu::PointwiseKind pointwise_named(const std::string& name);

}  // namespace pyoptim::core
