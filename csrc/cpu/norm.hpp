// Batch normalisation over memory laid out (batch, channels, space). Sums run in double and, within a
// channel, over batch then space in order, so they depend on the shape alone.
#pragma once

#include "cpu/kernels.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

constexpr ptrdiff_t kChannelBlock = 64;

// For every channel c in [begin, end): finish(c, sums), where sums[q] adds up what term(i, c, out) puts in
// out[q] over the elements i of the channel.
template <int kSums, class Term, class Finish>
void channel_sums(const NormShape& shape, ptrdiff_t begin, ptrdiff_t end, Term term, Finish finish) {
    if (shape.space == 1) {
        for (ptrdiff_t c0 = begin; c0 < end; c0 += kChannelBlock) {
            const ptrdiff_t live = c0 + kChannelBlock < end ? kChannelBlock : end - c0;
            double sums[kSums][kChannelBlock] = {};
            for (ptrdiff_t n = 0; n < shape.batch; ++n) {
                const ptrdiff_t row = n * shape.channels + c0;
                for (ptrdiff_t j = 0; j < live; ++j) {
                    double out[kSums];
                    term(row + j, c0 + j, out);
                    for (int q = 0; q < kSums; ++q) sums[q][j] += out[q];
                }
            }
            for (ptrdiff_t j = 0; j < live; ++j) {
                double total[kSums];
                for (int q = 0; q < kSums; ++q) total[q] = sums[q][j];
                finish(c0 + j, total);
            }
        }
        return;
    }
    constexpr ptrdiff_t kLanes = 16;  // independent partial sums, so that the loop vectorises
    for (ptrdiff_t c = begin; c < end; ++c) {
        double sums[kSums][kLanes] = {};
        for (ptrdiff_t n = 0; n < shape.batch; ++n) {
            const ptrdiff_t base = (n * shape.channels + c) * shape.space;
            for (ptrdiff_t s0 = 0; s0 < shape.space; s0 += kLanes) {
                const ptrdiff_t live = s0 + kLanes < shape.space ? kLanes : shape.space - s0;
                for (ptrdiff_t j = 0; j < live; ++j) {
                    double out[kSums];
                    term(base + s0 + j, c, out);
                    for (int q = 0; q < kSums; ++q) sums[q][j] += out[q];
                }
            }
        }
        double total[kSums] = {};
        for (int q = 0; q < kSums; ++q) {
            for (ptrdiff_t j = 0; j < kLanes; ++j) total[q] += sums[q][j];
        }
        finish(c, total);
    }
}

// Calls visit(i, c) for every element i of every channel c in [begin, end).
template <class Visit>
void each_element(const NormShape& shape, ptrdiff_t begin, ptrdiff_t end, Visit visit) {
    for (ptrdiff_t n = 0; n < shape.batch; ++n) {
        if (shape.space == 1) {
            const ptrdiff_t row = n * shape.channels;
            for (ptrdiff_t c = begin; c < end; ++c) visit(row + c, c);
        } else {
            for (ptrdiff_t c = begin; c < end; ++c) {
                const ptrdiff_t base = (n * shape.channels + c) * shape.space;
                for (ptrdiff_t s = 0; s < shape.space; ++s) visit(base + s, c);
            }
        }
    }
}

// Two passes: the squares are of differences from the mean, so a large mean costs no accuracy.
template <class T>
void norm_statistics(const NormShape& shape, const T* x, ptrdiff_t begin, ptrdiff_t end, double* mean,
                     double* var) {
    const double count = double(shape.batch * shape.space);
    channel_sums<1>(
        shape, begin, end, [=](ptrdiff_t i, ptrdiff_t, double* out) { out[0] = x[i]; },
        [=](ptrdiff_t c, const double* sum) { mean[c] = sum[0] / count; });
    channel_sums<1>(
        shape, begin, end,
        [=](ptrdiff_t i, ptrdiff_t c, double* out) { out[0] = (x[i] - mean[c]) * (x[i] - mean[c]); },
        [=](ptrdiff_t c, const double* sum) { var[c] = sum[0] / count; });
}

template <class T>
void norm_apply(const NormShape& shape, const T* x, ptrdiff_t begin, ptrdiff_t end, const T* mean,
                const T* inv_std, const T* gamma, const T* beta, T* y) {
    each_element(shape, begin, end, [=](ptrdiff_t i, ptrdiff_t c) {
        const T scale = gamma != nullptr ? gamma[c] * inv_std[c] : inv_std[c];
        const T shift = beta != nullptr ? beta[c] : T(0);
        y[i] = (x[i] - mean[c]) * scale + shift;
    });
}

// dx = gamma inv_std (dy - mean(dy) - xhat mean(dy xhat)); without the means where the statistics are
// constants (evaluation).
template <class T>
void norm_backward(const NormShape& shape, const T* dy, const T* x, ptrdiff_t begin, ptrdiff_t end,
                   const NormSaved<T>& saved, const T* gamma, T* dx, T* dgamma, T* dbeta) {
    const T* const mean = saved.mean;
    const T* const inv_std = saved.inv_std;
    channel_sums<2>(
        shape, begin, end,
        [=](ptrdiff_t i, ptrdiff_t c, double* out) {
            out[0] = dy[i];
            out[1] = double(dy[i]) * ((x[i] - mean[c]) * inv_std[c]);
        },
        [=](ptrdiff_t c, const double* sum) {
            dbeta[c] = T(sum[0]);
            dgamma[c] = T(sum[1]);
        });
    if (dx == nullptr) return;
    const T share = saved.of_this_batch ? T(1.0 / double(shape.batch * shape.space)) : T(0);
    each_element(shape, begin, end, [=](ptrdiff_t i, ptrdiff_t c) {
        const T scale = gamma != nullptr ? gamma[c] * inv_std[c] : inv_std[c];
        const T xhat = (x[i] - mean[c]) * inv_std[c];
        dx[i] = scale * (dy[i] - share * dbeta[c] - xhat * (share * dgamma[c]));
    });
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
