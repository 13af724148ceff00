// Layer normalisation: each row is normalised by its own statistics, in passes that find the row in the L1
// cache.
#pragma once

#include "cpu/norm.hpp"

namespace pyoptim::cpu::PYOPTIM_ISA {
namespace {

template <class T>
void layer_norm(const LayerNorm<T>& it, const T* x, ptrdiff_t begin, ptrdiff_t end, double eps, T* y, T* mean,
                T* inv_std) {
    const double n = double(it.cols);
    for (ptrdiff_t r = begin; r < end; ++r) {
        const T* const from = x + r * it.cols;
        T* const to = y + r * it.cols;
        double exact, m2;
        run_moments(it.cols, from, exact, m2);
        if (!(m2 <= __DBL_MAX__)) {
            math::careful_moments(n, exact, m2, [&](auto term) {
                double sum = 0;
                for (ptrdiff_t j = 0; j < it.cols; ++j) sum += term(double(from[j]));
                return sum;
            });
        }
        const T m = T(exact), scale = math::inverse_deviation<T>((m2 < 0 ? 0 : m2) / n, eps);
        mean[r] = m;
        inv_std[r] = scale;
        PYOPTIM_NO_OVERLAP
        for (ptrdiff_t j = 0; j < it.cols; ++j) {
            to[j] = math::layer_norm_value(from[j], m, scale, it.gamma[j], it.beta[j]);
        }
    }
}

// `waiting` keeps the sums of columns of a block of rows: two vectors with room for whole lanes, as have
// dgamma and dbeta.
template <class T>
void layer_norm_backward(const LayerNorm<T>& it, const LayerNormRows<T>& rows, ptrdiff_t begin, ptrdiff_t end,
                         T* dx, T* waiting, double* dgamma, double* dbeta) {
    using Vector = typename Norm<T>::Vector;
    using Wide = typename Norm<T>::Wide;
    constexpr ptrdiff_t L = Norm<T>::lanes, kBlock = 64 * L;
    const ptrdiff_t cols = it.cols;
    T *const betas = waiting, *const gammas = waiting + (cols + 15) / 16 * 16;
    for (ptrdiff_t r0 = begin; r0 < end; r0 += kNormRows) {
        const ptrdiff_t r1 = r0 + kNormRows < end ? r0 + kNormRows : end;
        for (ptrdiff_t r = r0; r < r1; ++r) {
            const T *const dy = rows.dy + r * cols, *const x = rows.x + r * cols;
            const T mean = rows.mean[r], scale = rows.inv_std[r];
            double total = 0, product = 0;
            for (ptrdiff_t b = 0; b < cols; b += kBlock) {
                Vector s1 = {}, s2 = {};
                const auto add = [&](ptrdiff_t j, ptrdiff_t live) __attribute__((always_inline)) {
                    Vector g, d, gamma, beta_sum = {}, gamma_sum = {};
                    load_lanes(g, dy + j, live);
                    load_lanes(d, x + j, live);
                    load_lanes(gamma, it.gamma + j, live);
                    d = (d - mean) * scale;
                    if (r > r0) {
                        get_lanes(beta_sum, betas + j);
                        get_lanes(gamma_sum, gammas + j);
                    }
                    beta_sum += g;
                    gamma_sum += g * d;
                    put_lanes(betas + j, beta_sum);
                    put_lanes(gammas + j, gamma_sum);
                    g *= gamma;
                    s1 += g;
                    s2 += g * d;
                };
                const ptrdiff_t stop = b + kBlock < cols ? b + kBlock : cols;
                ptrdiff_t j = b;
                for (; j + L <= stop; j += L) add(j, L);
                if (j < stop) add(j, stop - j);
                for (ptrdiff_t lane = 0; lane < L; ++lane) {
                    total += double(s1[lane]);
                    product += double(s2[lane]);
                }
            }
            if (dx == nullptr) continue;
            const T offset = T(total / double(cols)), slope = T(product / double(cols));
            T* const to = dx + r * cols;
            PYOPTIM_NO_OVERLAP
            for (ptrdiff_t j = 0; j < cols; ++j) {
                to[j] = math::layer_norm_gradient(dy[j] * it.gamma[j], x[j], mean, scale, slope, offset);
            }
        }
        for (ptrdiff_t j = 0; j < cols; j += L) {
            Vector block;
            Wide beta_sum = {}, gamma_sum = {};
            if (r0 > begin) {
                get_lanes(beta_sum, dbeta + j);
                get_lanes(gamma_sum, dgamma + j);
            }
            get_lanes(block, betas + j);
            beta_sum += __builtin_convertvector(block, Wide);
            get_lanes(block, gammas + j);
            gamma_sum += __builtin_convertvector(block, Wide);
            put_lanes(dbeta + j, beta_sum);
            put_lanes(dgamma + j, gamma_sum);
        }
    }
}

}  // namespace
}  // namespace pyoptim::cpu::PYOPTIM_ISA
