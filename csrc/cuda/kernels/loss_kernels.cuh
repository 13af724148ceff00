// Softmax and losses, each with its gradient; `total` of gradient_kernels.cuh adds the losses of blocks.
#pragma once

#include "cuda/kernels/device.cuh"
#include "formulas/losses.hpp"

namespace pyoptim::cuda {

// The largest of n elements. If one is NaN, any element: the exponentials make the sum NaN again.
template <class T>
__device__ inline T largest_of(Index n, const T* x) {
    T largest = x[0];
    for (Index j = lane(); j < n; j += kWarp) largest = x[j] > largest ? x[j] : largest;
    return warp_largest(largest);
}
template <class T>
__device__ inline double sum_of_exponentials(Index n, const T* x, T largest, T inverse_temperature = T(1)) {
    double sum = 0;
    for (Index j = lane(); j < n; j += kWarp) {
        sum += double(math::exponential((x[j] - largest) * inverse_temperature));
    }
    return warp_sum(sum);
}

// Softmax of each row, or its logarithm. A warp per row.
template <class T>
PYOPTIM_KERNEL softmax_forward(bool log, Index rows, Index classes, const T* x, T* y) {
    const Index r = warp_row();
    if (r >= rows || classes == 0) return;
    x += r * classes;
    y += r * classes;
    const T largest = largest_of(classes, x);
    const double sum = sum_of_exponentials(classes, x, largest);
    const T shift = T(math::logarithm(sum)), share = T(1 / sum);
    for (Index j = lane(); j < classes; j += kWarp) {
        const T z = x[j] - largest;
        y[j] = log ? z - shift : math::exponential(z) * share;
    }
}

template <class T>
PYOPTIM_KERNEL softmax_backward(bool log, Index rows, Index classes, const T* dy, const T* y, T* dx) {
    const Index r = warp_row();
    if (r >= rows) return;
    dy += r * classes;
    y += r * classes;
    double lane_sum = 0;
    for (Index j = lane(); j < classes; j += kWarp) lane_sum += double(log ? dy[j] : dy[j] * y[j]);
    const T sum = T(warp_sum(lane_sum));
    for (Index j = lane(); j < classes; j += kWarp) {
        dx[r * classes + j] = log ? dy[j] - math::exponential(y[j]) * sum : y[j] * (dy[j] - sum);
    }
}

// *out = the sum of the class weights of the labels, by which cross_entropy divides. One block.
template <class T>
PYOPTIM_KERNEL label_weights(Index rows, Index classes, const long long* labels, const T* class_weight,
                             double* out) {
    double sum = 0;
    for (Index i = thread(); i < rows; i += kThreads) {
        const Index label = labels[i];
        if (label >= 0 && label < classes) sum += double(class_weight[label]);
    }
    sum = block_sum(sum);
    if (thread() == 0) *out = sum;
}

// Sums the losses of kWarps rows, and writes their gradient unless dlogits is null. A label that is not a
// class makes loss and gradient NaN. A temperature divides the logits, and its square multiplies the loss. If
// `divergence`, the entropy of the targets, which are then not smoothed, is subtracted. A divisor of 0 makes
// the gradient 0. A warp per row.
template <class T>
PYOPTIM_KERNEL cross_entropy(Index rows, Index classes, const T* logits, const long long* labels,
                             const T* targets, const T* sample_weight, const T* class_weight,
                             double smoothing, double temperature, bool divergence, double divisor,
                             const double* device_divisor, T* dlogits, double* partial) {
    const Index r = warp_row();
    double loss = 0;
    if (r < rows) {
        const T* const x = logits + r * classes;
        T* const dx = dlogits == nullptr ? nullptr : dlogits + r * classes;
        const double by = device_divisor != nullptr ? *device_divisor : divisor;
        const double scale = by == 0 ? 0 : temperature / by;
        const Index label = labels != nullptr ? labels[r] : 0;
        const bool valid = label >= 0 && label < classes;
        double weight = sample_weight == nullptr ? 1.0 : double(sample_weight[r]);
        if (!valid) weight = double(math::infinity<T>() - math::infinity<T>());
        const math::SmoothedTarget of(weight, smoothing, double(classes));
        const T largest = largest_of(classes, x);
        const T inverse_temperature = math::inverse_temperature<T>(temperature);
        const double sum = sum_of_exponentials(classes, x, largest, inverse_temperature);
        const double log_sum = math::logarithm(sum);
        // The weight q of class j: the loss is the sum over the classes of q (log(sum exp x) - x).
        const auto share = [&](Index j) {
            double q = of.spread;
            if (labels == nullptr) {
                q += of.keep * double(targets[r * classes + j]);
            } else if (j == label || !valid) {
                q += of.keep;
            }
            return class_weight != nullptr ? q * double(class_weight[j]) : q;
        };
        double all = 0, linear = 0;
        for (Index j = lane(); j < classes; j += kWarp) {
            const double q = share(j);
            all += q;
            linear += math::linear_cost(q, largest, x[j]);
            if (divergence) linear += temperature * math::surprise(q, targets[r * classes + j]);
        }
        all = warp_sum(all);
        linear = warp_sum(linear);
        loss = lane() == 0 ? math::cross_entropy_of_row(all, linear, log_sum, temperature) : 0;
        const double slope = all * scale / sum;
        for (Index j = lane(); dx != nullptr && j < classes; j += kWarp) {
            const T e = math::exponential((x[j] - largest) * inverse_temperature);
            dx[j] = T(double(e) * slope - share(j) * scale);
        }
    }
    loss = block_sum(loss);
    if (thread() == 0) partial[block()] = loss;
}

// Rows of predictions with their targets; optional arrays are null if absent.
template <class T>
struct Predictions {
    Index rows, columns;
    const T *x, *target, *sample_weight;
    T a;                 // the loss's parameter
    const T* of_column;  // the parameter of each column, or null
    T* dx;
};

template <class L, class T>
__device__ inline double pointwise(const Predictions<T>& it) {
    const Index n = it.rows * it.columns, end = smaller(n, (block() + 1) * kChunk);
    const double scale = 1.0 / double(n);
    double sum = 0;
    for (Index i = block() * kChunk + thread(); i < end; i += kThreads) {
        const double weight = it.sample_weight == nullptr ? 1.0 : double(it.sample_weight[i / it.columns]);
        const T a = it.of_column == nullptr ? it.a : it.of_column[i % it.columns];
        const T x = it.x[i], target = it.target[i];
        sum += weight * L::value(x, target, a);
        if (it.dx != nullptr) it.dx[i] = T(weight * scale) * L::slope(x, target, a);
    }
    return sum;
}

// Sums the losses of kChunk elements without dividing by their number, by which the gradient is divided. kind
// is a PointwiseKind; its parameter is `a`, or of_column (columns). sample_weight (rows), of_column and dx
// are optional, hence may be null.
template <class T>
PYOPTIM_KERNEL pointwise_loss(Index kind, double a, const T* of_column, Index rows, Index columns, const T* x,
                              const T* target, const T* sample_weight, T* dx, double* partial) {
    const Predictions<T> it = {rows, columns, x, target, sample_weight, T(a), of_column, dx};
    double sum = 0;
    switch (PointwiseKind(kind)) {
#define X(name)                                 \
    case PointwiseKind::name:                   \
        sum = pointwise<math::name##_loss>(it); \
        break;
        PYOPTIM_FOR_EACH_POINTWISE_LOSS(X)
#undef X
        case PointwiseKind::count:
            break;
    }
    sum = block_sum(sum);
    if (thread() == 0) partial[block()] = sum;
}

}  // namespace pyoptim::cuda
