// Batch normalisation of (batch, channels, space), in steps: sums of parts, which a warp per channel merges
// in order, then a pass over the elements. What is a part follows from the shape alone.
#pragma once

#include "cuda/kernels/device.cuh"
#include "formulas/norms.hpp"

namespace pyoptim::cuda {

// Where `space` is short, blocks take tiles of the matrix (batch, channels * space): ceil(batch / kPartRows)
// parts of its rows, each with a partial sum per column, times ceil(columns / kWarp). Else each has up to
// kChunk elements of one example's channel, and one sum: batch * channels * ceil(space / kChunk) of them.
struct NormShape {
    Index batch, channels, space;

    __device__ bool by_columns() const { return space < kColumnSpace; }
    __device__ Index parts() const { return (batch + kPartRows - 1) / kPartRows; }
    __device__ Index slices() const { return (space + kChunk - 1) / kChunk; }
    __device__ Index sums_of_channel() const { return by_columns() ? parts() * space : batch * slices(); }
    __device__ Index sums() const { return sums_of_channel() * channels; }
    // The k-th partial sum of a channel: its index, and the number of values that it covers.
    __device__ Index place(Index channel, Index k) const {
        const Index inner = by_columns() ? space : slices();
        return (k / inner * channels + channel) * inner + k % inner;
    }
    __device__ double count(Index k) const {
        if (by_columns()) return double(smaller(kPartRows, batch - k / space * kPartRows));
        return double(smaller(kChunk, space - k % slices() * kChunk));
    }
};

// The elements that this thread works on: every stride-th of [begin, end), all of one channel. `first` is the
// first element of its block, or of its column.
struct NormThread {
    Index channel, first, begin, end, stride, sum;
    bool by_columns;
    double values;  // the number of elements of all threads that share a sum

    __device__ explicit NormThread(const NormShape& s) : by_columns(s.by_columns()) {
        if (by_columns) {
            const Index cols = s.channels * s.space;
            const ColumnTile tile(s.batch, cols, kPartRows);
            channel = tile.column / s.space;
            first = tile.part * kPartRows * cols + tile.column;
            begin = tile.begin * cols + tile.column;
            end = tile.end * cols;
            stride = kWarps * cols;
            sum = tile.part * cols + tile.column;
            values = double(tile.end - tile.part * kPartRows);
            if (tile.column >= cols) channel = 0;
        } else {
            const Index row = block() / s.slices(), slice = block() % s.slices();
            channel = row % s.channels;
            first = row * s.space + slice * kChunk;
            end = row * s.space + smaller(s.space, (slice + 1) * kChunk);
            begin = first + thread();
            stride = kThreads;
            sum = block();
            values = double(end - first);
        }
    }
    // Calls visit(i, value(i)) for each of this thread's elements.
    template <int ahead, class Value, class Visit>
    __device__ void each(Value value, Visit visit) const {
        each_ahead<ahead>(begin, end, stride, value, visit);
    }
    // Adds up the values of the threads that share a sum; returns true in the thread that is to write it.
    __device__ bool add(double& x, double& y) const {
        if (by_columns) {
            x = column_total(x);
            y = column_total(y);
            return thread() < kWarp && end > 0;
        }
        x = block_sum(x);
        y = block_sum(y);
        return thread() == 0;
    }
};

// Per channel: y = (x - mean) scale + shift. gamma and beta may be null: 1 and 0.
template <class T>
struct NormAffine {
    T mean, scale, shift;
    __device__ NormAffine(Index c, const T* gamma, const T* beta, const T* means, const T* inv_std)
        : mean(means[c]),
          scale(math::norm_scale(gamma, inv_std, c)),
          shift(beta != nullptr ? beta[c] : T(0)) {}
};

// Writes the mean of each part and the sum of squares about it to partial, which has 2 sums() elements.
template <class T>
PYOPTIM_KERNEL norm_moments(Index batch, Index channels, Index space, const T* x, double* partial) {
    const NormShape shape = {batch, channels, space};
    const NormThread mine(shape);
    // About the thread's first value, so that a large mean costs no accuracy; then about the block's.
    const T own = mine.begin < mine.end ? x[mine.begin] : T(0), shift = mine.end > 0 ? x[mine.first] : T(0);
    T lane_sum = 0, lane_squares = 0;
    double n = 0;
    const auto visit = [&](Index, T value) {
        const T d = value - own;
        lane_sum += d;
        lane_squares += d * d;
        n += 1;
    };
    mine.each<8>([&](Index i) { return x[i]; }, visit);
    math::ShiftedSums of = {n, double(lane_sum), double(lane_squares)};
    of.move(double(own) - double(shift));
    if (!mine.add(of.sum, of.squares)) return;
    partial[mine.sum] = double(shift) + of.sum / mine.values;
    partial[shape.sums() + mine.sum] = of.squares - of.sum * of.sum / mine.values;
}

// The number of values, their mean and the sum of squares about it.
struct Moments {
    double count = 0, mean = 0, m2 = 0;
    __device__ void merge(double n, double other_mean, double other_m2) {
        if (n == 0) return;
        math::merge_moments(mean, m2, math::MergeWeights(count, n), other_mean, other_m2);
        count += n;
    }
};

// mean and inv_std of each channel, and the new running statistics, unless those are null. Without partial
// sums: evaluation, from the running statistics. Where momentum is below 0 it is 1/(steps - momentum): the
// cumulative mean. A warp per channel.
template <class T>
PYOPTIM_KERNEL norm_statistics(Index batch, Index channels, Index space, const T* x, const double* partial,
                               double momentum, const Position* at, double eps, bool unbiased,
                               T* running_mean, T* running_var, T* mean, T* inv_std) {
    const Index c = warp_row();
    if (c >= channels) return;
    if (partial == nullptr) {
        if (lane() > 0) return;
        mean[c] = running_mean[c];
        inv_std[c] = math::inverse_deviation<T>(double(running_var[c]), eps);
        return;
    }
    const NormShape shape = {batch, channels, space};
    Moments all;
    for (Index k = lane(); k < shape.sums_of_channel(); k += kWarp) {
        const Index at = shape.place(c, k);
        all.merge(shape.count(k), partial[at], partial[shape.sums() + at]);
    }
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        const double n = __shfl_xor_sync(0xFFFFFFFFu, all.count, mask);
        const double other_mean = __shfl_xor_sync(0xFFFFFFFFu, all.mean, mask);
        const double other_m2 = __shfl_xor_sync(0xFFFFFFFFu, all.m2, mask);
        all.merge(n, other_mean, other_m2);
    }
    // All lanes take the branch of the first lane, whose result counts.
    double m2 = __shfl_sync(0xFFFFFFFFu, all.m2, 0), exact = all.mean;
    const double count = double(batch * space);
    if (m2 - m2 != 0) {  // NaN or infinity
        math::careful_moments(count, exact, m2, [&](auto term) {
            double sum = 0;
            for (Index i = lane(); i < batch * space; i += kWarp) {
                sum += term(double(x[(i / space * channels + c) * space + i % space]));
            }
            return warp_sum(sum);
        });
    }
    if (lane() > 0) return;
    m2 = m2 < 0 ? 0 : m2;
    if (running_mean != nullptr) {
        if (momentum < 0) momentum = 1 / (double(steps_of(at)) - momentum);
        const double variance = m2 / (unbiased ? count - 1 : count);
        running_mean[c] = math::running_statistic(running_mean[c], exact, momentum);
        running_var[c] = math::running_statistic(running_var[c], variance, momentum);
    }
    mean[c] = T(exact);
    inv_std[c] = math::inverse_deviation<T>(m2 / count, eps);
}

// y = gamma (x - mean) inv_std + beta, then ReLU if wanted
template <class T>
PYOPTIM_KERNEL norm_apply(Index batch, Index channels, Index space, const T* x, const T* gamma, const T* beta,
                          const T* mean, const T* inv_std, bool relu, T* y) {
    const NormThread mine({batch, channels, space});
    const NormAffine<T> k(mine.channel, gamma, beta, mean, inv_std);
    const auto visit = [&](Index i, T value) {
        y[i] = math::norm_value(relu, value, k.mean, k.scale, k.shift);
    };
    mine.each<8>([&](Index i) { return x[i]; }, visit);
}

// The inputs of the backward pass for one element.
template <class T>
struct NormPair {
    T dy, x;
};

// The sums of dz and of dz (x - mean) of each part, dz the gradient before the ReLU; partial as
// norm_moments'.
template <class T>
PYOPTIM_KERNEL norm_products(Index batch, Index channels, Index space, const T* dy, const T* x,
                             const T* gamma, const T* beta, const T* mean, const T* inv_std, bool relu,
                             double* partial) {
    const NormShape shape = {batch, channels, space};
    const NormThread mine(shape);
    const NormAffine<T> k(mine.channel, gamma, beta, mean, inv_std);
    T lane_sum = 0, lane_product = 0;
    const auto visit = [&](Index, const NormPair<T>& of) {
        const T d = of.x - k.mean;
        const T dz = math::norm_before_relu(relu, of.dy, d, k.scale, k.shift);
        lane_sum += dz;
        lane_product += dz * d;
    };
    mine.each<4>([&](Index i) { return NormPair<T>{dy[i], x[i]}; }, visit);
    double sum = double(lane_sum), product = double(lane_product);
    if (!mine.add(sum, product)) return;
    partial[mine.sum] = sum;
    partial[shape.sums() + mine.sum] = product;
}

// Writes dgamma, dbeta and slope (2, channels), which norm_gradient reads. A warp per channel.
template <class T>
PYOPTIM_KERNEL norm_slopes(Index batch, Index channels, Index space, const double* partial, const T* gamma,
                           const T* inv_std, T* dgamma, T* dbeta, T* slope) {
    const Index c = warp_row();
    if (c >= channels) return;
    const NormShape shape = {batch, channels, space};
    double sum = 0, product = 0;
    for (Index k = lane(); k < shape.sums_of_channel(); k += kWarp) {
        const Index at = shape.place(c, k);
        sum += partial[at];
        product += partial[shape.sums() + at];
    }
    sum = warp_sum(sum);
    product = warp_sum(product) * double(inv_std[c]);
    if (lane() > 0) return;
    dgamma[c] = T(product);
    dbeta[c] = T(sum);
    const double share = double(math::norm_scale(gamma, inv_std, c)) / double(batch * space);
    slope[c] = math::norm_slope(product, inv_std[c], share);
    slope[channels + c] = math::norm_offset<T>(sum, share);
}

// Writes dx. slope is null if the statistics were constants.
template <class T>
PYOPTIM_KERNEL norm_gradient(Index batch, Index channels, Index space, const T* dy, const T* x,
                             const T* gamma, const T* beta, const T* mean, const T* inv_std, const T* slope,
                             bool relu, T* dx) {
    const NormThread mine({batch, channels, space});
    const NormAffine<T> k(mine.channel, gamma, beta, mean, inv_std);
    const T by = slope != nullptr ? slope[mine.channel] : T(0);
    const T offset = slope != nullptr ? slope[channels + mine.channel] : T(0);
    const auto visit = [&](Index i, const NormPair<T>& of) {
        const T d = of.x - k.mean;
        const T dz = math::norm_before_relu(relu, of.dy, d, k.scale, k.shift);
        dx[i] = math::norm_gradient(slope != nullptr, dz, d, k.scale, by, offset);
    };
    mine.each<4>([&](Index i) { return NormPair<T>{dy[i], x[i]}; }, visit);
}

}  // namespace pyoptim::cuda
