// Sums of columns, layer normalisation and matrix products.
#pragma once

#include "cuda/kernels/device.cuh"
#include "formulas/activations.hpp"
#include "formulas/norms.hpp"

namespace pyoptim::cuda {

// The gradient through ReLU, whose output was y[at], of gradient[at]; that itself if y is null.
template <class T>
__device__ inline T through_relu(const T* gradient, const T* y, Index at) {
    return y != nullptr ? math::relu_activation::gradient(gradient[at], y[at], T(0), T(0)) : gradient[at];
}

// Sums of the columns of each part of kPartRows rows, of x, or through ReLU with the outputs y: partial
// (parts, cols). Where partial is null all rows are one part, and `out` has its sums. A block per part and
// kWarp columns.
template <class T>
PYOPTIM_KERNEL column_sum(Index rows, Index cols, const T* x, const T* y, double* partial, T* out) {
    const ColumnTile mine(rows, cols, partial != nullptr ? kPartRows : rows);
    double sum = 0;
    for (Index r = mine.begin; r < mine.end; r += kWarps)
        sum += double(through_relu(x, y, r * cols + mine.column));
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

// What a lane loads of one slice of the inner dimension: kSlice values of its row of a, or of its column of
// b.
template <class T>
struct Slice {
    T value[kSlice];
};
// One side of a product: rows of a or columns of b, `inner` apart along the inner dimension. Its values are
// data's, or those through ReLU with the outputs y.
template <class T>
struct Side {
    const T *data, *y;
    Index outer, inner, count, length;  // strides, how many rows or columns, and the inner dimension
    bool packed;                        // whether kSlice neighbours along the inner dimension are packs

    __device__ Side(const T* data_, const T* y_, Index outer_, Index inner_, Index count_, Index length_)
        : data(data_), y(y_), outer(outer_), inner(inner_), count(count_), length(length_) {
        packed = inner == 1 && outer % kPack<T> == 0 && is_aligned(data) && is_aligned(y);
    }
    // Zero beyond the end.
    __device__ Slice<T> load(Index i, Index slice) const {
        Slice<T> made = {};
        const Index begin = slice * kSlice;
        if (i >= count) return made;
        const Index from = i * outer + begin * inner;
        if (packed && begin + kSlice <= length) {
            PYOPTIM_UNROLL
            for (int q = 0; q < kSlice; q += kPack<T>) {
                auto pack = cuda::load<kPack<T>>(data + from + q);
                if (y != nullptr) {
                    const auto outputs = cuda::load<kPack<T>>(y + from + q);
                    for (int r = 0; r < kPack<T>; ++r)
                        pack.value[r] = through_relu(pack.value, outputs.value, r);
                }
                for (int r = 0; r < kPack<T>; ++r) made.value[q + r] = pack.value[r];
            }
        } else {
            PYOPTIM_UNROLL
            for (int q = 0; q < kSlice; ++q) {
                if (begin + q < length) made.value[q] = through_relu(data, y, from + q * inner);
            }
        }
        return made;
    }
};

// y (m, n) = a (m, k) b (k, n) + bias (n), then ReLU if wanted; y is row-major, bias may be null. If a_y is
// not null, a is a gradient that goes through ReLU first, whose outputs a_y has where a has its own.
//
// A block has a tile of 32 by 32 and one of `splits` parts of the inner dimension. Its warps take slices of
// that part in turn, each by itself: a lane has 4 by 8 elements of the tile. Then the warps' sums are added,
// in an order that follows from the shape alone. Of several blocks that share a tile, the last to arrive adds
// what all have left in `partial`, also in order; `arrived` has a counter per tile, which is 0 before and
// after. Networks are small: with larger tiles most multiprocessors would have nothing to do.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1)
    product(Index m, Index n, Index k, const T* a_data, const T* a_y, Index a_row, Index a_column,
            const T* b_data, Index b_row, Index b_column, const T* bias, bool relu, Index splits, T* partial,
            unsigned* arrived, T* y) {
    constexpr int kRows = 4, kCols = 8, kSize = kTile * kTile, kEach = kSize / kThreads, kHalf = kWarps / 2;
    static_assert(kWarps * 2 * kSlice * kTile <= kHalf * kSize, "slices lie where sums will");
    alignas(16) __shared__ T shared[kHalf * kSize];
    __shared__ bool is_last;
    const Side<T> a(a_data, a_y, a_row, a_column, m, k), b(b_data, nullptr, b_column, b_row, n, k);
    // A grid has fewer than 2^31 blocks, and divisions of 64 bits take long.
    const unsigned tiles = unsigned((n + kTile - 1) / kTile), of_tile = unsigned(splits);
    const unsigned tile = blockIdx.x / of_tile, split = blockIdx.x % of_tile;
    const Index i0 = Index(tile / tiles) * kTile, j0 = Index(tile % tiles) * kTile;
    const Index slices = (k + kSlice - 1) / kSlice;
    const Index each = splits == 1 ? slices : Index((unsigned(slices) + of_tile - 1) / of_tile);
    const Index end = smaller(slices, (split + 1) * each);
    const int warp = int(thread()) / kWarp, row = lane() / 4 * kRows, column = lane() % 4 * kCols;
    T* const a_slice = shared + warp * 2 * kSlice * kTile;
    T* const b_slice = a_slice + kSlice * kTile;

    T sum[kRows][kCols] = {};
    Index slice = split * each + warp;
    Slice<T> a_next = {}, b_next = {};
    if (slice < end) a_next = a.load(i0 + lane(), slice), b_next = b.load(j0 + lane(), slice);
    while (slice < end) {
        PYOPTIM_UNROLL
        for (int q = 0; q < kSlice; ++q) {
            a_slice[q * kTile + lane()] = a_next.value[q];
            b_slice[q * kTile + lane()] = b_next.value[q];
        }
        __syncwarp();
        slice += kWarps;  // the next one is loaded while this one is multiplied
        if (slice < end) a_next = a.load(i0 + lane(), slice), b_next = b.load(j0 + lane(), slice);
        PYOPTIM_UNROLL
        for (int q = 0; q < kSlice; ++q) {
            Pack<T, kPack<T>> x[kRows / kPack<T>], z[kCols / kPack<T>];
            for (int r = 0; r < kRows / kPack<T>; ++r) {
                x[r] = load<kPack<T>>(a_slice + q * kTile + row + r * kPack<T>);
            }
            for (int c = 0; c < kCols / kPack<T>; ++c) {
                z[c] = load<kPack<T>>(b_slice + q * kTile + column + c * kPack<T>);
            }
            PYOPTIM_UNROLL
            for (int r = 0; r < kRows; ++r) {
                PYOPTIM_UNROLL
                for (int c = 0; c < kCols; ++c) {
                    sum[r][c] = multiply_add(x[r / kPack<T>].value[r % kPack<T>],
                                             z[c / kPack<T>].value[c % kPack<T>], sum[r][c]);
                }
            }
        }
        __syncwarp();
    }

    // The upper half of the warps leaves its sums to the lower half, and this to all threads.
    const auto own = [&](int of) { return shared + of % kHalf * kSize + row * kTile + column; };
    __syncthreads();
    for (int half = 0; half < 2; ++half) {
        if (warp / kHalf == 1 - half) {
            for (int r = 0; r < kRows; ++r) {
                for (int c = 0; c < kCols; c += kPack<T>) {
                    store(own(warp) + r * kTile + c, *reinterpret_cast<Pack<T, kPack<T>>*>(&sum[r][c]));
                }
            }
        }
        __syncthreads();
        if (half == 0 && warp < kHalf) {
            for (int r = 0; r < kRows; ++r) {
                for (int c = 0; c < kCols; ++c) sum[r][c] += own(warp)[r * kTile + c];
            }
        }
        __syncthreads();
    }
    T total[kEach];
    for (int e = 0; e < kEach; ++e) {
        const T* const at = shared + thread() + e * kThreads;
        total[e] = at[0];
        for (int of = 1; of < kHalf; ++of) total[e] += at[of * kSize];
    }

    if (splits > 1) {
        T* const left = partial + Index(tile) * splits * kSize + thread();
        for (int e = 0; e < kEach; ++e) left[split * kSize + e * kThreads] = total[e];
        __threadfence();
        __syncthreads();
        if (thread() == 0) is_last = atomicInc(arrived + tile, unsigned(splits - 1)) == unsigned(splits - 1);
        __syncthreads();
        if (!is_last) return;
        __threadfence();
        for (int e = 0; e < kEach; ++e) total[e] = 0;
        for (Index of = 0; of < splits; ++of) {
            for (int e = 0; e < kEach; ++e) total[e] += left[of * kSize + e * kThreads];
        }
    }
    for (int e = 0; e < kEach; ++e) {
        const Index at = thread() + e * kThreads, i = i0 + at / kTile, j = j0 + at % kTile;
        if (i < m && j < n)
            y[i * n + j] = math::relu_if(relu, bias != nullptr ? total[e] + bias[j] : total[e]);
    }
}

}  // namespace pyoptim::cuda
