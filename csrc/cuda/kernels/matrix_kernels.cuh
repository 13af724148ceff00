// Sums of columns, layer normalisation and matrix products.
#pragma once

#include "cuda/kernels/device.cuh"
#include "formulas/norms.hpp"

namespace pyoptim::cuda {

// Sums of the columns of each part of kPartRows rows: partial (parts, cols). Where partial is null all rows
// are one part, and `out` has its sums. A block per part and kWarp columns.
template <class T>
PYOPTIM_KERNEL column_sum(Index rows, Index cols, const T* x, double* partial, T* out) {
    const ColumnTile mine(rows, cols, partial != nullptr ? kPartRows : rows);
    double sum = 0;
    for (Index r = mine.begin; r < mine.end; r += kWarps) sum += double(x[r * cols + mine.column]);
    sum = column_total(sum);
    if (thread() >= kWarp || mine.column >= cols) return;
    if (partial != nullptr) {
        partial[mine.part * cols + mine.column] = sum;
    } else {
        out[mine.column] = T(sum);
    }
}

// out (cols) = the sum of the parts, in order. A thread per column.
template <class T>
PYOPTIM_KERNEL sum_parts(Index parts, Index cols, const double* partial, T* out) {
    const Index j = block() * kThreads + thread();
    if (j >= cols) return;
    double sum = 0;
    for (Index part = 0; part < parts; ++part) sum += partial[part * cols + j];
    out[j] = T(sum);
}

// y = gamma (x - mean) inv_std + beta with the statistics of each row, which are kept; gamma and beta may be
// null. A warp per row.
template <class T>
PYOPTIM_KERNEL layer_norm(Index rows, Index cols, const T* x, const T* gamma, const T* beta, double eps, T* y,
                          T* mean, T* inv_std) {
    const Index r = warp_row();
    if (r >= rows) return;
    const T* const from = x + r * cols;
    // About the lane's first value, so that a large mean costs no accuracy; then about the row's.
    const T own = lane() < cols ? from[lane()] : T(0), shift = from[0];
    T lane_sum = 0, lane_squares = 0;
    double count = 0;
    for (Index j = lane(); j < cols; j += kWarp) {
        const T d = from[j] - own;
        lane_sum += d;
        lane_squares += d * d;
        count += 1;
    }
    const double n = double(cols), apart = double(own) - double(shift);
    math::ShiftedSums of = {count, double(lane_sum), double(lane_squares)};
    of.move(apart);
    const double sum = warp_sum(of.sum), squares = warp_sum(of.squares);
    double exact = double(shift) + sum / n, m2 = squares - sum * sum / n;
    if (m2 - m2 != 0) {  // NaN or infinity
        math::careful_moments(n, exact, m2, [&](auto term) {
            double terms = 0;
            for (Index j = lane(); j < cols; j += kWarp) terms += term(double(from[j]));
            return warp_sum(terms);
        });
    }
    const T m = T(exact), scale = math::inverse_deviation<T>((m2 < 0 ? 0 : m2) / n, eps);
    if (lane() == 0) {
        mean[r] = m;
        inv_std[r] = scale;
    }
    each_ahead<4>(
        lane(), cols, kWarp, [&](Index j) { return from[j]; },
        [&](Index j, T value) {
            y[r * cols + j] = math::layer_norm_value(value, m, scale, gamma != nullptr ? gamma[j] : T(1),
                                                     beta != nullptr ? beta[j] : T(0));
        });
}

// Writes dx of layer_norm. A warp per row.
template <class T>
PYOPTIM_KERNEL layer_norm_gradient(Index rows, Index cols, const T* dy, const T* x, const T* gamma,
                                   const T* mean, const T* inv_std, T* dx) {
    const Index r = warp_row();
    if (r >= rows) return;
    dy += r * cols;
    x += r * cols;
    const T m = mean[r], scale = inv_std[r];
    T lane_sum = 0, lane_product = 0;
    for (Index j = lane(); j < cols; j += kWarp) {
        const T g = gamma != nullptr ? dy[j] * gamma[j] : dy[j];
        lane_sum += g;
        lane_product += g * ((x[j] - m) * scale);
    }
    const T offset = T(warp_sum(double(lane_sum)) / double(cols));
    const T slope = T(warp_sum(double(lane_product)) / double(cols));
    for (Index j = lane(); j < cols; j += kWarp) {
        const T g = gamma != nullptr ? dy[j] * gamma[j] : dy[j];
        dx[r * cols + j] = math::layer_norm_gradient(g, x[j], m, scale, slope, offset);
    }
}

// Writes the partial sums of dgamma and of dbeta: partial (2, parts, cols), which sum_parts adds up. Blocks
// are as for column_sum.
template <class T>
PYOPTIM_KERNEL layer_norm_products(Index rows, Index cols, const T* dy, const T* x, const T* mean,
                                   const T* inv_std, double* partial) {
    const ColumnTile mine(rows, cols, kPartRows);
    T lane_gamma = 0, lane_beta = 0;
    for (Index r = mine.begin; r < mine.end; r += kWarps) {
        const T g = dy[r * cols + mine.column];
        lane_gamma += g * ((x[r * cols + mine.column] - mean[r]) * inv_std[r]);
        lane_beta += g;
    }
    const double gammas = column_total(double(lane_gamma)), betas = column_total(double(lane_beta));
    if (thread() >= kWarp || mine.column >= cols) return;
    const Index parts = (rows + kPartRows - 1) / kPartRows;
    partial[mine.part * cols + mine.column] = gammas;
    partial[(parts + mine.part) * cols + mine.column] = betas;
}

// a b + c, rounded once; products may use it, since the bits of their sums differ from the CPU's anyway.
__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// A matrix with any strides.
template <class T>
struct Matrix {
    const T* data;
    Index row, column;
    __device__ T at(Index i, Index j) const { return data[i * row + j * column]; }
};

// Computes the 32 by 32 tile of a (m, k) b (k, n) from (i0, j0) on, and calls store(i, j, sum) for each
// element.
template <class T, class Store>
__device__ inline void product_tile(Index m, Index n, Index k, const Matrix<T>& a, const Matrix<T>& b,
                                    Index i0, Index j0, Store store) {
    constexpr int kRows = kTile / kWarps;
    __shared__ T a_tile[kTile][kTile + 1], b_tile[kTile][kTile + 1];
    const int column = lane(), first = int(thread()) / kWarp;
    T sum[kRows] = {};
    for (Index k0 = 0; k0 < k; k0 += kTile) {
        for (int q = 0; q < kRows; ++q) {
            const int row = first + q * kWarps;
            // Lanes run along memory where they can.
            const bool along = a.column == 1, down = b.row == 1 && b.column != 1;
            const Index ai = i0 + (along ? row : column), ak = k0 + (along ? column : row);
            const Index bk = k0 + (down ? column : row), bj = j0 + (down ? row : column);
            a_tile[ai - i0][ak - k0] = ai < m && ak < k ? a.at(ai, ak) : T(0);
            b_tile[bk - k0][bj - j0] = bk < k && bj < n ? b.at(bk, bj) : T(0);
        }
        __syncthreads();
        for (int l = 0; l < kTile; ++l) {
            for (int q = 0; q < kRows; ++q) {
                sum[q] = multiply_add(a_tile[first + q * kWarps][l], b_tile[l][column], sum[q]);
            }
        }
        __syncthreads();
    }
    for (int q = 0; q < kRows; ++q) {
        const Index i = i0 + first + q * kWarps, j = j0 + column;
        if (i < m && j < n) store(i, j, sum[q]);
    }
}

// y (m, n) = a (m, k) b (k, n) + bias (n), then ReLU if wanted; y is row-major, bias may be null. It is used
// where cuBLASLt cannot be. A block per tile.
template <class T>
PYOPTIM_KERNEL product(Index m, Index n, Index k, const T* a_data, Index a_row, Index a_column,
                       const T* b_data, Index b_row, Index b_column, const T* bias, bool relu, T* y) {
    const Matrix<T> a = {a_data, a_row, a_column}, b = {b_data, b_row, b_column};
    const Index tiles = (n + kTile - 1) / kTile;
    const auto store = [&](Index i, Index j, T sum) {
        const T z = bias != nullptr ? sum + bias[j] : sum;
        y[i * n + j] = math::relu_if(relu, z);
    };
    product_tile(m, n, k, a, b, block() / tiles * kTile, block() % tiles * kTile, store);
}

}  // namespace pyoptim::cuda
